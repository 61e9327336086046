"""Surgical label adaptation (section 4): which stored labels stay, which become smoothed ground truth, which go.

With a crop's confidence u = max_c y_s[c], or u = y_s[g] of the ground truth g:

    UR, uninformative   u < T_L (hardest) or u > T_T (easiest)    discarded
    HR, hard            T_L <= u < T_M                            y_a[g] = 1 - epsilon, every other class epsilon / (C - 1)
    IR, important       otherwise                                 y_a = y_s

The paper gives the rule; the score, the thresholds (quantiles over the whole bank) and epsilon are inferred.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stillroom.errors import InputError, share
from stillroom.methods.ferkd.bank.labels import LabelFormat, SoftLabels

Score = Literal["max", "truth"]
UNINFORMATIVE, HARD, IMPORTANT = 0, 1, 2


@dataclass(frozen=True)
class Thresholds:
    """Where the kinds of crops begin and end, on the scale of the score.

    Args:
        low: T_L; below it crops are discarded as too hard.
        middle: T_M; from T_L to below it labels become smoothed ground truth.
        top: T_T; above it crops are discarded as too easy.

    Raises:
        InputError: they do not rise, or are no numbers.
    """

    low: float = 0.15
    middle: float = 0.3
    top: float = 0.95

    def __post_init__(self) -> None:
        if not self.low <= self.middle <= self.top:
            raise InputError("thresholds", [self.low, self.middle, self.top], "three numbers T_L <= T_M <= T_T")

    def categories(self, score_R: Tensor) -> Tensor:
        """UNINFORMATIVE, HARD or IMPORTANT for each crop, uint8 [R]. A score on T_L is hard, on T_M or T_T important."""
        categories_R = torch.full(score_R.shape, IMPORTANT, dtype=torch.uint8, device=score_R.device)
        categories_R[score_R < self.middle] = HARD
        categories_R[(score_R < self.low) | (score_R > self.top)] = UNINFORMATIVE
        return categories_R


class Adapted(NamedTuple):
    """Labels of R crops after adaptation.

    Attributes:
        labels: y_a in `format`; of discarded crops the soft label as it was.
        format: the given one, or one in which smoothed labels can be said too.
        score: u, float32 [R].
        categories: uint8 [R].
        keep: bool [R].
    """

    labels: SoftLabels
    format: LabelFormat
    score: Tensor
    categories: Tensor
    keep: Tensor


def confidence(labels: SoftLabels, form: LabelFormat, targets_R: Tensor, score: Score) -> Tensor:
    """u, float32 [R]: the largest probability (``max``) or that of the ground truth (``truth``)."""
    return form.confidence(labels) if score == "max" else form.probability(labels, targets_R)


def adapt(
    labels: SoftLabels,
    form: LabelFormat,
    targets_R: Tensor,
    thresholds: Thresholds,
    *,
    epsilon: float = 0.1,
    score: Score = "max",
    images_R: Tensor | None = None,
    kept_R: Tensor | None = None,
) -> Adapted:
    """The rule, applied to stored labels.

    Args:
        labels: of R crops, in the format `form`.
        form: how they are stored.
        targets_R: g, the class of each crop's image, int [R].
        thresholds: T_L, T_M, T_T.
        epsilon: of the smoothed ground truth, in [0, 1].
        score: what u is.
        images_R: which image each crop is of, int [R] from 0, in blocks. If given, an image all of whose crops would be discarded keeps
            the most confident one, with its soft label [inferred].
        kept_R: crops that an earlier adaptation left, bool [R]; by default all.

    Raises:
        InputError: epsilon is outside [0, 1].
    """
    share("epsilon", epsilon)
    new = form.calibrated
    score_R = confidence(labels, form, targets_R, score)
    categories_R = thresholds.categories(score_R)
    there_R = torch.ones_like(score_R, dtype=torch.bool) if kept_R is None else kept_R
    categories_R = torch.where(there_R, categories_R, UNINFORMATIVE)
    if images_R is not None:
        categories_R[_only_hope(score_R, categories_R, images_R, there_R)] = IMPORTANT
    hard_R1 = (categories_R == HARD)[:, None]
    soft, smoothed = new.adopt(labels, form), new.smoothed(targets_R, epsilon)
    classes_RK = None if soft.classes is None or smoothed.classes is None else torch.where(hard_R1, smoothed.classes, soft.classes)
    assert soft.values is not None
    assert smoothed.values is not None
    values_RK = torch.where(hard_R1, smoothed.values, soft.values)
    return Adapted(SoftLabels(classes_RK, values_RK), new, score_R, categories_R, categories_R != UNINFORMATIVE)


def _only_hope(score_R: Tensor, categories_R: Tensor, images_R: Tensor, there_R: Tensor) -> Tensor:
    """The most confident crop (of equal ones the first) of each image that has no other left, row numbers."""
    count = int(images_R.max()) + 1 if len(images_R) else 0
    rows_R = torch.arange(len(images_R))
    left_N = torch.zeros(count).index_add_(0, images_R, (categories_R != UNINFORMATIVE).float())
    score_R = torch.where(there_R, score_R, -1.0)
    best_N = torch.full((count,), -1.0).scatter_reduce_(0, images_R, score_R, "amax")
    first_N = torch.full((count,), len(images_R)).scatter_reduce_(
        0, images_R[is_best := score_R == best_N[images_R]], rows_R[is_best], "amin"
    )
    return first_N[left_N == 0]
