"""How well boxes, labels and flow in three dimensions fit the truth: the scores of nuScenes, KITTI and others, as torchmetrics.

The metrics of boxes take, per sample, what was found (`boxes` [P, 7 or 9], `scores` [P], `labels` [P]) and what is there (`boxes`
[M, 7 or 9], `labels` [M]) as dictionaries; what else each reads stands with it. Samples may come from several processes, each once or
more: with their `ids` given, a sample that two processes saw counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from stillroom.engine.distributed import rank, world_size
from stillroom.tasks.points.boxes import bev, bev_iou, iou_3d, points_in_boxes
from stillroom.tasks.points.grid import ClassList

Sample = Mapping[str, Tensor]
Arrays = dict[str, np.ndarray]

ATTRIBUTES = (
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
_VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer")
_CYCLES = ("bicycle", "motorcycle")


def default_attributes(boxes: Tensor, labels: Tensor, classes: ClassList) -> Tensor:
    """The likeliest nuScenes attribute of each box by its class and speed, for detectors that predict none.

    Args:
        boxes: [M, 9], velocities in m/s; faster than 0.2 m/s is moving.
        labels: int64 [M].
        classes: whose names are nuScenes'; another name has no attribute.

    Returns:
        int64 [M], places in `ATTRIBUTES`, -1 for none.
    """

    def place(name: str, moving: bool) -> int:
        if name in _VEHICLES:
            return ATTRIBUTES.index("vehicle.moving" if moving else "vehicle.stopped" if name == "bus" else "vehicle.parked")
        if name in _CYCLES:
            return ATTRIBUTES.index("cycle.with_rider" if moving else "cycle.without_rider")
        return ATTRIBUTES.index("pedestrian.moving" if moving else "pedestrian.standing") if name == "pedestrian" else -1

    table = torch.tensor([[place(name, False), place(name, True)] for name in classes.names], device=labels.device)
    return table[labels, (boxes[:, 7:9].norm(dim=-1) > 0.2).long()]


class BoxMetric(Metric):
    """Collects boxes of many samples; subclasses score them.

    Args:
        classes: what the labels mean.
    """

    full_state_update = False
    found_rows: list[Tensor]
    true_rows: list[Tensor]
    seen: list[Tensor]
    FOUND = ("scores", "labels", "attributes", "pixels", "dropped")  # after the 9 columns of the box
    TRUE = ("labels", "attributes", "difficulty", "ignored")
    DEFAULT = {"attributes": -1.0, "pixels": float("inf"), "dropped": 0.0, "difficulty": 0.0, "ignored": 0.0}  # noqa: RUF012

    def __init__(self, classes: ClassList, **options: Any) -> None:
        super().__init__(**options)
        self.classes = classes
        for name in ("found_rows", "true_rows", "seen"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self._count = 0

    def update(self, found: Sequence[Sample], truth: Sequence[Sample], ids: Tensor | None = None) -> None:
        """Adds samples.

        Args:
            found, truth: as in the module's caption.
            ids: int64 [B], a number of each sample; without them every sample counts.
        """
        numbers = [self._number(place) for place in range(len(truth))] if ids is None else ids.tolist()
        for number, mine, theirs in zip(numbers, found, truth, strict=True):
            mine, theirs = self.filtered(mine, theirs)
            self.found_rows.append(self._rows(number, mine, self.FOUND))
            self.true_rows.append(self._rows(number, theirs, self.TRUE))
            self.seen.append(torch.tensor([[number, rank()]], dtype=torch.float64, device=self.device))
        self._count += len(truth)

    def filtered(self, found: Sample, truth: Sample) -> tuple[Sample, Sample]:
        """What of a sample is scored; a subclass leaves out what its rules say."""
        return found, truth

    def _number(self, place: int) -> int:
        return (self._count + place) * world_size() + rank()

    def _rows(self, number: int, sample: Sample, names: Sequence[str]) -> Tensor:
        boxes = sample["boxes"].detach().double()
        rows = boxes.new_full((len(boxes), 11 + len(names)), torch.nan)
        rows[:, 0], rows[:, 1], rows[:, 2 : 2 + boxes.shape[1]] = number, rank(), boxes
        for column, name in enumerate(names, 11):
            rows[:, column] = sample[name].double() if name in sample else self.DEFAULT[name]
        return rows.to(self.device)

    def collected(self) -> tuple[Arrays, Arrays]:
        """What was found and what is there, over all processes: each `sample`, `boxes` [., 9] and its further columns, by sample."""
        seen = _cat(self.seen, 2)
        numbers, first = np.unique(seen[np.lexsort(seen.T[::-1])][:, 0], return_index=True)
        owner = seen[np.lexsort(seen.T[::-1])][first, 1]  # of the processes that saw a sample the first one's rows count
        sides = []
        for rows, names in ((self.found_rows, self.FOUND), (self.true_rows, self.TRUE)):
            table = _cat(rows, 11 + len(names))
            table = table[owner[np.searchsorted(numbers, table[:, 0])] == table[:, 1]]
            table = table[np.argsort(table[:, 0], kind="stable")]
            columns = {name: table[:, column] for column, name in enumerate(names, 11)}
            sides.append({"sample": table[:, 0], "boxes": table[:, 2:11], **columns})
        return sides[0], sides[1]


def _cat(parts: list[Tensor] | Tensor, width: int) -> np.ndarray:
    if isinstance(parts, Tensor):  # after the processes' states were joined
        return parts.cpu().numpy()
    return torch.cat(parts).cpu().numpy() if parts else np.zeros((0, width))


def match(
    found: Arrays, truth: Arrays, cost: Callable[[np.ndarray, np.ndarray], np.ndarray], limits: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Detections by falling score, each taking the nearest truth of its sample that is still free.

    Args:
        found, truth: of one class.
        cost: boxes [P, 9] and [G, 9] -> what is to be small [P, G]. A pair matches below a limit.
        limits: T of them, matched apart.

    Returns:
        The detections' order [P] by falling score (of equal ones the later first), and the matched truth [T, P] in that order, -1: none.
    """
    order = np.argsort(found["scores"], kind="stable")[::-1]
    bound = np.asarray(limits)[:, None]
    every = np.arange(len(limits))
    taken = np.zeros((len(limits), len(truth["sample"])), bool)
    matched = np.full((len(limits), len(order)), -1)
    # both sides are sorted by sample, so that a sample's truths are a slice; within a sample the best detection chooses first
    starts, ends = (np.searchsorted(truth["sample"], found["sample"][order], side) for side in ("left", "right"))
    by_sample = np.argsort(found["sample"][order], kind="stable")
    groups = np.split(by_sample, np.flatnonzero(np.diff(found["sample"][order][by_sample])) + 1) if len(order) else []
    for places in groups:
        start, end = starts[places[0]], ends[places[0]]
        if start == end:
            continue
        costs = cost(found["boxes"][order[places]], truth["boxes"][start:end])
        for place, row in zip(places, costs, strict=True):
            free = np.where(taken[:, start:end], np.inf, row)
            nearest = free.argmin(1)
            hit = free[every, nearest] < bound[:, 0]
            matched[hit, place] = start + nearest[hit]
            taken[every[hit], start + nearest[hit]] = True
    return order, matched


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.hypot(a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1])


