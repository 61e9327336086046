"""Scoring anomaly maps and scores over a test set, category by category; and held-out good pictures while a student is trained."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stillroom.engine.distributed import gather_samples
from stillroom.engine.report.results import Metric
from stillroom.tasks.anomaly.scores import aupro, detection

Details = dict[str, np.ndarray]

METRICS = {
    "image_auroc": Metric("image AUROC", "%", 1, True),
    "image_ap": Metric("image AP", "%", 1, True),
    "image_f1max": Metric("image F1, best threshold", "%", 1, True),
    "pixel_auroc": Metric("pixel AUROC", "%", 1, True),
    "pixel_ap": Metric("pixel AP", "%", 1, True),
    "aupro": Metric("AUPRO, FPR to 0.3", "%", 1, True),
    "found": Metric("defects above the threshold", "%", 1, True),
    "false_alarms": Metric("good pictures above it", "%", 1, False),
    "discrepancy": Metric("distance on held-out good pictures", "", None, False),
}
FIGURES = tuple(name for name in METRICS if name != "discrepancy")
_KEPT = 64  # pixels of the maps that are kept for the report
_UNKNOWN = 2  # in masks: the place of the defect is not known


class Answers(NamedTuple):
    """What a detector says of a batch.

    Attributes:
        maps: [B, S, S], larger is less normal.
        scores: [B].
        levels: [K, B, S, S], the levels' maps before they are combined.
        thresholds: [B], above which a picture's category calls it anomalous.
    """

    maps: Tensor
    scores: Tensor
    levels: Tensor
    thresholds: Tensor


class AnomalyEvaluator:
    """Collects maps and scores; figures in %, each the mean over the categories that have it.

    `image_auroc` (the headline), `image_ap`, `image_f1max` of the scores; `pixel_auroc`, `pixel_ap`, `aupro` of all pixels of all test
    pictures of a category together; `found` and `false_alarms`, shares of anomalous and of good pictures above the threshold. A figure that
    no category has (it takes good and anomalous pictures, or pixels) is left out. Where all pictures are of one kind the headline is
    `discrepancy`, the mean of all maps.

    Args:
        categories: their names.
        both: whether some category has good and anomalous pictures.
    """

    def __init__(self, categories: tuple[str, ...], *, both: bool = True) -> None:
        self.categories = categories
        self.primary, self.higher_is_better = ("image_auroc", True) if both else ("discrepancy", False)
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._rows: list[tuple[Tensor, ...]] = []
        self._gathered: list[np.ndarray] | None = None
        self._figures: dict[str, np.ndarray] | None = None

    def to(self, device: torch.device | str) -> AnomalyEvaluator:
        """Nothing to move: answers are kept on the CPU."""
        return self

    def update(self, answers: Answers, batch: Any) -> None:
        """Takes in a batch of test pictures."""
        inside, outside = batch.masks == 1, batch.masks == 0
        means = [_mean_where(answers.levels, where).T for where in (inside, outside)]
        columns = batch.ids, batch.categories, batch.anomalous, answers.scores, answers.thresholds, *means, batch.masks, answers.maps
        self._rows.append(tuple(column.detach().cpu() for column in columns))
        self._gathered = self._figures = None

    def _all(self) -> list[np.ndarray]:
        """The columns of `update` over all processes, in the order of ids; all processes must ask."""
        if self._gathered is None:
            self._gathered = gather_samples(self._rows)
        return self._gathered

    def by_category(self) -> dict[str, np.ndarray]:
        """Each of `FIGURES` for each category, float64 [categories]; NaN where it is undefined."""
        if self._figures is None:
            self._figures = self._measured()
        return self._figures

    def _measured(self) -> dict[str, np.ndarray]:
        _, categories, anomalous, scores, thresholds, _, _, masks, maps = self._all()
        found = {name: np.full(len(self.categories), math.nan) for name in FIGURES}
        for k in range(len(self.categories)):
            mine = categories == k
            bad, above = anomalous[mine] > 0, scores[mine] > thresholds[mine]
            for name, which in (("found", bad), ("false_alarms", ~bad)):
                if which.any():
                    found[name][k] = 100 * above[which].mean()
            if bad.any() and not bad.all():
                for name, value in detection(scores[mine], bad).items():
                    found[f"image_{name}"][k] = 100 * value
            truth = masks[mine]
            if (truth == 1).any() and (truth == 0).any() and not (truth == _UNKNOWN).any():
                pixels = detection(maps[mine], truth)
                found["pixel_auroc"][k], found["pixel_ap"][k] = 100 * pixels["auroc"], 100 * pixels["ap"]
                found["aupro"][k] = 100 * aupro(maps[mine], truth)
        return found

    def compute(self) -> dict[str, float]:
        """The means over the categories."""
        found = {name: float(np.nanmean(values)) for name, values in self.by_category().items() if np.isfinite(values).any()}
        return found if self.higher_is_better else {"discrepancy": float(self._all()[-1].mean()), **found}

    def details(self) -> Details:
        """Of every test picture, in the order of `ids`: `category`, `anomalous`, `score`, `threshold`, `outcome` (see `auroc_outcomes`);
        `inside` and `outside` [N, K], the mean distance of each level in the defect and elsewhere; `map` float16, at most 64 pixels a
        side; and under their names the figures of its category."""
        ids, categories, anomalous, scores, thresholds, inside, outside, _, maps = self._all()
        size = min(_KEPT, maps.shape[-1])
        small = interpolate(torch.from_numpy(maps)[:, None], (size, size), mode="area")[:, 0].numpy().astype(np.float16)
        columns = {"ids": ids, "category": categories, "anomalous": anomalous, "score": scores, "threshold": thresholds}
        figures = {name: values[categories] for name, values in self.by_category().items()}
        outcome = auroc_outcomes(scores, anomalous > 0, categories)
        return {**columns, "outcome": outcome, "inside": inside, "outside": outside, "map": small, **figures}


def auroc_outcomes(scores_N: np.ndarray, anomalous_N: np.ndarray, categories_N: np.ndarray) -> np.ndarray:
    """What each picture contributes to the mean over categories of the AUROC, in %: their mean is that, and their spread gives its standard
    error over pictures.

    A picture's placement is the share of the other kind in its category that it is on the right side of, ties counted half.

    Returns:
        float64 [N]; of a category that lacks a kind the mean itself.

    Source: DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two or more correlated ROC curves", structural components.
    """
    parts = []
    for category in np.unique(categories_N):
        good, bad = (np.flatnonzero((categories_N == category) & (anomalous_N == kind)) for kind in (False, True))
        if len(good) and len(bad):
            placed = np.concatenate([1 - _below(scores_N[good], scores_N[bad]), _below(scores_N[bad], scores_N[good])])
            parts.append((good, bad, placed, placed[len(good) :].mean()))
    if not parts:
        return np.full(len(scores_N), math.nan)
    outcomes_N = np.full(len(scores_N), np.mean([auroc for *_, auroc in parts]))
    for good, bad, placed, auroc in parts:
        weight = np.concatenate([np.full(len(good), 1 / len(good)), np.full(len(bad), 1 / len(bad))])
        outcomes_N[np.concatenate([good, bad])] += len(scores_N) / len(parts) * weight * (placed - auroc)
    return 100 * outcomes_N


def _below(values_M: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which share of the others is below each value, equal ones counted half, [M]."""
    ordered = np.sort(others)
    return (np.searchsorted(ordered, values_M, "left") + np.searchsorted(ordered, values_M, "right")) / (2 * len(ordered))


def _mean_where(levels_KBSS: Tensor, where_BSS: Tensor) -> Tensor:
    """The mean of each level over some pixels of each picture, [K, B]; NaN where there is none."""
    weight_BSS = where_BSS.to(levels_KBSS.dtype)
    return (levels_KBSS * weight_BSS).sum((-2, -1)) / weight_BSS.sum((-2, -1))


class HeldOutEvaluator:
    """The mean distance of a student from its teacher on held-out good pictures: what chooses the epoch."""

    primary = "discrepancy"
    higher_is_better = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._rows: list[tuple[Tensor, Tensor]] = []

    def to(self, device: torch.device | str) -> HeldOutEvaluator:
        """Nothing to move."""
        return self

    def update(self, answers: Tensor, batch: Any) -> None:
        """Takes in each picture's distance, [B]."""
        self._rows.append((batch.ids.cpu(), answers.detach().float().cpu()))

    def compute(self) -> dict[str, float]:
        """``discrepancy``, over all processes."""
        return {"discrepancy": float(self.details()["discrepancy"].mean())}

    def details(self) -> Details:
        """`ids` and `discrepancy`, [N] each."""
        return dict(zip(("ids", "discrepancy"), gather_samples(self._rows), strict=True))
