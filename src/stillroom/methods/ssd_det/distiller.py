"""A two-stage detector that is trained on refined boxes, and the refiner that it is trained with (section 10 of the specification)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from stillroom.engine import Losses
from stillroom.engine.run.recorder import evaluating
from stillroom.errors import InputError
from stillroom.methods.ssd_det.bags import check_boxes
from stillroom.methods.ssd_det.mil import cut
from stillroom.methods.ssd_det.refiner import Refined, Refiner
from stillroom.tasks.detection import DetectionBatch, DetectionData, DetectionDistiller
from stillroom.tasks.detection.outputs import Objects
from stillroom.tasks.detection.preparation import rescaled
from stillroom.tasks.detection.two_stage import TwoStageDetector, TwoStageOutputs

# The release's weights of Faster R-CNN's four losses; the first stage's boxes have none.
_WEIGHTS = {"loss_objectness": 4.0, "loss_rpn_box_reg": 1.0, "loss_classifier": 4.0, "loss_box_reg": 4.0}
_LEAST = 1.0  # pixels of a side of a box that the detector is trained on


class Plain(DetectionDistiller):
    """The same detector with the same weights of its losses, trained on the boxes as they are.

    Args:
        student: torchvision's Faster R-CNN.

    Raises:
        InputError: another kind of detector.
    """

    student: TwoStageDetector

    def __init__(self, student: nn.Module) -> None:
        if not isinstance(student, TwoStageDetector):
            kind = type(getattr(student, "model", student)).__name__
            raise InputError("student", kind, "Faster R-CNN: stillroom/faster-rcnn_24, torchvision/fasterrcnn_resnet50_fpn, or your own")
        super().__init__(student)

    def losses(self, batch: DetectionBatch) -> Losses:
        """The detector's four, weighted."""
        outputs = self.student.raw(batch.images, batch.sizes)
        return Losses(task=self.detection_losses(outputs, *batch.objects()))

    def detection_losses(self, outputs: TwoStageOutputs, boxes: Any, labels: Any) -> dict[str, Tensor]:
        """The detector's own losses on these boxes, with the release's weights."""
        found = self.student.task_losses(outputs, self.student.targets(outputs, boxes, labels))
        return {name: _WEIGHTS[name] * loss for name, loss in found.items()}


class SSDDet(Plain):
    """Refines the boxes of each batch, and trains the detector on what it made of them; one backward pass through everything.

    At inference the detector is all there is; the refiner is kept beside it, for refining boxes.

    Args:
        student: torchvision's Faster R-CNN.
        options: those of `Refiner`; its sizes are the detector's own.

    Raises:
        InputError: another kind of detector, or an option that cannot be used.
    """

    def __init__(self, student: nn.Module, **options: Any) -> None:
        super().__init__(student)
        heads = self.student.model.roi_heads
        pooler, hidden = heads.box_roi_pool, int(heads.box_predictor.cls_score.in_features)
        self.levels = [self.student.maps.index(name) for name in pooler.featmap_names]
        strides = [self.student.strides[level] for level in self.levels]
        self.refiner = Refiner(
            int(self.student.model.backbone.out_channels),
            self.student.num_classes,
            size=int(pooler.output_size[0]),
            hidden=hidden,
            finest_scale=_finest_scale(pooler, strides[0]),
            **options,
        )

    def companions(self) -> dict[str, nn.Module]:
        """The refiner."""
        return {"refiner": self.refiner}

    def losses(self, batch: DetectionBatch) -> Losses:
        """The detector's losses on the refined boxes, and the refiner's on the given ones."""
        outputs = self.student.raw(batch.images, batch.sizes)
        refined = self.refine(outputs, batch)
        boxes, labels = _usable(refined, batch)
        return Losses(task=self.detection_losses(outputs, boxes, labels), distill=refined.losses)

    def refine(self, outputs: TwoStageOutputs, batch: DetectionBatch) -> Refined:
        """What becomes of a batch's boxes that are no crowd, by the detector's features of it."""
        boxes, labels = batch.objects()
        features = [outputs.features[level] for level in self.levels]
        strides = [outputs.strides[level] for level in self.levels]
        refined: Refined = self.refiner(features, strides, boxes, labels, batch.sizes)
        return refined

    def rehearse(self, batch: DetectionBatch) -> None:
        """Looks at a few samples' boxes, besides."""
        check_boxes(*batch.objects(), self.student.num_classes, batch.ids.tolist())
        super().rehearse(batch)