def of_class(side: Arrays, label: int, keep: np.ndarray | None = None) -> Arrays:
    """The rows of one class, of those that are to be kept."""
    mine = side["labels"] == label
    mine = mine if keep is None else mine & keep
    return {name: column[mine] for name, column in side.items()}


class NuScenesMetric(BoxMetric):
    """mAP by centre distance, the five errors of true positives, and NDS, as nuScenes' devkit computes them.

    Besides boxes, what was found may have `attributes` (int64 [P], places in `ATTRIBUTES`), and what is there `attributes` (-1: none),
    `points` (how many lie in each box; boxes with none are left out) and `racks` [R, 7+] (bicycle racks, within which neither bicycles
    nor motorcycles are scored). A class without a true box counts as AP 0 and errors 1, as there; how many such there are is said.

    Args:
        classes: their `radius` is how far from the ego they are scored.
        distances: metres; AP is their mean.
        tp_distance: metres, of the matches whose errors are taken.
        min_recall, min_precision: what lies below them does not count.

    Source: nuScenes devkit, `nuscenes.eval.detection`.
    """

    ERRORS = ("translation", "scale", "orientation", "velocity", "attribute")
    UNDEFINED = {"traffic_cone": (2, 3, 4), "barrier": (3, 4)}  # noqa: RUF012

    def __init__(
        self,
        classes: ClassList,
        *,
        distances: Sequence[float] = (0.5, 1.0, 2.0, 4.0),
        tp_distance: float = 2.0,
        min_recall: float = 0.1,
        min_precision: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(classes, **options)
        self.distances, self.tp_distance = tuple(distances), tp_distance
        self.min_recall, self.min_precision = min_recall, min_precision

    def filtered(self, found: Sample, truth: Sample) -> tuple[Sample, Sample]:
        """Leaves out what lies too far away, holds no point or stands in a rack."""
        kept = []
        for sample in (found, truth):
            boxes, labels = sample["boxes"], sample["labels"]
            keep = boxes[:, :2].norm(dim=-1) < boxes.new_tensor(self.classes.radius)[labels]
            if "points" in sample:
                keep = keep & (sample["points"] > 0)
            if "racks" in truth:
                cycle = torch.tensor([name in _CYCLES for name in self.classes.names], device=labels.device)[labels]
                keep = keep & ~(cycle & points_in_boxes(boxes, truth["racks"].to(boxes)).any(0))
            kept.append({name: value[keep] for name, value in sample.items() if name != "racks"})
        return kept[0], kept[1]

    def compute(self) -> dict[str, Tensor]:
        """`mAP` and `NDS` in [0, 1], `ap` [K, distances], `tp` [K, 5] errors (NaN where not defined), and `without_truth`, a count."""
        found, truth = self.collected()
        ap = np.zeros((len(self.classes), len(self.distances)))
        tp = np.ones((len(self.classes), len(self.ERRORS)))
        bare = 0
        for label, name in enumerate(self.classes.names):
            mine, theirs = of_class(found, label), of_class(truth, label)
            bare += not len(theirs["labels"])
            order, matched = match(mine, theirs, _distance, (*self.distances, self.tp_distance))
            if len(theirs["labels"]):
                ap[label] = [self._precision(match, len(theirs["labels"])) for match in matched[:-1]]
                tp[label] = self._errors(mine, theirs, order, matched[-1], name)
            tp[label, self.UNDEFINED.get(name, ())] = np.nan
        with np.errstate(all="ignore"):
            mean = np.array([np.nanmean(column) if not np.isnan(column).all() else np.nan for column in tp.T])
        nds = (5 * ap.mean() + np.maximum(0, 1 - np.nan_to_num(mean, nan=1.0)).sum()) / 10
        answer = {"ap": ap, "tp": tp, "mAP": ap.mean(), "NDS": nds, "without_truth": float(bare)}
        return {key: torch.as_tensor(value) for key, value in answer.items()}

    def _precision(self, matched: np.ndarray, count: int) -> float:
        """AP of one class at one distance."""
        hits = (matched >= 0).cumsum()
        if not len(hits) or not hits[-1]:
            return 0.0
        precision = np.interp(np.linspace(0, 1, 101), hits / count, hits / np.arange(1, len(hits) + 1), right=0)
        above = np.maximum(precision[self._first :] - self.min_precision, 0)
        return float(above.mean() / (1 - self.min_precision))

    @property
    def _first(self) -> int:
        return round(100 * self.min_recall) + 1

    def _errors(self, found: Arrays, truth: Arrays, order: np.ndarray, matched: np.ndarray, name: str) -> np.ndarray:
        """The five errors of one class: means over the recalls reached, of the running means over the matches."""
        hit = matched >= 0
        if not hit.any():
            return np.ones(len(self.ERRORS))
        scores = found["scores"][order]
        recall = hit.cumsum() / len(truth["labels"])
        confidence = np.interp(np.linspace(0, 1, 101), recall, scores, right=0)
        reached = np.flatnonzero(confidence)
        last = reached[-1] if len(reached) else 0
        if last < self._first:
            return np.ones(len(self.ERRORS))
        mine, theirs = found["boxes"][order[hit]], truth["boxes"][matched[hit]]
        shared = np.minimum(mine[:, 3:6], theirs[:, 3:6]).prod(1)
        volume = mine[:, 3:6].prod(1) + theirs[:, 3:6].prod(1) - shared
        period = np.pi if name == "barrier" else 2 * np.pi
        turned = np.abs((mine[:, 6] - theirs[:, 6] + period / 2) % period - period / 2)
        wanted = truth["attributes"][matched[hit]]
        other = np.where(wanted < 0, np.nan, found["attributes"][order[hit]] != wanted)
        speeds = np.hypot(*(mine[:, 7:9] - theirs[:, 7:9]).T)
        errors = (np.hypot(*(mine[:, :2] - theirs[:, :2]).T), 1 - shared / volume, turned, speeds, other)
        means = [np.interp(confidence[::-1], scores[hit][::-1], _running_mean(error)[::-1])[::-1] for error in errors]
        return np.array([mean[self._first : last + 1].mean() for mean in means])


def _running_mean(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    if not known.any():
        return np.ones(len(values))
    count = known.cumsum()
    return np.divide(np.nancumsum(values), count, out=np.zeros(len(values)), where=count > 0)


class IouMetric(BoxMetric):
    """Average precision by overlap: area under the precision-recall curve made monotone, per class and, if asked, of all classes as one.

    Args:
        classes: what the labels mean.
        threshold: least overlap of a match, one number or one per class.
        from_above: overlap of the rectangles seen from above instead of the volumes.
        agnostic: take all labels as one class.
    """

    def __init__(
        self,
        classes: ClassList,
        *,
        threshold: float | Sequence[float] = 0.5,
        from_above: bool = False,
        agnostic: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(classes, **options)
        self.thresholds = [threshold] * len(classes) if isinstance(threshold, int | float) else list(threshold)
        self.overlap = overlap_of(from_above)
        self.agnostic = agnostic

    def compute(self) -> dict[str, Tensor]:
        """`ap` [K] in [0, 1] (NaN for a class without truth; one entry if `agnostic`) and their mean `mAP` (0 without any truth)."""
        found, truth = self.collected()
        if self.agnostic:
            found, truth = ({**side, "labels": np.zeros_like(side["labels"])} for side in (found, truth))
        every = [self._precision(of_class(found, label), of_class(truth, label), label) for label in range(self._classes)]
        ap = torch.tensor(every, dtype=torch.float64)
        return {"ap": ap, "mAP": ap.nanmean().nan_to_num(0)}

    @property
    def _classes(self) -> int:
        return 1 if self.agnostic else len(self.classes)

    def _precision(self, found: Arrays, truth: Arrays, label: int) -> float:
        if not len(truth["labels"]):
            return float("nan")
        _, matched = match(found, truth, lambda a, b: -self.overlap(a, b), (-self.thresholds[label] + 1e-9,))
        hits = (matched[0] >= 0).cumsum()
        precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
        return float((np.diff(hits / len(truth["labels"]), prepend=0) * precision).sum())


def overlap_of(from_above: bool) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """IoU of boxes [P, 7] and [M, 7] as [P, M]: of their rectangles from above, or of their volumes."""

    def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        first, second = torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b))
        return (bev_iou(bev(first), bev(second)) if from_above else iou_3d(first, second)).numpy()

    return overlap
