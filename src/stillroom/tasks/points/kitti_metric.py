"""KITTI's average precision at 40 recalls, and its difficulties; see `metrics` for what a metric of boxes is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.tasks.points.grid import ClassList
from stillroom.tasks.points.metrics import Arrays, BoxMetric, of_class, overlap_of

KITTI_OVERLAP = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
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
        self.overlap = overlap_of(from_above)

    def compute(self) -> dict[str, Tensor]:
        """`ap` [K, 3] in [0, 1] for easy, moderate and hard, `objects` int64 [K, 3], and `mAP`, the mean over classes at moderate."""
        found, truth = self.collected()
        ap, objects = np.zeros((len(self.classes), 3)), np.zeros((len(self.classes), 3), np.int64)
        for label in range(len(self.classes)):
            mine, theirs = of_class(found, label), of_class(truth, label)
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
