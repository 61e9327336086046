"""How well all targets are met: figures of each kind, pooled over the set, and one score of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.distributed import gather_samples, gathered
from stillroom.engine.report.results import Metric
from stillroom.tasks.images.pixel_classes import confusion, hits_and_unions, ious
from stillroom.tasks.multitask.batches import WholeBatch
from stillroom.tasks.multitask.edges import matched_counts
from stillroom.tasks.multitask.measures import angles, delta_m, edge_counts, max_f, ods_f, saliency_counts, squared_errors, within_factor
from stillroom.tasks.multitask.targets import Kind, Target

SCORE, DELTA = "score", "delta_m"
ANGLES = (11.25, 22.5, 30.0)  # degrees
_BINS = 1800  # of a tenth of a degree
_SHOWN = 6  # pictures whose answers are kept
_LONGEST = 160  # pixels of their longer side then

# What each kind is measured by, in the order of the report; the first decides in Delta_m.
FIGURES: Mapping[Kind, tuple[Metric, ...]] = {
    "classes": (Metric("mIoU", "%", 1, True),),
    "saliency": (Metric("maxF", "%", 1, True),),
    "depth": (Metric("RMSE", "m", 3, False), Metric("abs-rel", "", 3, False), Metric("within 1.25", "%", 1, True)),
    "normals": (
        Metric("mean angle", "°", 1, False),
        Metric("median angle", "°", 1, False),
        *(Metric(f"within {angle:g}°", "%", 1, True) for angle in ANGLES),
    ),
    "edges": (Metric("odsF", "%", 1, True),),
}
_SCORED = {"classes": "mIoU", "saliency": "maxF", "depth": "within 1.25", "normals": "within 11.25°", "edges": "odsF"}
COMMON = {SCORE: Metric("score", "%", 1, True), DELTA: Metric("Delta_m", "%", 2, True)}


def figure_name(target: Target, metric: Metric) -> str:
    """Of a figure in a run's results: ``depth RMSE``."""
    return f"{target.name} {metric.label}"


def metric_formats(targets: Sequence[Target]) -> dict[str, Metric]:
    """How the figures of targets are written."""
    formats = dict(COMMON)
    for target in targets:
        for metric in FIGURES[target.kind]:
            formats[figure_name(target, metric)] = replace(metric, label=figure_name(target, metric))
    return formats


def deciding(targets: Sequence[Target], figures: Mapping[str, float]) -> tuple[list[float], list[bool]]:
    """The one figure of each target that decides in Delta_m, and whether lower is better."""
    firsts = [FIGURES[target.kind][0] for target in targets]
    values = [figures[figure_name(target, first)] for target, first in zip(targets, firsts, strict=True)]
    return values, [not first.higher_is_better for first in firsts]


def relative(targets: Sequence[Target], figures: Mapping[str, float], single: Mapping[str, float]) -> float:
    """Delta_m in % of some figures over others, of networks of one target each or of another network; NaN where it has no meaning."""
    theirs, lower = deciding(targets, single)
    mine, _ = deciding(targets, figures)
    known = all(np.isfinite(a) and np.isfinite(b) and a for a, b in zip(theirs, mine, strict=True))
    return delta_m(theirs, mine, lower) if known else float("nan")


