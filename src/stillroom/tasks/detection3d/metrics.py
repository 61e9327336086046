"""How well a detector in three dimensions does: as nuScenes, KITTI or, of other data, centre distances have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.distributed import gathered
from stillroom.engine.report.results import Metric
from stillroom.tasks.points.boxes import corners
from stillroom.tasks.points.center_head import Detections
from stillroom.tasks.points.frames import FrameBatch
from stillroom.tasks.points.grid import ClassList
from stillroom.tasks.points.kitti_metric import KittiMetric, kitti_difficulty
from stillroom.tasks.points.metrics import NuScenesMetric, default_attributes

METRICS: Mapping[str, Metric] = {
    "mAP": Metric("mAP", "%", 1, True),
    "NDS": Metric("NDS", "%", 1, True),
    "AP1m": Metric("AP at 1 m", "%", 1, True),
    "translation": Metric("translation error", "m", 2, False),
    "orientation": Metric("orientation error", "rad", 2, False),
}
_BY_DISTANCE = (0.5, 1.0, 2.0, 4.0)  # metres
Row = dict[str, np.ndarray]


class Evaluator3d:
    """Collects boxes over a validation set, in one process or many.

    ``mAP`` in %: by centre distances of 0.5, 1, 2 and 4 m, mean over these and the classes, as nuScenes has it; of KITTI the mean over
    classes of the AP at 40 recalls, by overlap in three dimensions, of moderate objects. nuScenes also has ``NDS``; other data measured by
    distance have ``AP1m``, and ``translation`` and ``orientation``, errors of what was found within 2 m.

    Args:
        classes: with how far each is measured.
        measure: "nuscenes", "kitti" or "distance".
    """

    primary = "mAP"
    higher_is_better = True

    def __init__(self, classes: ClassList, measure: str) -> None:
        self.classes, self.measure = classes, measure
        self._rows: dict[int, Row] = {}

    def to(self, device: torch.device | str) -> Evaluator3d:
        """Sums are kept on the CPU."""
        return self

    def reset(self) -> None:
        """Forget everything, for the next pass."""
        self._rows = {}

    def update(self, answers: Sequence[Detections], batch: FrameBatch) -> None:
        """Add a batch: the boxes of each frame, and what is known of it."""
        for at, (found, index) in enumerate(zip(answers, batch.ids.tolist(), strict=True)):
            row = {"boxes": _wide(found.boxes), "scores": found.scores, "labels": found.labels, "true_boxes": batch.boxes[at]}
            row |= {"true_labels": batch.labels[at], "ignored_boxes": batch.ignored[at], "ignored_labels": batch.ignored_labels[at]}
            about = batch.about[at]
            if self.measure == "kitti":
                row["pixels"] = _pixels(found.boxes, batch, at)
                told = (about["pixels"], about["occluded"], about["truncated"])
                row["difficulty"] = kitti_difficulty(*told)
            row |= {f"true_{name}": about[name] for name in ("attribute", "points") if self.measure == "nuscenes" and name in about}
            self._rows[index] = {name: value.detach().cpu().numpy() for name, value in row.items()}

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        found = self._scored(self._all())
        figures = {"mAP": 100 * float(found["mAP"])}
        if self.measure == "nuscenes":
            figures["NDS"] = 100 * float(found["NDS"])
        if self.measure == "distance":
            figures["AP1m"] = 100 * float(found["ap"][:, _BY_DISTANCE.index(1.0)].mean())
            figures |= {name: float(found["tp"][:, at].nanmean()) for at, name in ((0, "translation"), (2, "orientation"))}
        return figures

    def details(self) -> Row:
        """Every found box's frame `ids` [P], `boxes` [P, 9], `scores` and `labels`, frame by frame, and `by_class` [C], AP in %."""
        rows = self._all()
        if not rows:
            return {}
        ids = [np.full(len(row["scores"]), index, np.int64) for index, row in sorted(rows.items())]
        columns = {name: np.concatenate([row[name] for _, row in sorted(rows.items())]) for name in ("boxes", "scores", "labels")}
        ap = self._scored(rows)["ap"]
        by_class = 100 * (ap[:, 1] if self.measure == "kitti" else ap.mean(1))
        counts = np.bincount(np.concatenate([row["true_labels"] for row in rows.values()]), minlength=len(self.classes))
        return {"ids": np.concatenate(ids), **columns, "by_class": by_class.numpy(), "objects": counts}

    def _all(self) -> dict[int, Row]:
        return {index: row for part in gathered(self._rows) for index, row in part.items()}

    def _scored(self, rows: Mapping[int, Row]) -> dict[str, Tensor]:
        # the rows are those of all processes already
        metric: Any = KittiMetric(self.classes, sync_on_compute=False)
        if self.measure != "kitti":
            metric = NuScenesMetric(self.classes, distances=_BY_DISTANCE, sync_on_compute=False)
        found, truth = [], []
        for _, row in sorted(rows.items()):
            mine = {name: torch.from_numpy(row[name]) for name in ("boxes", "scores", "labels")}
            theirs = {name: torch.from_numpy(row[f"true_{name}"]) for name in ("boxes", "labels")}
            if self.measure == "kitti":
                mine["pixels"] = torch.from_numpy(row["pixels"])
                theirs = _with_ignored(theirs, row)
            if self.measure == "nuscenes":
                mine["attributes"] = default_attributes(mine["boxes"], mine["labels"], self.classes)
                theirs |= {
                    f"{k}s".replace("pointss", "points"): torch.from_numpy(row[f"true_{k}"])
                    for k in ("attribute", "points")
                    if f"true_{k}" in row
                }
                theirs["racks"] = torch.from_numpy(row["ignored_boxes"])
            found.append(mine)
            truth.append(theirs)
        metric.update(found, truth)
        computed: dict[str, Tensor] = metric.compute()
        return computed


def _with_ignored(truth: dict[str, Tensor], row: Row) -> dict[str, Tensor]:
    """KITTI's truth with the neighbours of its classes, which are neither to be found nor wrong."""
    extra = torch.from_numpy(row["ignored_boxes"]), torch.from_numpy(row["ignored_labels"])
    difficulty = torch.from_numpy(row["difficulty"])
    return {
        "boxes": torch.cat((truth["boxes"], extra[0])),
        "labels": torch.cat((truth["labels"], extra[1])),
        "difficulty": torch.cat((difficulty, torch.zeros(len(extra[1]), dtype=difficulty.dtype))),
        "ignored": torch.cat((torch.zeros(len(difficulty), dtype=torch.bool), torch.ones(len(extra[1]), dtype=torch.bool))),
    }


def _wide(boxes: Tensor) -> Tensor:
    """Boxes [P, 7 or 9] as [P, 9]; unknown velocities are NaN."""
    return torch.cat((boxes, boxes.new_full((len(boxes), 9 - boxes.shape[1]), torch.nan)), 1)


def _pixels(boxes: Tensor, batch: FrameBatch, at: int) -> Tensor:
    """Heights of boxes in the first camera's picture, [P]; infinite without a camera."""
    if batch.inputs.cameras is None or not len(boxes):
        return boxes.new_full((len(boxes),), torch.inf)
    uv, depth = batch.inputs.cameras[at : at + 1].project(corners(boxes[:, :7]).reshape(1, -1, 3))
    v = uv[0, 0, :, 1].reshape(-1, 8)
    seen = (depth[0, 0].reshape(-1, 8) > 0).all(1)
    return torch.where(seen, v.amax(1) - v.amin(1), torch.inf)