def _usable(refined: Refined, batch: DetectionBatch) -> Objects:
    """The refined boxes of each image within it, and their labels; those of which less than a pixel is left are dropped."""
    _, labels = batch.objects()
    boxes, kept_labels = [], []
    for mine, named, size in zip(refined.boxes.split([len(named) for named in labels]), labels, batch.sizes, strict=True):
        inner = cut(mine, size.flip(0).expand(len(mine), 2))
        kept = ((inner[:, 2:] - inner[:, :2]) >= _LEAST).all(1)
        boxes.append(inner[kept])
        kept_labels.append(named[kept])
    return boxes, kept_labels


def _finest_scale(pooler: MultiScaleRoIAlign, stride: int) -> float:
    """The detector's own rule of levels in `region_levels`' terms: torchvision's counts levels by the logarithm of their stride."""
    return float(pooler.canonical_scale / 2 ** (pooler.canonical_level - math.log2(stride)))


@torch.no_grad()
def refine_all(distiller: SSDDet, data: DetectionData, device: torch.device) -> dict[str, np.ndarray]:
    """The boxes of all training images, refined by the trained network (section 11), in the images' own pixels and within them.

    Returns:
        Rows of the N boxes, image after image, as in `data.trained`: ``boxes`` and ``stage1`` float32 [N, 4], ``scores`` and ``weights``
        float32 [N] (see `Refined`); of crowds and of boxes that come out empty the given box and NaN.
    """
    annotated, found = data.trained, []
    distiller.to(device)
    with evaluating(distiller):
        for batch in data.train_eval_loader():
            moved = _on(batch, device)
            refined = distiller.refine(distiller.student.raw(moved.images, moved.sizes), moved)
            found += list(_of_images(refined, batch, annotated))
    distiller.cpu()
    return {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}


def _of_images(refined: Refined, batch: DetectionBatch, annotated: Any) -> Iterator[Mapping[str, np.ndarray]]:
    """Rows of each image of a batch."""
    counts = [int((crowd == 0).sum()) for crowd in batch.crowd]
    parts = [values.float().cpu().split(counts) for values in (refined.boxes, refined.stage1, refined.scores, refined.weights)]
    for index, size, crowd, *columns in zip(batch.ids.tolist(), batch.sizes.tolist(), batch.crowd, *parts, strict=True):
        given, shape = annotated.boxes[index], annotated.shapes[index]
        limits = torch.tensor(shape[::-1]).expand(len(columns[0]), 2)
        boxes, stage1 = (cut(rescaled(column, size, shape), limits) for column in columns[:2])
        usable = ((boxes[:, 2:] - boxes[:, :2]) >= _LEAST).all(1).numpy()
        at = np.flatnonzero(crowd.numpy() == 0)[usable]
        rows = {"boxes": given.copy(), "stage1": given.copy()}
        rows |= {name: np.full(len(given), np.nan, np.float32) for name in ("scores", "weights")}
        for name, column in zip(rows, (boxes, stage1, *columns[2:]), strict=True):
            rows[name][at] = column.numpy()[usable]
        yield rows


def _on(batch: DetectionBatch, device: torch.device) -> DetectionBatch:
    def moved(value: Any) -> Any:
        return [part.to(device) for part in value] if isinstance(value, list) else value.to(device) if isinstance(value, Tensor) else value

    return DetectionBatch(*map(moved, batch))
