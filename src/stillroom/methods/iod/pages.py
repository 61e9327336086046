"""What is measured over the steps, and the report's part of it: the matrix of AP by step and group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Any

import numpy as np

from stillroom.engine import Report
from stillroom.engine.report.results import Metric, Section, StageResult
from stillroom.methods.iod.data import IncrementalData
from stillroom.methods.iod.groups import forgetting, increment_metrics
from stillroom.tasks.detection.metrics import class_precision
from stillroom.tasks.detection.pages import rows_of
from stillroom.tasks.detection.task import Detection
from stillroom.tasks.images.page_parts import heads, mean_over_seeds, note, row, table

METRICS = {
    "old": Metric("AP of old classes", "%", 1, True),
    "new": Metric("AP of new classes", "%", 1, True),
    "harmonic": Metric("harmonic mean of old and new", "%", 1, True),
    "forgetting": Metric("forgetting", "points", 1, False),
    "gap": Metric("gap to joint training", "points", 1, False),
    "relative_gap": Metric("relative gap", "%", 1, False),
    "omega": Metric("Omega", "", 3, True),
    "omega_old": Metric("Omega, old", "", 3, True),
    "omega_new": Metric("Omega, new", "", 3, True),
}
_THRESHOLDS = {"AP": None, "AP50": (0.5,)}
_CELL, _ROW, _LEFT, _TOP = 64, 34, 96, 30  # of the picture, in its own units


def class_scores(result: StageResult, data: IncrementalData) -> dict[str, np.ndarray]:
    """AP and AP50 of each class that a stage was measured on, in %, [K]; NaN for one without a validation object."""
    rows = rows_of(result.details, data)
    return {name: 100 * class_precision(rows, data.num_classes, thresholds) for name, thresholds in _THRESHOLDS.items()}


@dataclass(frozen=True)
class Course:
    """What one arm reached, step by step.

    Args:
        sizes: classes of each group.
        first: groups that were known after the first step that was measured.
        scores: after each measured step, see `class_scores`.
    """

    sizes: Sequence[int]
    first: int
    scores: Sequence[Mapping[str, np.ndarray]]

    def matrix(self, metric: str = "AP") -> np.ndarray:
        """Of each group after each step, [steps, T]; NaN for what was not learnt or not measured."""
        ends = np.cumsum([0, *self.sizes])
        known = [self.first + step for step in range(len(self.scores))]
        cells = [
            [_mean(found[metric][ends[group] : ends[group + 1]]) if group < count else np.nan for group in range(len(self.sizes))]
            for count, found in zip(known, self.scores, strict=True)
        ]
        return np.array(cells)

    def over(self, start: int, end: int | None, metric: str = "AP") -> list[float]:
        """After each step the mean over the classes of these groups, as far as they are known."""
        ends = np.cumsum([0, *self.sizes])
        return [_mean(found[metric][ends[start] : None if end is None else ends[end]]) for found in self.scores]

    def metrics(self, joint: Course | None) -> dict[str, float]:
        """The figures of `METRICS` after the last step; those that compare with joint training where there is such."""
        last = self.first + len(self.scores) - 1
        old, new = self.over(0, last - 1)[-1], self.over(last - 1, last)[-1]
        found = {"old": old, "new": new, "harmonic": 2 * old * new / (old + new) if old + new > 0 else 0.0}
        if joint is self:
            return found
        known = self.matrix()[:, self.first - 1 :]  # groups from before are one with the first
        found["forgetting"] = forgetting(np.column_stack((self.over(0, self.first), known[:, 1:])))
        if joint is None:
            return found
        gap = increment_metrics(self.over(0, None), joint.over(0, None))
        found |= {"gap": gap.absolute, "relative_gap": 100 * gap.relative, "omega": gap.omega}
        pair = [course.over(0, self.first)[1:] for course in (self, joint)]
        newest = [[float(row[self.first + step]) for step, row in enumerate(course.matrix()[1:])] for course in (self, joint)]
        return found | {"omega_old": increment_metrics(*pair).omega, "omega_new": increment_metrics(*newest).omega}


class IncrementalDetection(Detection):
    """Detection whose classes come in groups."""

    metric_formats: Mapping[str, Metric] = METRICS

    def sections(self, report: Report, data: Any) -> list[Section]:
        """AP by step and group, and what every detection report has."""
        return [matrices(report, data), *super().sections(report, data)]


IncrementalData.task = IncrementalDetection()


def matrices(report: Report, data: IncrementalData) -> Section:
    """A picture for each arm: AP of each group after each step, mean over seeds."""
    kept = {arm: [result.details["matrix"] for result in results if "matrix" in result.details] for arm, results in report.arms.items()}
    means = {arm: np.array([mean_over_seeds(rows) for rows in zip(*found, strict=True)]) for arm, found in kept.items() if found}
    most = max([1.0, *(float(np.nanmax(mean)) for mean in means.values())])
    pictures = [f"<figure><figcaption>{escape(arm)}</figcaption>{_picture(arm, mean, most)}</figure>" for arm, mean in means.items()]
    named = [row(f"group {number + 1}", f'<td class="text">{escape(", ".join(group))}</td>') for number, group in enumerate(data.groups)]
    told = note(
        [
            "AP in % of the classes of each group (column) after each step (row); the last row is the final detector.",
            f"Measured on all {len(data.truth)} validation images after every step, with the objects of all classes known by then.",
        ]
    )
    classes = table("Classes of the groups", f'{heads(["group"])}<th scope="col" class="text">classes</th>', named)
    return Section("AP by step and group", f'{told}<div class="figures">{"".join(pictures)}</div>{classes}')


def _picture(arm: str, mean: np.ndarray, most: float) -> str:
    steps, groups = mean.shape
    first = groups - steps + 1
    parts = [
        f'<text x="{_LEFT + _CELL * group + _CELL / 2}" y="{_TOP - 10}" text-anchor="middle">group {group + 1}</text>'
        for group in range(groups)
    ]
    for step in range(steps):
        middle = _TOP + _ROW * step + _ROW / 2
        parts.append(f'<text x="{_LEFT - 8}" y="{middle}" dy=".35em" text-anchor="end">after step {first + step}</text>')
        for group in range(groups):
            value, left = mean[step, group], _LEFT + _CELL * group
            if group >= first + step:
                continue
            share = 0.0 if np.isnan(value) else 0.1 + 0.6 * max(value, 0.0) / most
            box = f'x="{left + 1}" y="{_TOP + _ROW * step + 1}" width="{_CELL - 2}" height="{_ROW - 2}"'
            parts.append(f'<rect {box} rx="3" style="fill:var(--d0);fill-opacity:{share:.2f}"/>')
            text = "–" if np.isnan(value) else f"{value:.1f}"
            parts.append(f'<text class="name" x="{left + _CELL / 2}" y="{middle}" dy=".35em" text-anchor="middle">{text}</text>')
    said = f"AP by step and group, {escape(arm)}"
    width, height = _LEFT + _CELL * groups, _TOP + _ROW * steps
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{said}" style="max-width:{width}px">{"".join(parts)}</svg>'


def _mean(values: np.ndarray) -> float:
    """Over the classes that have something to find; NaN where none has."""
    known = values[np.isfinite(values)]
    return fmean(known.tolist()) if len(known) else float("nan")
