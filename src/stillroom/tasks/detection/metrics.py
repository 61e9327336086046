"""How well a detector does: COCO's average precision, and Pascal VOC's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.distributed import gathered
from stillroom.errors import InputError

Details = dict[str, np.ndarray]
_AP = {"AP": "map", "AP50": "map_50", "AP75": "map_75"}


class Detections(NamedTuple):
    """What a detector found in one image, best first.

    Attributes:
        boxes: float [D, 4], absolute (x1, y1, x2, y2) in pixels of the image as the detector was given it.
        scores: float [D], in [0, 1].
        labels: int64 [D], 0 .. C-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class DetectionEvaluator:
    """Collects detections over a validation set, in one process or many.

    Figures, in %: ``AP`` (mean over IoU thresholds 0.5, 0.55, ..., 0.95 and over classes, 101-point interpolation, at most 100 detections
    of an image), ``AP50``, ``AP75``; with `voc` also Pascal VOC's AP50, mean over classes: ``vocAP50`` (area under the curve) and
    ``vocAP50-11`` (mean precision at 11 recalls). Crowd boxes neither count as missed nor make a detection wrong. With no detection at all
    they are 0.

    Args:
        num_classes: C.
        voc: give Pascal VOC's figures, too.
    """

    primary = "AP"
    higher_is_better = True

    def __init__(self, num_classes: int, *, voc: bool = False) -> None:
        self.num_classes, self.voc = num_classes, voc
        self._rows: dict[int, dict[str, np.ndarray]] = {}

    def to(self, device: torch.device | str) -> DetectionEvaluator:
        """Sums are kept on the CPU."""
        return self

    def reset(self) -> None:
        """Forget everything, for the next pass."""
        self._rows = {}

    def update(self, answers: Sequence[Detections], batch: Any) -> None:
        """Add a batch: one `Detections` for each image, and its `boxes`, `labels`, `crowd` and `ids`."""
        for number, (found, image) in enumerate(zip(answers, batch.ids.tolist(), strict=True)):
            self._rows[image] = {
                "boxes": _array(found.boxes.float()),
                "scores": _array(found.scores.float()),
                "labels": _array(found.labels),
                "true_boxes": _array(batch.boxes[number].float()),
                "true_labels": _array(batch.labels[number]),
                "crowd": _array(batch.crowd[number]),
            }

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        rows = [row for _, row in sorted(self._all().items())]
        found = average_precision(rows)
        if self.voc:
            for name, eleven_points in (("vocAP50", False), ("vocAP50-11", True)):
                found[name] = float(np.mean(list(voc_average_precision(rows, eleven_points=eleven_points).values())))
        return {name: 100 * value for name, value in found.items()}

    def details(self) -> Details:
        """Every detection's image `ids` [D], `boxes` [D, 4], `scores` and `labels`, image by image, of all processes."""
        rows = self._all()
        ids = [np.full(len(row["scores"]), image, np.int64) for image, row in sorted(rows.items())]
        columns = {name: [row[name] for _, row in sorted(rows.items())] for name in ("boxes", "scores", "labels")}
        if not ids:
            return {}
        return {"ids": np.concatenate(ids), **{name: np.concatenate(parts) for name, parts in columns.items()}}

    def _all(self) -> dict[int, dict[str, np.ndarray]]:
        return {image: row for part in gathered(self._rows) for image, row in part.items()}


