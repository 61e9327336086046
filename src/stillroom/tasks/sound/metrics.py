"""How well rooms are known: errors of depth, IoU of classes, and IoU and surfaces of voxels, over a validation set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.distributed import gather_samples, gathered
from stillroom.engine.report.results import Metric
from stillroom.tasks.sound.recordings import FINE, Target
from stillroom.tasks.sound.scores import (
    LAYOUT,
    Surface,
    confusion_counts,
    image_depth_metrics,
    occupancy_iou,
    segmentation_metrics,
    surface_metrics,
)

if TYPE_CHECKING:
    from stillroom.tasks.sound.batches import Batch

SHOWN = 6  # answers that a report may show
THRESHOLDS = (0.5, 0.2)  # of occupancy; surfaces are those of the first
_SURFACES = 24  # samples whose surfaces are compared: the first ones
_WITHIN = 0.01  # of the cube, for the F-score
_NAMES = {
    "depth": ("MAE", "RMSE", "d1", "d2", "d3"),
    "segmentation": ("mIoU", "pixel accuracy", "class accuracy", "3IoU"),
    "occupancy": ("IoU", "IoU at 0.2", "Chamfer-L1", "normal consistency", "F-score"),
}
METRICS = {
    "MAE": Metric("MAE", "m", 3, False),
    "RMSE": Metric("RMSE, mean of images", "m", 3, False),
    **{f"d{i}": Metric(f"within 1.25^{i}", "%", 1, True) for i in (1, 2, 3)},
    "mIoU": Metric("mIoU", "%", 1, True),
    "pixel accuracy": Metric("pixel accuracy", "%", 1, True),
    "class accuracy": Metric("mean class accuracy", "%", 1, True),
    "3IoU": Metric("3IoU", "%", 1, True),
    "IoU": Metric("IoU", "%", 1, True),
    "IoU at 0.2": Metric("IoU, threshold 0.2", "%", 1, True),
    "Chamfer-L1": Metric("Chamfer-L1", "cubes", 4, False),
    "normal consistency": Metric("normal consistency", "%", 1, True),
    "F-score": Metric("F-score at 0.01", "%", 1, True),
}
_IN_CUBES = ("MAE", "RMSE", "Chamfer-L1")  # that are no shares


class SoundEvaluator:
    """Collects answers over a validation set, in one process or many.

    Figures of depth, of each image and then their mean, both maps clamped to [0.1, 10] m, images without a known pixel left out: ``MAE``
    and ``RMSE`` in metres, ``d1`` to ``d3`` in %. Of classes, in %, of one confusion matrix pooled over the set: ``mIoU``, ``pixel
    accuracy``, ``class accuracy`` and ``3IoU`` of walls, floors and ceilings; means over the classes that the truth has. Of voxels, in %,
    means of the samples: ``IoU`` and ``IoU at 0.2``; of the surfaces of the first 24 samples ``Chamfer-L1``, ``normal consistency`` and
    ``F-score``.

    Args:
        target: which of them.
        classes: how many there are.
    """

    def __init__(self, target: Target, classes: int) -> None:
        self.target, self.classes = target, classes
        self.primary, self.higher_is_better = _NAMES[target][0], target != "depth"
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._rows: list[tuple[Tensor, ...]] = []
        self._pictures: dict[int, Tensor] = {}

    def to(self, device: torch.device | str) -> SoundEvaluator:
        """What is kept lies on the CPU."""
        return self

    def update(self, answers: Tensor, batch: Batch) -> None:
        """Takes in a batch's answers: see `networks.Answers`."""
        found, truth = answers.detach().float().cpu(), batch.truth.cpu()
        if self.target == "depth":
            metres = found[:, 0]
            columns: tuple[Tensor, ...] = (image_depth_metrics(metres, truth, truth > 0),)
            shown = metres
        elif self.target == "segmentation":
            shown = found.argmax(1) + 1
            pairs = [confusion_counts(one, wanted, self.classes) for one, wanted in zip(shown, truth, strict=True)]
            columns = (torch.stack(pairs),)
        else:
            shown = found.sigmoid()
            iou_B2 = torch.stack([occupancy_iou(shown, truth, threshold) for threshold in THRESHOLDS], 1)
            columns = iou_B2, torch.stack([self._surface(*pair) for pair in zip(batch.ids.tolist(), shown, truth, strict=True)])
        self._rows.append((batch.ids.cpu(), *columns))
        for index, picture in zip(batch.ids.tolist(), shown, strict=True):
            if index < SHOWN:
                self._pictures[index] = picture.half() if self.target == "depth" else (picture * self._steps).to(torch.uint8)

    @property
    def _steps(self) -> int:
        return 255 if self.target == "occupancy" else 1

    def _surface(self, index: int, probability_Q: Tensor, truth_Q: Tensor) -> Tensor:
        """Chamfer-L1, normal consistency and F-score of a sample; NaN for one whose surface is not compared."""
        if index >= _SURFACES or len(truth_Q) != FINE**3:
            return torch.full((3,), torch.nan)
        predicted, truth = (voxel_surface((values >= 0.5).numpy().reshape((FINE,) * 3)) for values in (probability_Q, truth_Q))
        return torch.tensor(surface_metrics(predicted, truth, _WITHIN)) if len(truth.points) else torch.full((3,), torch.nan)

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        if self.target == "segmentation":
            counts = torch.from_numpy(gather_samples(self._rows)[1].sum(0))
            found = segmentation_metrics(counts, LAYOUT)
            values = [found.mean_iou, found.pixel_accuracy, found.mean_accuracy, found.layout_iou]
            return {name: 100 * float(value) for name, value in zip(_NAMES[self.target], values, strict=True)}
        columns = np.concatenate(gather_samples(self._rows)[1:], 1).astype(np.float64)
        known = [column[np.isfinite(column)] for column in columns.T]
        means = [float(column.mean()) if len(column) else float("nan") for column in known]
        scales = [1 if name in _IN_CUBES else 100 for name in _NAMES[self.target]]
        return {name: scale * mean for name, scale, mean in zip(_NAMES[self.target], scales, means, strict=True)}

    def details(self) -> dict[str, np.ndarray]:
        """Of each sample, in the order of ids: `ids` and `outcome`, of which the first figure is the mean (of classes what it contributes
        to mIoU, linearised); samples of which nothing is known are left out. Of classes `counts`, the confusion [C, C] of each; and
        `pictures` [K, ...], the answers to the first samples: metres, classes, or probabilities of voxels in steps of 1/255.

        With several processes all of them must call it.
        """
        ids_N, *columns = gather_samples(self._rows)
        shown = {index: picture for part in gathered(self._pictures) for index, picture in part.items()}
        more = {"pictures": torch.stack([shown[index] for index in sorted(shown)]).numpy()} if shown else {}
        if self.target == "segmentation":
            return {"ids": ids_N, "outcome": _contributions(columns[0]), "counts": columns[0], **more}
        outcome_N = columns[0][:, 0] * (100 if self.target == "occupancy" else 1)
        known = np.isfinite(outcome_N)
        return {"ids": ids_N[known], "outcome": outcome_N[known], **more}


