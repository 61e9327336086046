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
from stillroom.errors import InputError
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


def _match(
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


def _of_class(side: Arrays, label: int, keep: np.ndarray | None = None) -> Arrays:
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
            mine, theirs = _of_class(found, label), _of_class(truth, label)
            bare += not len(theirs["labels"])
            order, matched = _match(mine, theirs, _distance, (*self.distances, self.tp_distance))
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
        self.overlap = _overlap(from_above)
        self.agnostic = agnostic

    def compute(self) -> dict[str, Tensor]:
        """`ap` [K] in [0, 1] (NaN for a class without truth; one entry if `agnostic`) and their mean `mAP` (0 without any truth)."""
        found, truth = self.collected()
        if self.agnostic:
            found, truth = ({**side, "labels": np.zeros_like(side["labels"])} for side in (found, truth))
        every = [self._precision(_of_class(found, label), _of_class(truth, label), label) for label in range(self._classes)]
        ap = torch.tensor(every, dtype=torch.float64)
        return {"ap": ap, "mAP": ap.nanmean().nan_to_num(0)}

    @property
    def _classes(self) -> int:
        return 1 if self.agnostic else len(self.classes)

    def _precision(self, found: Arrays, truth: Arrays, label: int) -> float:
        if not len(truth["labels"]):
            return float("nan")
        _, matched = _match(found, truth, lambda a, b: -self.overlap(a, b), (-self.thresholds[label] + 1e-9,))
        hits = (matched[0] >= 0).cumsum()
        precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
        return float((np.diff(hits / len(truth["labels"]), prepend=0) * precision).sum())


def _overlap(from_above: bool) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        first, second = torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b))
        return (bev_iou(bev(first), bev(second)) if from_above else iou_3d(first, second)).numpy()

    return overlap


KITTI_OVERLAP = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
DIFFICULTIES = ("easy", "moderate", "hard")
_LEAST_HEIGHT = (40.0, 25.0, 25.0)  # pixels
_MOST_OCCLUDED = (0, 1, 2)
_MOST_TRUNCATED = (0.15, 0.3, 0.5)


def kitti_difficulty(pixels: Tensor, occluded: Tensor, truncated: Tensor) -> Tensor:
    """The easiest of KITTI's difficulties whose rules an object keeps: int64 [M], 0 easy, 1 moderate, 2 hard, 3 none.

    Args:
        pixels: height of its box in the picture.
        occluded: 0 to 3.
        truncated: in [0, 1].
    """
    level = torch.full(pixels.shape, 3, dtype=torch.int64, device=pixels.device)
    for place in (2, 1, 0):
        keeps = (pixels > _LEAST_HEIGHT[place]) & (occluded <= _MOST_OCCLUDED[place]) & (truncated <= _MOST_TRUNCATED[place])
        level = torch.where(keeps, place, level)
    return level


