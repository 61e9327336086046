"""How well clusters of points fit classes that nobody told: accuracies and IoU after Hungarian matching over the whole validation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.distributed import gathered
from stillroom.engine.report.results import Metric
from stillroom.errors import InputError
from stillroom.tasks.points.point_metrics import SegmentationMetric
from stillroom.tasks.segmentation3d.clustering import kmeans, pseudo_labels, region_features

if TYPE_CHECKING:
    from stillroom.tasks.segmentation3d.data import SceneBatch

METRICS: Mapping[str, Metric] = {
    "mIoU": Metric("mIoU", "%", 1, True),
    "oAcc": Metric("overall accuracy", "%", 1, True),
    "mAcc": Metric("mean accuracy", "%", 1, True),
}
_SHOWN = 3  # scans whose answers are kept
Row = dict[str, np.ndarray]


class SceneEvaluator:
    """Collects answers over a validation set of scans, in one process or many.

    An answer is the cluster of every voxel, int64 [M], or the features of every voxel, [M, C]: then the super-voxels of the validation set
    are clustered when all are there (k-means, one seed), which is how features are followed while they are learned.

    Args:
        classes: C; as many clusters.
    """

    primary = "mIoU"
    higher_is_better = True

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._rows: dict[int, Row] = {}

    def to(self, device: torch.device | str) -> SceneEvaluator:
        """Sums are kept on the CPU."""
        return self

    def reset(self) -> None:
        """Forget everything, for the next pass."""
        self._rows = {}

    def update(self, answers: Sequence[Tensor], batch: SceneBatch) -> None:
        """Add a batch: the answer of each scan.

        Raises:
            InputError: as many answers as voxels are not there.
        """
        for at, (found, index) in enumerate(zip(answers, batch.ids.tolist(), strict=True)):
            regions = batch.regions[batch.scene(at)]
            if len(found) != len(regions):
                raise InputError("answers", f"{len(found)} of {len(regions)} voxels of scan {index}", "one for each")
            row = {"found": found.float() if found.dim() == 2 else found, "regions": regions}
            row |= {"inverse": batch.inverse[at], "truth": batch.truth[at]}
            self._rows[index] = {name: value.detach().cpu().numpy() for name, value in row.items()}

    def compute(self) -> dict[str, float]:
        """The figures in %, over all processes; 0 where no point has a class."""
        computed = self._metric(self._labels(self._all())).compute()
        return {name: 100 * float(computed[name]) for name in ("mIoU", "oAcc", "mAcc")}

    def details(self) -> Row:
        """`iou` [C] in %, `assignment` [C] (the class of each cluster), `points` [C] true ones, and of the first scans the class that each
        voxel is taken for: `shown` their ids, `sizes`, `labels` one scan after the other."""
        labels = self._labels(self._all())
        computed = self._metric(labels).compute()
        assignment = computed["assignment"].numpy()
        shown = sorted(labels)[:_SHOWN]
        truth = np.concatenate([self_row["truth"] for _, (_, self_row) in sorted(labels.items())]) if labels else np.zeros(0, np.int64)
        parts = [assignment[labels[index][0]] for index in shown]
        return {
            "iou": 100 * computed["iou"].numpy(),
            "assignment": assignment,
            "points": np.bincount(truth[truth >= 0], minlength=self.classes),
            "shown": np.array(shown, np.int64),
            "sizes": np.array([len(part) for part in parts], np.int64),
            "labels": np.concatenate(parts) if parts else np.zeros(0, np.int64),
        }

    def _all(self) -> dict[int, Row]:
        return {index: row for part in gathered(self._rows) for index, row in part.items()}

    def _labels(self, rows: Mapping[int, Row]) -> dict[int, tuple[np.ndarray, Row]]:
        """Of each scan the cluster of every voxel, and its row."""
        features = {index: torch.from_numpy(row["found"]) for index, row in rows.items() if row["found"].ndim == 2}
        if features:
            regions = {index: torch.from_numpy(rows[index]["regions"]) for index in features}
            means = [region_features(features[index], regions[index])[0] for index in sorted(features)]
            centres = kmeans(torch.cat(means), self.classes, seed=0)
            found = {index: pseudo_labels(features[index], regions[index], centres).numpy() for index in features}
        return {index: (found[index] if index in features else row["found"], row) for index, row in rows.items()}

    def _metric(self, labels: Mapping[int, tuple[np.ndarray, Row]]) -> SegmentationMetric:
        metric = SegmentationMetric(self.classes, matched=True, sync_on_compute=False)  # the rows are those of all processes already
        for found, row in labels.values():
            metric.update(torch.from_numpy(found[row["inverse"]]), torch.from_numpy(row["truth"]))
        return metric