class MultiTaskEvaluator:
    """Collects the answers to every target over a validation set, in one process or many.

    Figures, by target: of classes ``mIoU`` in % (one confusion matrix, a class that is nowhere counts 0); of saliency ``maxF`` (beta^2
    0.3); of depth ``RMSE`` in metres (one root over all pixels), ``abs-rel`` and the share ``within 1.25`` of the truth; of normals the
    ``mean`` and the ``median angle`` in degrees and the shares within 11.25, 22.5 and 30; of edges ``odsF``. Pixels without truth are in
    none. ``score`` is the mean over the targets of mIoU, maxF, odsF, depth within 1.25 and normals within 11.25°, all in %.

    Args:
        targets: that are measured.
        edge_matching: match edges one to one.
    """

    primary = SCORE
    higher_is_better = True

    def __init__(self, targets: Sequence[Target], *, edge_matching: bool = False) -> None:
        self.targets, self.edge_matching = tuple(targets), edge_matching
        self.metric_formats = metric_formats(self.targets)
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._rows: list[tuple[Tensor, ...]] = []
        self._shown: list[tuple[int, dict[str, np.ndarray]]] = []

    def to(self, device: torch.device | str) -> MultiTaskEvaluator:
        """What is kept lies on the CPU."""
        return self

    def update(self, answers: Sequence[Mapping[str, Tensor]], batch: WholeBatch) -> None:
        """Takes in a batch: of each picture the answers by target, in the truth's size (see `supervised.answers_to`)."""
        for number, answer, truths in zip(batch.ids.tolist(), answers, batch.truths, strict=True):
            sums = [self._sums(one, answer[one.name], truths[one.name]).double().cpu()[None] for one in self.targets]
            self._rows.append((torch.tensor([number]), *sums))
            self._shown.append((number, {one.name: _small(answer[one.name]) for one in self.targets}))
        self._shown = sorted(self._shown, key=lambda row: row[0])[:_SHOWN]

    def _sums(self, target: Target, answer: Tensor, truth: Tensor) -> Tensor:
        """What a picture adds to a target's figures, one row of numbers."""
        truth = truth.to(answer.device)
        if target.kind == "classes":
            return torch.cat(hits_and_unions(confusion(answer, truth.long(), target.channels)))
        if target.kind == "saliency":
            return saliency_counts(answer[0], truth).reshape(-1)
        if target.kind == "depth":
            squares, ratios, known = squared_errors(answer, truth)
            return torch.stack((squares, ratios, within_factor(answer, truth), known))
        if target.kind == "normals":
            degrees = angles(answer[None], truth[None])
            counts = torch.histc(degrees, _BINS, 0, 180)
            inside = torch.stack([(degrees <= angle).sum() for angle in ANGLES])
            return torch.cat((degrees.sum()[None], torch.tensor([float(len(degrees))], device=degrees.device), inside, counts))
        radius = target.tolerance * float(np.hypot(*truth.shape))
        counted = matched_counts if self.edge_matching else edge_counts
        return counted(answer[0], truth, radius).reshape(-1)

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        _, *columns = gather_samples(self._rows)
        return figures_of(self.targets, [column.sum(0) for column in columns])

    def details(self) -> dict[str, np.ndarray]:
        """Of each picture, in the order of ids: `ids`, and what it adds to each target's figures, ``sums/TARGET`` [N, K]; and of the first
        pictures, `shown` their ids, the answers in small: ``map/TARGET`` [all their pixels] of the shapes ``shape/TARGET`` [S, 2].

        With several processes all of them must call it.
        """
        ids, *columns = gather_samples(self._rows)
        shown = sorted((row for part in gathered(self._shown) for row in part), key=lambda row: row[0])[:_SHOWN]
        found = {"ids": ids, "shown": np.array([number for number, _ in shown], np.int64)}
        for target, column in zip(self.targets, columns, strict=True):
            maps = [answers[target.name] for _, answers in shown]
            found[f"sums/{target.name}"] = column
            found[f"shape/{target.name}"] = np.array([one.shape[-2:] for one in maps], np.int64).reshape(-1, 2)
            found[f"map/{target.name}"] = np.concatenate([one.reshape(-1) for one in maps]) if maps else np.empty(0, np.float16)
        return found


def figures_of(targets: Sequence[Target], sums: Sequence[np.ndarray]) -> dict[str, float]:
    """The figures of the rows of numbers that pictures added, summed; NaN where no pixel had a truth."""
    found: dict[str, float] = {}
    for target, row in zip(targets, sums, strict=True):
        values = _figures(target, row)
        found |= {figure_name(target, metric): value for metric, value in zip(FIGURES[target.kind], values, strict=True)}
    scored = [found[f"{target.name} {_SCORED[target.kind]}"] for target in targets]
    known = [value for value in scored if np.isfinite(value)]
    return {SCORE: float(np.mean(known)) if known else float("nan"), **found}


def _figures(target: Target, row: np.ndarray) -> list[float]:
    if not row.any():
        return [float("nan")] * len(FIGURES[target.kind])
    if target.kind == "classes":
        iou_C = ious(row[: target.channels], row[target.channels :])
        return [100 * float(np.nan_to_num(iou_C).mean())]
    if target.kind in ("saliency", "edges"):
        counts = torch.from_numpy(row).reshape(3 if target.kind == "saliency" else 4, -1)
        return [100 * (max_f(counts) if target.kind == "saliency" else ods_f(counts))]
    if target.kind == "depth":
        squares, ratios, near, known = row
        return [float((squares / known) ** 0.5), float(ratios / known), float(100 * near / known)]
    total, known, *inside = row[: 2 + len(ANGLES)]
    return [float(total / known), _median(row[2 + len(ANGLES) :]), *(float(100 * one / known) for one in inside)]


def _median(counts: np.ndarray) -> float:
    """Of a histogram of angles from 0 to 180 degrees, linearly within its bin."""
    below = np.cumsum(counts)
    place = int(np.searchsorted(below, below[-1] / 2))
    inside = (below[-1] / 2 - (below[place] - counts[place])) / max(counts[place], 1)
    return float((place + inside) * 180 / len(counts))


def _small(answer: Tensor) -> np.ndarray:
    """Every so manieth pixel of an answer, so that its longer side is short, float16."""
    step = -(-max(answer.shape[-2:]) // _LONGEST)
    return answer[..., ::step, ::step].to(torch.float16).cpu().numpy()