def average_precision(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """COCO's ``AP``, ``AP50`` and ``AP75`` in [0, 1] of images with true and found boxes (see `DetectionEvaluator`); 0 without a find.

    Raises:
        InputError: no image has an object.
    """
    if not sum(len(row["true_labels"]) for row in rows):
        raise InputError("data", "validation images without any object", "at least one box to find")
    if not sum(len(row["scores"]) for row in rows):
        return dict.fromkeys(_AP, 0.0)
    computed = _collected(rows).compute()
    return {name: max(float(computed[key]), 0.0) for name, key in _AP.items()}


def class_precision(rows: Sequence[Mapping[str, np.ndarray]], num_classes: int, thresholds: Sequence[float] | None = None) -> np.ndarray:
    """COCO's AP of each class in [0, 1], float64 [C]; NaN for a class without an object to find.

    Args:
        rows: see `DetectionEvaluator`.
        num_classes: C.
        thresholds: of the overlap, that AP is the mean over; by default COCO's ten.
    """
    asked = [row["true_labels"][row["crowd"] == 0] for row in rows]
    found_C = np.where(np.bincount(np.concatenate(asked), minlength=num_classes) > 0, 0.0, np.nan)
    if not sum(len(row["scores"]) for row in rows):
        return found_C
    computed = _collected(rows, class_metrics=True, iou_thresholds=None if thresholds is None else list(thresholds)).compute()
    seen_K, precision_K = (computed[name].reshape(-1).numpy() for name in ("classes", "map_per_class"))
    asked_K = (precision_K > -1) & np.isfinite(found_C[seen_K])
    found_C[seen_K[asked_K]] = precision_K[asked_K]
    return found_C


def _collected(rows: Sequence[Mapping[str, np.ndarray]], **options: Any) -> Any:
    from torchmetrics.detection import MeanAveragePrecision

    # the rows are those of all processes; and a page's figures are computed by one of them alone, which would wait for the others for ever
    metric = MeanAveragePrecision(backend="faster_coco_eval", sync_on_compute=False, **options)
    metric.warn_on_many_detections = False
    for row in rows:
        found = {name: torch.from_numpy(row[name]) for name in ("boxes", "scores", "labels")}
        true = {"boxes": torch.from_numpy(row["true_boxes"]), "labels": torch.from_numpy(row["true_labels"])}
        metric.update([found], [{**true, "iscrowd": torch.from_numpy(row["crowd"].astype(np.int64))}])
    return metric


def voc_average_precision(rows: Sequence[Mapping[str, np.ndarray]], *, eleven_points: bool = False) -> dict[int, float]:
    """Pascal VOC's AP at IoU 0.5 of each class that has an object, in [0, 1]; crowd ("difficult") boxes count for nothing.

    Args:
        rows: images with true and found boxes (see `DetectionEvaluator`).
        eleven_points: mean precision at recalls 0, 0.1, ..., 1 as until 2009; else the area under the curve.

    Source: Everingham et al. 2010, section 4.2; the development kit of 2010 for the area.
    """
    from torchvision.ops import box_iou

    true_labels = np.concatenate([row["true_labels"][row["crowd"] == 0] for row in rows])
    found: dict[int, float] = {}
    for label in np.unique(true_labels).tolist():
        scores, right, counted = [], [], []
        for row in rows:
            mine, theirs = row["labels"] == label, row["true_labels"] == label
            order = np.argsort(-row["scores"][mine], kind="stable")
            boxes, crowd = torch.from_numpy(row["boxes"][mine][order]), row["crowd"][theirs].astype(bool)
            iou = box_iou(boxes, torch.from_numpy(row["true_boxes"][theirs])).numpy()
            best = iou.argmax(1) if len(crowd) else np.zeros(len(boxes), np.int64)
            hit = np.flatnonzero(iou.max(1, initial=0) >= 0.5)
            first = hit[np.unique(best[hit], return_index=True)[1]]  # an object is found once; whatever else hits it is wrong
            right.append(np.isin(np.arange(len(boxes)), first))
            counted.append(~np.isin(np.arange(len(boxes)), hit[crowd[best[hit]]]))
            scores.append(row["scores"][mine][order])
        keep = np.concatenate(counted)
        order = np.argsort(-np.concatenate(scores)[keep], kind="stable")
        hits = np.concatenate(right)[keep][order]
        recall = hits.cumsum() / (true_labels == label).sum()
        precision = hits.cumsum() / np.arange(1, len(hits) + 1)
        if eleven_points:
            found[label] = float(np.mean([precision[recall >= at].max(initial=0) for at in np.arange(11) / 10]))
            continue
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        found[label] = float((np.diff(recall, prepend=0) * envelope).sum())
    return found


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
