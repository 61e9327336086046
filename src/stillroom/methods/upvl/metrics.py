"""What is measured of objects without names, and of names that were never taught: average precision by overlap, and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from stillroom.engine.distributed import gathered
from stillroom.engine.report.results import Metric
from stillroom.methods.upvl.distiller import Found
from stillroom.tasks.points.frames import FrameBatch
from stillroom.tasks.points.metrics import match, overlap_of

_OVERLAP = 0.4  # of a match
Rows = dict[str, np.ndarray]


class OpenEvaluator:
    """Collects boxes over a validation set, in one process or many.

    ``AP`` in %: all objects as one class, matched by an overlap of 0.4; ``APmoving`` and ``APstanding``: of those that move and that stand,
    where the others are neither to be found nor wrong; ``mAPwords``: mean over the classes of the AP of what is called so, a score being
    the box's times the name's probability, and ``AP NAME`` each; ``size``: metres that the length and width of matched boxes are off, and
    ``visible``, of what single frames show of the same objects. What is not known (which move, names, single frames) is left out.

    Args:
        names: of the classes.
        from_above: overlap of the rectangles from above; else of the volumes.
    """

    primary = "AP"
    higher_is_better = True

    def __init__(self, names: Sequence[str], *, from_above: bool) -> None:
        self.names, self.overlap = tuple(names), overlap_of(from_above)
        self.metric_formats: Mapping[str, Metric] = {
            "AP": Metric(f"AP at {_OVERLAP:g} of overlap{'' if from_above else ' in 3D'}", "%", 1, True),
            "APmoving": Metric("AP of what moves", "%", 1, True),
            "APstanding": Metric("AP of what stands", "%", 1, True),
            "mAPwords": Metric("mAP by words", "%", 1, True),
            **{f"AP {name}": Metric(f"AP of {name}", "%", 1, True) for name in names},
            "size": Metric("size error", "m", 2, False),
            "visible": Metric("size error of single frames", "m", 2, False),
        }
        self._rows: dict[int, Rows] = {}

    def to(self, device: torch.device | str) -> OpenEvaluator:
        """Rows are kept on the CPU."""
        return self

    def reset(self) -> None:
        """Forget everything, for the next pass."""
        self._rows = {}

    def update(self, answers: Sequence[Found], batch: FrameBatch) -> None:
        """Add a batch: what was found in each frame, and what is known of it (`named` and, if known, `moving` of `FrameBatch.about`)."""
        for at, (found, index) in enumerate(zip(answers, batch.ids.tolist(), strict=True)):
            row: dict[str, Any] = {**found._asdict(), "boxes": found.boxes[:, :7], "true_boxes": batch.boxes[at][:, :7]}
            row |= {f"true_{name}": batch.about[at][name] for name in ("named", "moving") if name in batch.about[at]}
            self._rows[index] = {name: value.detach().cpu().numpy() for name, value in row.items()}

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        found, truth = self._sides()
        order, matched = self._matched(found, truth)
        figures = {"AP": _precision(matched, np.ones(len(truth["sample"]), bool))}
        if "moving" in truth:
            moving = truth["moving"].astype(bool)
            figures |= {"APmoving": _precision(matched, moving), "APstanding": _precision(matched, ~moving)}
        if (found["labels"] >= 0).any():
            scored = {**found, "scores": found["scores"] * found["shares"]}
            for label, name in enumerate(self.names):
                mine = {key: values[found["labels"] == label] for key, values in scored.items()}
                theirs = {key: values[truth["named"] == label] for key, values in truth.items()}
                figures[f"AP {name}"] = _precision(self._matched(mine, theirs)[1], np.ones(len(theirs["sample"]), bool))
            figures["mAPwords"] = float(np.nanmean([figures[f"AP {name}"] for name in self.names]))
        true = np.sort(truth["boxes"][matched[matched >= 0], 3:5])
        for name, sizes in (("size", found["boxes"][order, 3:6]), ("visible", found["visible"][order])):
            off = np.abs(np.sort(sizes[matched >= 0][:, :2]) - true).mean(1)
            if np.isfinite(off).any():
                figures[name] = float(np.nanmean(off))
        return figures

    def details(self) -> Rows:
        """Every found box's frame `ids` [P], `boxes`, `scores` and `labels` (-1 for none), frame by frame."""
        found, _ = self._sides()
        return {"ids": found["sample"], **{name: found[name] for name in ("boxes", "scores", "labels")}}

    def _sides(self) -> tuple[Rows, Rows]:
        """What was found and what is there, frame by frame."""
        rows = sorted((index, row) for part in gathered(self._rows) for index, row in part.items())
        found = {name: np.concatenate([row[name] for _, row in rows]) for name in Found._fields}
        there = [name for name in ("boxes", "named", "moving") if all(f"true_{name}" in row for _, row in rows)]
        truth = {name: np.concatenate([row[f"true_{name}"] for _, row in rows]) for name in there}
        found["sample"] = np.repeat([index for index, _ in rows], [len(row["scores"]) for _, row in rows])
        truth["sample"] = np.repeat([index for index, _ in rows], [len(row["true_boxes"]) for _, row in rows])
        return found, truth

    def _matched(self, found: Rows, truth: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Places of what was found by falling score, and the place of the truth that each met, -1 for none."""
        order, matched = match(found, truth, lambda a, b: -self.overlap(a, b), (1e-9 - _OVERLAP,))
        return order, matched[0]


def _precision(matched: np.ndarray, asked: np.ndarray) -> float:
    """Area under the precision-recall curve made monotone, in %: of those that are asked for; what met others does not count.

    Args:
        matched: by falling score the truth that each detection met, -1 for none.
        asked: bool, of the truth; NaN where none is.
    """
    if not asked.any():
        return float("nan")
    hit = (matched[(matched < 0) | asked[matched]] >= 0).cumsum()
    precision = np.maximum.accumulate((hit / np.arange(1, len(hit) + 1))[::-1])[::-1]
    return float(100 * (np.diff(hit / asked.sum(), prepend=0) * precision).sum())
