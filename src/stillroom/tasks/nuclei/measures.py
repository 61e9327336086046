"""How well nuclei are found, outlined and classified in one picture: counts that add up over pictures.

    PQ = TP / (TP + FP/2 + FN/2 + e) * sum IoU / (TP + e),   pairs of nuclei with IoU > 0.5, which are unique;  e = 1e-6
    AJI = sum of the intersections of each true nucleus with its best found one / their unions and all that has no partner
    Dice = 2 |A and B| / (|A| + |B| + e)
    F1_c over nuclei paired by centroid (least total distance, each at most 12 pixels), of those that are or are called c

Maps are integers [H, W]: instances have any positive ids, 0 is background; types are 1 to C inside nuclei.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

EPS = 1e-6
MATCH_IOU, PAIR_RADIUS = 0.5, 12.0


@dataclass(frozen=True)
class Overlaps:
    """Pixels that nuclei of two maps have in common.

    Attributes:
        joint_TP: of each true nucleus with each found one.
        true_T, found_P: of each alone.
    """

    joint_TP: np.ndarray
    true_T: np.ndarray
    found_P: np.ndarray

    @property
    def ious_TP(self) -> np.ndarray:
        """Intersection over union of each pair."""
        return self.joint_TP / (self.true_T[:, None] + self.found_P[None] - self.joint_TP)


def overlaps(true_HW: np.ndarray, found_HW: np.ndarray) -> Overlaps:
    """The nuclei of both maps, in the order of their ids."""
    true_ids, t = np.unique(true_HW, return_inverse=True)
    found_ids, p = np.unique(found_HW, return_inverse=True)
    counts = np.bincount(t.ravel() * len(found_ids) + p.ravel(), minlength=len(true_ids) * len(found_ids))
    counts_TP = counts.reshape(len(true_ids), len(found_ids))
    inside = np.ix_(true_ids > 0, found_ids > 0)
    return Overlaps(counts_TP[inside], counts_TP.sum(1)[true_ids > 0], counts_TP.sum(0)[found_ids > 0])


def matching(pairs: Overlaps, match_iou: float = MATCH_IOU) -> np.ndarray:
    """TP, FP, FN and the sum of the matched IoUs, float64 [4]; `match_iou` of at least 0.5, so that partners are unique."""
    ious_TP = pairs.ious_TP
    matched = ious_TP > match_iou
    tp = matched.sum()
    return np.array([tp, ious_TP.shape[1] - tp, ious_TP.shape[0] - tp, ious_TP[matched].sum()], np.float64)


def panoptic_quality(counts: np.ndarray) -> np.ndarray:
    """PQ of counts [..., 4] as `matching` gives them."""
    tp, fp, fn, iou = np.moveaxis(counts, -1, 0)
    quality: np.ndarray = tp / (tp + fp / 2 + fn / 2 + EPS) * (iou / (tp + EPS))
    return quality


def jaccard(pairs: Overlaps) -> np.ndarray:
    """Numerator and denominator of AJI, float64 [2]. A found nucleus may be the best one of several; as MoNuSeg's code has it."""
    if not pairs.joint_TP.size:
        return np.array([0, pairs.true_T.sum() + pairs.found_P.sum()], np.float64)
    ious_TP = pairs.ious_TP
    met, best = ious_TP.max(1) > 0, ious_TP.argmax(1)
    both = pairs.joint_TP[met, best[met]]
    unions = pairs.true_T[met] + pairs.found_P[best[met]] - both
    alone = pairs.true_T[~met].sum() + np.delete(pairs.found_P, np.unique(best[met])).sum()
    return np.array([both.sum(), unions.sum() + alone], np.float64)


def dice_counts(true_HW: np.ndarray, found_HW: np.ndarray) -> np.ndarray:
    """Pixels in both and the sum of each alone, of two masks: float64 [2]."""
    return np.array([(true_HW & found_HW).sum(), true_HW.sum() + found_HW.sum()], np.float64)


def dice(counts: np.ndarray) -> np.ndarray:
    """Dice of counts [..., 2]."""
    quality: np.ndarray = 2 * counts[..., 0] / (counts[..., 1] + EPS)
    return quality


@dataclass(frozen=True)
class Nuclei:
    """What a map holds, nucleus by nucleus, in the order of ids.

    Attributes:
        ids: K.
        centroids: x and y in pixels, [K, 2].
        areas: pixels, [K].
        types: that of most of its pixels, the second where that is background; 0 where it has no type at all.
    """

    ids: np.ndarray
    centroids: np.ndarray
    areas: np.ndarray
    types: np.ndarray


