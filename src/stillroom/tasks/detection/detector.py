"""A detector as the rest of the library sees it: raw outputs for distillation, its own task loss, and detections.

`DenseDetector` is the kind that answers at every position of a pyramid; `two_stage` and `queries` hold the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, clip_boxes_to_image

from stillroom.tasks.detection.dense import Assigner, DenseOutputs, DenseTargets, dense_targets
from stillroom.tasks.detection.metrics import Detections
from stillroom.tasks.detection.outputs import Objects, Outputs

OutputsT = TypeVar("OutputsT", bound=Outputs)
TargetsT = TypeVar("TargetsT")


class Detector(nn.Module, ABC, Generic[OutputsT, TargetsT]):
    """Base of all detectors.

    Images come as one batch, float [B, 3, H, W], normalised, padded at the right and the bottom; `image_sizes` int64 [B, 2] says how much
    of each is image. Labels are 0 .. C-1 and C is background. A training step is

        outputs = detector.raw(images, image_sizes, objects)
        targets = detector.targets(outputs, boxes, labels)
        losses = detector.task_losses(outputs, targets)

    so that a method may look at the outputs before it says what the boxes are.

    Attributes:
        num_classes: C.
        strides: of `raw`'s features.
    """

    num_classes: int
    strides: tuple[int, ...]

    @abstractmethod
    def raw(self, images: Tensor, image_sizes: Tensor, objects: Objects | None = None) -> OutputsT:
        """All that the detector answers.

        Args:
            images, image_sizes: see the class.
            objects: the images' boxes and labels, for a detector that learns from noised copies of them too (RT-DETR); others, and all
                in eval mode, answer the same with and without.
        """

    def feature_maps(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """`raw`'s features alone; without the heads' work, where the detector can do without."""
        return self.raw(images, image_sizes).features

    @abstractmethod
    def targets(self, outputs: OutputsT, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> TargetsT:
        """What the detector is to answer, by its own rule.

        Args:
            outputs: of `raw`.
            boxes, labels: of each image's objects, [G, 4] absolute and int64 [G]; G may be 0.
        """

    @abstractmethod
    def task_losses(self, outputs: OutputsT, targets: TargetsT) -> dict[str, Tensor]:
        """What plain training minimises: scalars by name, whose sum is the detector's own loss."""

    @abstractmethod
    def detect(self, images: Tensor, image_sizes: Tensor) -> list[Detections]:
        """Detections of each image, at most 100, best first; in eval mode."""

    @abstractmethod
    def answers(self, outputs: OutputsT) -> dict[str, list[Tensor]]:
        """What a frozen teacher is asked for, and what is measured: the scores and boxes of `raw`, by name."""

    def forward(self, images: Tensor | tuple[Tensor, Tensor]) -> dict[str, list[Tensor]]:
        """`answers` to images, or to (images, image sizes); without sizes padding counts as image."""
        pixels, sizes = images if isinstance(images, tuple) else (images, None)
        if sizes is None:
            sizes = torch.tensor(pixels.shape[-2:], device=pixels.device).expand(len(pixels), 2)
        return self.answers(self.raw(pixels, sizes))


class DenseDetector(Detector[DenseOutputs, DenseTargets]):
    """Base of detectors that answer at every position of a pyramid."""

    score_threshold, nms_threshold, most_of_level, most = 0.05, 0.6, 1000, 100

    @abstractmethod
    def assigner(self, *, regions: bool = False) -> Assigner:
        """The rule that gives positions their objects; with LD's regions if they are asked for."""

    def targets(self, outputs: DenseOutputs, boxes: Sequence[Tensor], labels: Sequence[Tensor], *, regions: bool = False) -> DenseTargets:
        """What the positions are to answer, by this detector's own assigner."""
        return dense_targets(outputs, boxes, labels, self.assigner(regions=regions), self.num_classes)

    def scores(self, outputs: DenseOutputs) -> list[Tensor]:
        """Per level [B, N_l, C] in [0, 1], by which detections are ranked."""
        scores = [logits.float().sigmoid() for logits in outputs.logits]
        if not outputs.centerness:
            return scores
        return [(level * centre.float().sigmoid()[..., None]).sqrt() for level, centre in zip(scores, outputs.centerness, strict=True)]

    @torch.no_grad()
    def detect(self, images: Tensor, image_sizes: Tensor) -> list[Detections]:
        """Detections of each image: scores above 0.05, the best 1000 of a level, class-wise NMS at IoU 0.6, the best 100."""
        outputs = self.raw(images, image_sizes)
        scores = self.scores(outputs)
        found = []
        for image, size in enumerate(image_sizes.tolist()):
            boxes, values, labels = [], [], []
            for level, level_boxes in zip(scores, outputs.boxes, strict=True):
                flat = level[image].flatten()
                kept = (flat > self.score_threshold).nonzero().flatten()
                best, order = flat[kept].topk(min(len(kept), self.most_of_level))
                at = kept[order]
                boxes.append(level_boxes[image][at // self.num_classes].float())
                values.append(best)
                labels.append(at % self.num_classes)
            clipped = clip_boxes_to_image(torch.cat(boxes), (size[0], size[1]))
            all_values, all_labels = torch.cat(values), torch.cat(labels)
            keep = batched_nms(clipped, all_values, all_labels, self.nms_threshold)[: self.most]
            found.append(Detections(clipped[keep], all_values[keep], all_labels[keep]))
        return found

    def answers(self, outputs: DenseOutputs) -> dict[str, list[Tensor]]:
        """Each per level: ``logits``, ``boxes`` and, where there are, ``bins``."""
        told = {"logits": list(outputs.logits), "boxes": list(outputs.boxes)}
        return told | ({"bins": list(outputs.bins)} if outputs.bins else {})


def maps_of(backbone: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The maps of a backbone in torchvision's manner, by name; it may answer with a single one."""
    maps: dict[str, Tensor] | Tensor = backbone(images)
    return {"0": maps} if isinstance(maps, Tensor) else maps


def anchors_of(generator: nn.Module, images: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """The anchors of torchvision's generator on every map, float32 [A, 4], one level after the other; the same for all images of a batch.

    The generator computes in the type of the maps; in bfloat16 a coordinate of 1300 is off by up to 4 pixels.
    """
    listed = ImageList(images, [(images.shape[-2], images.shape[-1])])
    found: list[Tensor] = generator(listed, [level[:1, :1].float() for level in maps])
    return found[0]


def strides_of_maps(backbone: nn.Module) -> dict[str, int]:
    """Names and strides of a backbone's maps, by asking it once."""
    side, training = 128, backbone.training
    with torch.no_grad():
        maps = maps_of(backbone.eval(), next(backbone.parameters()).new_zeros(1, 3, side, side))
    backbone.train(training)
    return {name: round(side / level.shape[-1]) for name, level in maps.items()}
