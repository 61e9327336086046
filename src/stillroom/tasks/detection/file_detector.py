"""A dense detector that is only a file: scores and boxes of every position, as Stillroom exports them (`detection.export`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stillroom.engine.inference.network import FileNetwork
from stillroom.engine.task import Built
from stillroom.errors import InputError
from stillroom.tasks.detection.dense import Assigner, DenseOutputs, DenseTargets, on_image
from stillroom.tasks.detection.detector import DenseDetector
from stillroom.tasks.detection.gfl import square_anchors
from stillroom.tasks.detection.outputs import Objects
from stillroom.tasks.images.file_networks import of_file, open_file

_PROBE = 96, 160  # height and width of the image that a file is asked about: multiples of usual divisors, neither of the other
_FINEST, _MOST = (2, 4, 8, 16, 32, 64), 6  # strides of a pyramid double from the finest level on


class FileDetector(DenseDetector):
    """Scores [B, N, C] in [0, 1] and boxes [B, N, 4] in pixels from a file, one position for each cell of each level, fine to coarse.

    What teaches are the scores' logits; of a detector with a centerness they are those of its products with it.

    Args:
        network: around the file.
        argument: what the user calls it.

    Raises:
        InputError: the file answers with something else.
    """

    def __init__(self, network: FileNetwork, argument: str = "teacher") -> None:
        super().__init__()
        self.network, self.argument = network, argument
        height, width = network.size or _PROBE
        answers = network(torch.zeros(1, 3, height, width))
        several = answers if isinstance(answers, tuple) else (answers,)
        found = self._found(several)
        shapes = ", ".join(f"{name} {list(part.shape)}" for name, part in zip(network.places, several, strict=True))
        expected = "scores [B, N, C] and boxes [B, N, 4], of a position for each cell of a pyramid whose strides double: a dense detector"
        if found is None:
            raise InputError(argument, f"{network.session.file}, which answers with {shapes}", expected)
        self._places = found
        scores = several[found[0]]
        self.num_classes = scores.shape[2]
        strides = _strides(height, width, scores.shape[1])
        if strides is None or scores.min() < 0 or scores.max() > 1:
            got = f"{network.session.file}, which answers an image of {height} x {width} pixels with {shapes}"
            raise InputError(argument, got, f"{expected}, whose scores are from 0 to 1")
        self.strides = strides

    def _found(self, answers: Sequence[Tensor]) -> tuple[int, int] | None:
        """Which outputs are the scores and the boxes: by their names, or else by their shapes."""
        if {"scores", "boxes"} <= set(self.network.places):
            return self.network.places.index("scores"), self.network.places.index("boxes")
        boxes = [place for place, part in enumerate(answers) if part.ndim == 3 and part.shape[2] == 4]
        others = [place for place, part in enumerate(answers) if part.ndim == 3 and part.shape[2] != 4]
        return (others[0], boxes[0]) if len(answers) == 2 and len(boxes) == len(others) == 1 else None

    @property
    def stored(self) -> tuple[int, int]:
        """See `FileNetwork`."""
        return self.network.stored

    def raw(self, images: Tensor, image_sizes: Tensor, objects: Objects | None = None) -> DenseOutputs:
        """See `Detector`; the features are not in the file."""
        answers = self.network(images)
        scores_BNC, boxes_BN4 = (answers[place].float() for place in self._places)
        cells = [(math.ceil(images.shape[-2] / stride), math.ceil(images.shape[-1] / stride)) for stride in self.strides]
        sizes = [height * width for height, width in cells]
        anchors = tuple(
            square_anchors(*sides, stride, 8 * stride, images.device) for sides, stride in zip(cells, self.strides, strict=True)
        )
        return DenseOutputs(
            strides=self.strides,
            image_sizes=image_sizes,
            logits=scores_BNC.logit(eps=1e-7).split(sizes, 1),
            boxes=boxes_BN4.split(sizes, 1),
            anchors=anchors,
            valid=on_image(anchors, image_sizes),
        )

    def assigner(self, *, regions: bool = False) -> Assigner:
        """It is never trained."""
        raise self._cannot_learn()

    def task_losses(self, outputs: DenseOutputs, targets: DenseTargets) -> dict[str, Tensor]:
        """It is never trained."""
        raise self._cannot_learn()

    def _cannot_learn(self) -> InputError:
        return InputError(self.argument, str(self.network.session.file), "a detector that can be trained: a file can only be asked")


def _strides(height: int, width: int, positions: int) -> tuple[int, ...] | None:
    """Those of the pyramid that has so many cells; None where there is no such pyramid."""
    for finest in _FINEST:
        for levels in range(1, _MOST + 1):
            strides = tuple(finest * 2**level for level in range(levels))
            if sum(math.ceil(height / stride) * math.ceil(width / stride) for stride in strides) == positions:
                return strides
    return None


def build_file_detector(spec: str, file: Path, *, num_classes: int, argument: str) -> Built:
    """The detector of a specification that names a file.

    Raises:
        InputError: as `FileNetwork` and `FileDetector`, or it answers for another number of classes.
    """
    if argument != "teacher":
        raise InputError(argument, spec, "a detector that PyTorch builds: one that is only a file can teach, and no more")
    detector = FileDetector(open_file(spec, argument), argument)
    if detector.num_classes != num_classes:
        raise InputError(argument, f"{spec}, which answers for {detector.num_classes} classes", f"{num_classes}, as the data have")
    # A remark in brackets: no specification that a card could name.
    return Built(detector, f"{spec} (only a file)", str(file), of_file(detector.network).classes)
