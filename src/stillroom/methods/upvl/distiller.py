"""Training of the detector on automatic boxes and on features from pictures (B), and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillroom.engine import Distiller
from stillroom.errors import at_least_zero
from stillroom.methods.upvl.detector import named_by
from stillroom.methods.upvl.loss import feature_loss
from stillroom.tasks.detection3d.networks import LidarDetector, MapOutputs
from stillroom.tasks.detection3d.supervised import Detection3dDistiller
from stillroom.tasks.points.boxes import points_in_boxes
from stillroom.tasks.points.center_head import Detections
from stillroom.tasks.points.frames import FrameBatch

# How sequences are labelled: by geometry alone; what moves; what moves and all that stands; all of it, without the background.
WAYS = ("clusters", "motion", "unfiltered", "labels")


class Found(NamedTuple):
    """What was found in a frame.

    Attributes:
        boxes, scores: [M, 7 or more] and [M]: of objects, whatever they are called.
        labels: int64 [M], which class each is called; -1 where nothing is named.
        shares: [M], how probable its name is.
        visible: [M, 3], length, width and height of what the frame alone shows of it; NaN where this is not known.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    shares: Tensor
    visible: Tensor


def unnamed(found: Detections) -> Found:
    """Boxes without names."""
    nothing = torch.full_like(found.labels, -1)
    return Found(
        found.boxes, found.scores, nothing, found.scores.new_ones(len(nothing)), found.boxes.new_full((len(nothing), 3), torch.nan)
    )


class Boxes(Detection3dDistiller):
    """The detector on automatic boxes alone; its boxes have no names."""

    def predict(self, batch: FrameBatch) -> Any:
        """`Found` in each frame."""
        return [unnamed(found) for found in super().predict(batch)]


class UPVL(Detection3dDistiller):
    """L = L_det + lambda mean (1 - cos(g_i, f_i)) over the points whose feature is known (B.4, B.5).

    Args:
        student: a detector with a `naming`.
        table: [T, C], features that pictures gave; `FrameBatch.point_labels` says which row is whose, -1: none. Kept in half precision.
        texts: [Q, C], of the classes that validation names, then of the background.
        feature_weight: lambda.
    """

    student: LidarDetector
    table: Tensor

    def __init__(self, student: LidarDetector, table: Tensor, texts: Tensor, *, feature_weight: float = 1.0) -> None:
        super().__init__(student)
        self.feature_weight = at_least_zero("feature_weight", feature_weight)
        self.register_buffer("table", table.half(), persistent=False)
        self.register_buffer("texts", texts, persistent=False)

    def taught(self, batch: FrameBatch, outputs: MapOutputs) -> dict[str, Tensor]:
        """``feature``; an exact 0 that still reaches the head where no point has a target."""
        assert batch.point_labels is not None
        rows = batch.point_labels[outputs.extra["kept"]]
        known = (rows >= 0).nonzero().squeeze(1)
        predicted = self.student.naming(outputs, batch.inputs, known)
        return {"feature": self.feature_weight * feature_loss(predicted, self.table[rows[known]])}

    def predict(self, batch: FrameBatch) -> Any:
        """`Found` in each frame, named by the student's own features."""
        outputs = self.student.raw(batch.inputs)
        boxes = self.student.head.detect(outputs.predictions)
        names = self.student.naming.named(outputs, batch.inputs, boxes, self.texts)
        return [unnamed(found)._replace(labels=label, shares=share) for found, (label, share) in zip(boxes, names, strict=True)]


class Lifted(Detection3dDistiller):
    """Boxes named by the pictures themselves, as the vision-language model sees them: what needs cameras at inference.

    Args:
        student: the detector.
        features: gives the features [N, C] of all points of the validation frame of an id.
        texts: as in `UPVL`.
    """

    def __init__(self, student: Any, features: Callable[[int], Tensor], texts: Tensor) -> None:
        super().__init__(student)
        self._features, self._texts = features, texts

    def predict(self, batch: FrameBatch) -> Any:
        """`Found` in each frame."""
        answers = []
        for number, (found, index) in enumerate(zip(super().predict(batch), batch.ids.tolist(), strict=True)):
            inside = points_in_boxes(batch.points[batch.batch_index == number, :3], found.boxes)
            label, share = named_by(self._features(index).to(inside.device), inside, self._texts.to(inside.device))
            answers.append(unnamed(found)._replace(labels=label, shares=share))
        return answers


class Labels(Distiller):
    """Automatic labels of the validation frames as answers.

    Args:
        student: stands in the place of a network.
        found: by the id of a frame.
    """

    def __init__(self, student: Any, found: Mapping[int, Found]) -> None:
        super().__init__(student)
        self._found = found

    def predict(self, batch: FrameBatch) -> Any:
        """`Found` in each frame."""
        return [self._found[index] for index in batch.ids.tolist()]
