"""KD^3's part 1: teacher-student dynamic instance selection, which web images an epoch learns from.

Once per epoch the whole web set is scored with a blend of both networks' answers, and the images that the blend is sure of are kept:

    z = alpha(e) z_t + (1 - alpha(e)) z_s        p = softmax(z)        q_i = max_k p_ik        y_i = argmax_k p_ik

    keep i   if   q_i > tau_{y_i}        tau_k = tau * b_k / (2 - b_k)        b_k = n_k / max_j n_j        n_k = #{i : y_i = k}

At first the teacher decides, later the student alone (`teacher_weight`). The logits are blended, not the probabilities, as in the released
code. The most frequent class gets the whole cutoff tau, rarer ones a lower one, and a class that no image is taken for gets 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.errors import InputError, positive, share
from stillroom.losses.precision import in_one_type


def teacher_weight(epoch: int, *, switch_off: float, offset: float, steepness: float = 5.0) -> float:
    """alpha(e) = 1 - exp(-s ((e + 1) / c - 1)^2) before epoch E_max, and 0 from there on.

    The paper's 240 epochs have E_max = 120 and c = 160: half and two thirds of the run, to which other lengths are scaled [inferred].

    Args:
        epoch: e, counted from 1.
        switch_off: E_max > 0, in epochs.
        offset: c > 0, in epochs.
        steepness: s > 0.

    Source: the released code (specification, part 1, step 1).
    """
    for name, value in (("switch_off", switch_off), ("offset", offset), ("steepness", steepness)):
        positive(name, value)
    return 1.0 - math.exp(-steepness * ((epoch + 1) / offset - 1) ** 2) if epoch < switch_off else 0.0


@torch.no_grad()
def blended_prediction(teacher_BK: Tensor, student_BK: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """How sure the blend of both networks is of each image, and of which class.

    Args:
        teacher_BK: z_t, logits.
        student_BK: z_s, logits of the same shape.
        alpha: the teacher's share, in [0, 1].

    Returns:
        Confidence q, float32 [B] in (0, 1]; and pseudo-label y, int64 [B], the lowest class of equal ones.

    Raises:
        InputError: the shapes differ, the logits are not finite, or alpha is outside [0, 1].

    Source: part 1, step 2.
    """
    if teacher_BK.ndim != 2 or teacher_BK.shape != student_BK.shape:
        raise InputError("student_BK", f"shape {list(student_BK.shape)}", f"logits [B, K] as the teacher's {list(teacher_BK.shape)}")
    blended_BK = torch.lerp(*in_one_type(student_BK, teacher_BK), share("alpha", alpha))
    labels_B = blended_BK.argmax(-1)
    confidence_B = (blended_BK.gather(1, labels_B[:, None])[:, 0] - blended_BK.logsumexp(-1)).exp()  # softmax, of one class
    if not confidence_B.isfinite().all():
        raise InputError("student_BK", "logits that are infinite or not a number", "finite ones from both networks")
    return confidence_B, labels_B


@dataclass(frozen=True)
class Selection:
    """Which images of a set are kept.

    Attributes:
        thresholds_K: tau_k of each class, float32 [K].
        kept: their indices, int64, ascending.
        short: whether the thresholds kept too few, so that the surest ones were kept in their place.
    """

    thresholds_K: Tensor
    kept: Tensor
    short: bool = False


def keep_confident(confidence_N: Tensor, labels_N: Tensor, num_classes: int, *, cutoff: float = 0.95) -> Selection:
    """The images whose confidence is above their class's threshold.

    Args:
        confidence_N: q of the *whole* set, float [N].
        labels_N: y, int64 [N].
        num_classes: K.
        cutoff: tau, above 0 and up to 1.

    Raises:
        InputError: the cutoff is out of its range, or there is no image.

    Source: part 1, steps 3 to 5.
    """
    if not 0 < cutoff <= 1:
        raise InputError("cutoff", cutoff, "a number above 0 and up to 1")
    if len(labels_N) == 0:
        raise InputError("labels_N", "no image", "at least one")
    counts_K = labels_N.bincount(minlength=num_classes).float()
    balance_K = counts_K / counts_K.max()
    thresholds_K = cutoff * (balance_K / (2.0 - balance_K))
    kept = (confidence_N > thresholds_K[labels_N]).nonzero()[:, 0]
    return Selection(thresholds_K, kept)


def keep_enough(
    confidence_N: Tensor, labels_N: Tensor, num_classes: int, *, cutoff: float = 0.95, fewest: int = 1, instead: int = 1
) -> Selection:
    """`keep_confident`; where that keeps next to nothing, the surest images instead, so that no epoch is empty.

    Args:
        confidence_N, labels_N, num_classes, cutoff: as `keep_confident`.
        fewest: images that an epoch cannot do without.
        instead: how many of the surest are kept where there are fewer than that (all of a smaller set).

    Source: edge cases [inferred].
    """
    selection = keep_confident(confidence_N, labels_N, num_classes, cutoff=cutoff)
    if len(selection.kept) >= fewest:
        return selection
    surest = confidence_N.argsort(descending=True, stable=True)[: max(fewest, instead)]
    return Selection(selection.thresholds_K, surest.sort().values, short=True)