class KittiMetric(BoxMetric):
    """KITTI's average precision at 40 recalls, per class and difficulty.

    Besides boxes, what is there may have `difficulty` (int64 [M], as `kitti_difficulty` says; else all count as easy) and `ignored`
    (bool [M]: of a neighbouring class, as a van is a car's; neither to be found nor wrong), and what was found `pixels` ([P], height in
    the picture; smaller finds than a difficulty asks are not wrong).

    The curve is sampled as by the official code, which reads it at no more places than there are true objects: with n < 41 of them a
    perfect detector reaches (n - 1) / 40. `compute` therefore tells the number of objects.

    Args:
        classes: what the labels mean.
        overlap: least overlap of a match, by class name; by default KITTI's for cars (0.7), pedestrians and cyclists (0.5), else 0.5.
        from_above: overlap seen from above instead of the volumes.
    """

    def __init__(self, classes: ClassList, *, overlap: Mapping[str, float] | None = None, from_above: bool = False, **options: Any) -> None:
        super().__init__(classes, **options)
        known = KITTI_OVERLAP if overlap is None else overlap
        self.least = [known.get(name, 0.5) for name in classes.names]
        self.overlap = _overlap(from_above)

    def compute(self) -> dict[str, Tensor]:
        """`ap` [K, 3] in [0, 1] for easy, moderate and hard, `objects` int64 [K, 3], and `mAP`, the mean over classes at moderate."""
        found, truth = self.collected()
        ap, objects = np.zeros((len(self.classes), 3)), np.zeros((len(self.classes), 3), np.int64)
        for label in range(len(self.classes)):
            mine, theirs = _of_class(found, label), _of_class(truth, label)
            frames = self._frames(mine, theirs, label)
            for level in range(3):
                ap[label, level], objects[label, level] = self._precision(frames, mine, theirs, level, self.least[label])
        return {"ap": torch.from_numpy(ap), "objects": torch.from_numpy(objects), "mAP": torch.as_tensor(ap[:, 1].mean())}

    def _frames(self, found: Arrays, truth: Arrays, label: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Per sample the places of finds and of truths, and their overlaps [P, G]."""
        frames = []
        for sample in np.union1d(found["sample"], truth["sample"]):
            mine, theirs = np.flatnonzero(found["sample"] == sample), np.flatnonzero(truth["sample"] == sample)
            frames.append((mine, theirs, self.overlap(found["boxes"][mine], truth["boxes"][theirs])))
        return frames

    def _precision(
        self, frames: Sequence[tuple[np.ndarray, ...]], found: Arrays, truth: Arrays, level: int, least: float
    ) -> tuple[float, int]:
        unasked = (truth["difficulty"] > level) | (truth["ignored"] > 0)
        small = found["pixels"] < _LEAST_HEIGHT[level]
        count = int((~unasked).sum())
        scores = []
        for mine, theirs, overlap in frames:
            scores += _scores_of_matches(overlap, found["scores"][mine], small[mine], unasked[theirs], least)
        thresholds = _kitti_thresholds(np.array(scores), count)
        right, wrong = np.zeros(len(thresholds)), np.zeros(len(thresholds))
        for mine, theirs, overlap in frames:
            hits, misses = _counts(overlap, found["scores"][mine], small[mine], unasked[theirs], thresholds, least)
            right, wrong = right + hits, wrong + misses
        if not len(thresholds):
            return 0.0, count
        precision = np.maximum.accumulate((right / np.maximum(right + wrong, 1))[::-1])[::-1]
        return float(precision[1:].sum() / 40), count


def _scores_of_matches(overlap: np.ndarray, scores: np.ndarray, small: np.ndarray, unasked: np.ndarray, least: float) -> list[float]:
    """Scores of the finds that one frame's asked objects get, each the surest that overlaps it enough and is free."""
    free, matched = np.ones(len(scores), bool), []
    for place, skip in enumerate(unasked):
        able = free & (overlap[:, place] > least)
        if able.any():
            best = int(np.where(able, scores, -np.inf).argmax())
            free[best] = False
            if not skip and not small[best]:
                matched.append(float(scores[best]))
    return matched


def _kitti_thresholds(scores: np.ndarray, count: int) -> np.ndarray:
    """Scores at which the curve is read: those whose recalls lie nearest to 0, 1/40, 2/40, ..."""
    thresholds, recall = [], 0.0
    scores = np.sort(scores)[::-1]
    for place, score in enumerate(scores):
        last = place == len(scores) - 1
        left = (place + 1) / count
        right = left if last else (place + 2) / count
        if right - recall < recall - left and not last:
            continue
        thresholds.append(score)
        recall += 1 / 40
    return np.array(thresholds[:41])


def _counts(
    overlap: np.ndarray, scores: np.ndarray, small: np.ndarray, unasked: np.ndarray, thresholds: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong finds of one frame at each threshold: [T] and [T]. All thresholds at once, one object after another."""
    free = scores[None] >= thresholds[:, None]  # [T, P]; what is below the threshold is not there
    right = np.zeros(len(thresholds))
    every = np.arange(len(thresholds))
    for place, skip in enumerate(unasked if len(scores) else ()):
        able = free & (overlap[:, place] > least)
        # the find that overlaps most; one that is too small only where there is no other, and of those the first
        large = np.where(able & ~small, overlap[:, place], -1.0)
        best, any_large = large.argmax(1), large.max(1) >= 0
        best = np.where(any_large, best, (able & small).argmax(1))
        hit = able.any(1)
        free[every[hit], best[hit]] = False
        if not skip:
            right += hit & any_large
    return right, (free & ~small).sum(1)


class SegmentationMetric(Metric):
    """Accuracies and intersection over union of labels, from a confusion matrix that is added up over batches and processes.

    Args:
        num_classes: C; a true label outside [0, C) is not scored.
        matched: labels are numbers of clusters: each is taken for the class that Hungarian matching gives it.
    """

    full_state_update = False
    confusion: Tensor

    def __init__(self, num_classes: int, *, matched: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes, self.matched = num_classes, matched
        self.add_state("confusion", default=torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, found: Tensor, truth: Tensor) -> None:
        """Adds labels int64 [N] in [0, C) and the true ones int64 [N].

        Raises:
            InputError: a label that was found lies outside.
        """
        scored = (truth >= 0) & (truth < self.num_classes)
        found, truth = found[scored], truth[scored]
        if len(found) and (int(found.min()) < 0 or int(found.max()) >= self.num_classes):
            raise InputError("found", f"labels from {int(found.min())} to {int(found.max())}", f"labels in [0, {self.num_classes})")
        pairs = torch.bincount(truth * self.num_classes + found, minlength=self.num_classes**2)
        self.confusion += pairs.view(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """`oAcc`, `mAcc` and `mIoU` in [0, 1], `iou` [C], and `assignment` int64 [C]: the class that each label is taken for.

        A class without a true point counts as IoU 0 in `mIoU`, as in PointDC's code, and does not count in `mAcc`.
        """
        confusion = self.confusion.cpu()
        assignment = torch.arange(self.num_classes)
        if self.matched:
            from scipy.optimize import linear_sum_assignment

            rows, columns = linear_sum_assignment(-confusion.numpy())
            assignment[torch.from_numpy(columns)] = torch.from_numpy(rows)
            confusion = confusion[:, torch.from_numpy(columns)]
        right, true, said = confusion.diagonal().double(), confusion.sum(1).double(), confusion.sum(0).double()
        iou = right / (true + said - right).clamp_min(1)
        means = {"oAcc": right.sum() / true.sum().clamp_min(1), "mAcc": (right / true).nanmean().nan_to_num(0), "mIoU": iou.mean()}
        return {**means, "iou": iou, "assignment": assignment}


class FlowMetric(Metric):
    """End-point error of scene flow in metres, and the shares of points within 5 cm or 5 % ("strict") and 10 cm or 10 % ("relaxed")."""

    full_state_update = False
    sums: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("sums", default=torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, found: Tensor, truth: Tensor) -> None:
        """Adds flow [N, 3] and true flow [N, 3], metres; points whose truth is no number are not scored."""
        known = truth.isfinite().all(-1)
        found, truth = found[known].double(), truth[known].double()
        error = (found - truth).norm(dim=-1)
        relative = error / truth.norm(dim=-1).clamp_min(1e-12)
        within = [((error < limit) | (relative < limit)).sum() for limit in (0.05, 0.1)]
        self.sums += torch.stack((error.sum(), *within, known.sum())).to(self.sums)

    def compute(self) -> dict[str, Tensor]:
        """`EPE` in metres, `strict` and `relaxed` in [0, 1]."""
        total, strict, relaxed, count = self.sums
        count = count.clamp_min(1)
        return {"EPE": total / count, "strict": strict / count, "relaxed": relaxed / count}