def _contributions(counts_NCC: np.ndarray) -> np.ndarray:
    """What each sample contributes to mIoU in %, linearised: d IoU_c = (d hits - IoU_c d union) / union, which sum to 0."""
    hits_NC = np.diagonal(counts_NCC, axis1=1, axis2=2).astype(np.float64)
    true_NC = counts_NCC.sum(2)
    unions_NC = true_NC + counts_NCC.sum(1) - hits_NC
    present = true_NC.sum(0) > 0
    iou_C = hits_NC.sum(0)[present] / unions_NC.sum(0)[present]
    slope_NC = (hits_NC[:, present] - iou_C * unions_NC[:, present]) / unions_NC.sum(0)[present]
    found: np.ndarray = 100 * (iou_C.mean() + len(counts_NCC) * slope_NC.mean(1))
    return found


def voxel_surface(solid_XYZ: np.ndarray) -> Surface:
    """The faces between solid and empty voxels, four points on each, in the unit cube; the cube's own sides are none."""
    side = solid_XYZ.shape[0]
    points, normals = [], []
    quarter = np.array([[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]])
    for axis in range(3):
        step = np.diff(solid_XYZ.astype(np.int8), axis=axis)
        place = np.argwhere(step)
        corners = np.repeat(place.astype(np.float64), 4, 0)
        others = [one for one in range(3) if one != axis]
        corners[:, axis] += 1
        corners[:, others] += np.tile(quarter, (len(place), 1))
        normal = np.zeros((len(corners), 3))
        normal[:, axis] = np.repeat(-step[tuple(place.T)], 4)
        points.append(corners / side)
        normals.append(normal)
    return Surface(np.concatenate(points), np.concatenate(normals))