def nuclei_of(instances_HW: np.ndarray, types_HW: np.ndarray) -> Nuclei:
    """The nuclei of a picture."""
    y, x = np.nonzero(instances_HW)
    ids, which, areas = np.unique(instances_HW[y, x], return_inverse=True, return_counts=True)
    which, classes = which.ravel(), int(types_HW.max(initial=0)) + 1
    centroids = np.stack([np.bincount(which, at, len(ids)) / np.maximum(areas, 1) for at in (x, y)], 1)
    votes = np.bincount(which * classes + types_HW[y, x], minlength=len(ids) * classes).reshape(len(ids), classes)
    votes[:, 0] = 0
    return Nuclei(ids, centroids, areas, votes.argmax(1))


def paired(true: Nuclei, found: Nuclei, radius: float = PAIR_RADIUS) -> tuple[np.ndarray, np.ndarray]:
    """Positions of true and found nuclei that are partners: least total distance, those further apart than `radius` pixels dropped."""
    from scipy.optimize import linear_sum_assignment

    if not len(true.ids) or not len(found.ids):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    distances = np.linalg.norm(true.centroids[:, None] - found.centroids[None], axis=2)
    t, p = linear_sum_assignment(distances)
    near = distances[t, p] <= radius
    return t[near], p[near]


@dataclass
class Counts:
    """What one picture, or several, add to the figures; sums of float64.

    Attributes:
        match: `matching` of all nuclei, [4].
        class_match: of those of each class, [C, 4].
        overlap: `jaccard`, [2].
        pixels, class_pixels: `dice_counts` of all nuclei [2] and of each class [C, 2].
        types: paired nuclei by true and found type, [C + 1, C + 1].
        alone: true and found nuclei without a partner, [2].
    """

    match: np.ndarray
    class_match: np.ndarray
    overlap: np.ndarray
    pixels: np.ndarray
    class_pixels: np.ndarray
    types: np.ndarray
    alone: np.ndarray

    def columns(self) -> list[np.ndarray]:
        """All of them, in order."""
        return [getattr(self, one.name) for one in fields(self)]

    def class_dice(self) -> np.ndarray:
        """Dice of each class, [C]; NaN for one that is nowhere."""
        return np.where(self.class_pixels[:, 1] > 0, dice(self.class_pixels), np.nan)

    def class_pq(self) -> np.ndarray:
        """PQ of each class, [C]; NaN for one that is nowhere."""
        return np.where(self.class_match[:, :3].sum(1) > 0, panoptic_quality(self.class_match), np.nan)

    def aji(self) -> float:
        """AJI; NaN without a nucleus."""
        return float(self.overlap[0] / self.overlap[1]) if self.overlap[1] else float("nan")

    def detection_f1(self) -> float:
        """2 P / (2 P + unpaired true + unpaired found), P pairs; NaN without a nucleus."""
        both = 2 * self.types.sum()
        return float(both / (both + self.alone.sum())) if both + self.alone.sum() else float("nan")

    def type_accuracy(self) -> float:
        """Share of the pairs that are of one type; NaN without a pair."""
        return float(self.types.trace() / self.types.sum()) if self.types.sum() else float("nan")

    def type_f1(self) -> np.ndarray:
        """F1_c, [C]; NaN for a class that no paired nucleus is of or called. Nuclei without a partner do not enter."""
        right = self.types.diagonal()[1:]
        named = (self.types.sum(0) + self.types.sum(1))[1:]
        return np.divide(2 * right, named, out=np.full(len(right), np.nan), where=named > 0)


def counted(
    true_HW: np.ndarray,
    true_types_HW: np.ndarray,
    found_HW: np.ndarray,
    found_types_HW: np.ndarray,
    num_classes: int,
    *,
    match_iou: float = MATCH_IOU,
    radius: float = PAIR_RADIUS,
) -> Counts:
    """The counts of one picture.

    Args:
        true_HW, found_HW: instances.
        true_types_HW, found_types_HW: types.
        num_classes: C, without background.
        match_iou: see `matching`.
        radius: see `paired`.
    """
    pairs = overlaps(true_HW, found_HW)
    of_class = [(true_types_HW == c, found_types_HW == c) for c in range(1, num_classes + 1)]
    true, found = nuclei_of(true_HW, true_types_HW), nuclei_of(found_HW, found_types_HW)
    t, p = paired(true, found, radius)
    types = np.zeros((num_classes + 1, num_classes + 1))
    np.add.at(types, (true.types[t], found.types[p]), 1)
    return Counts(
        match=matching(pairs, match_iou),
        class_match=np.stack([matching(overlaps(true_HW * a, found_HW * b), match_iou) for a, b in of_class]),
        overlap=jaccard(pairs),
        pixels=dice_counts(true_HW > 0, found_HW > 0),
        class_pixels=np.stack([dice_counts(a & (true_HW > 0), b & (found_HW > 0)) for a, b in of_class]),
        types=types,
        alone=np.array([len(true.ids) - len(t), len(found.ids) - len(p)], np.float64),
    )
