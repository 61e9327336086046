"""CrKD's losses over several views and several heads: targets, swapped prediction, class-relation distillation.

Dimensions: W views of which the first V are large crops, H novel heads, B images (labelled and unlabelled mixed), L known and U novel
classes, K = L + U. Logits are cosines; tau is the softmax temperature, T the distillation temperature. Everything is computed in at least
float32. Over several processes the means are those of each process; only the targets may be balanced over all of them.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from stillroom.errors import InputError, one_of, positive
from stillroom.losses.assignment import sinkhorn
from stillroom.losses.precision import at_least_float32

Weighting = Literal["learnable", "constant"]
Divergence = Literal["cross-entropy", "kl"]


def joint_logits(known_WBL: Tensor, novel_WHBU: Tensor) -> Tensor:
    """y_h = [l, u_h]: the known head's logits beside those of each novel head, [W, H, B, L + U]."""
    return torch.cat([known_WBL[:, None].expand(-1, novel_WHBU.shape[1], -1, -1), novel_WHBU], dim=-1)


@torch.no_grad()
def discovery_targets(
    novel_VHBU: Tensor,
    labels_B: Tensor,
    labelled_B: Tensor,
    known_classes: int,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    over_processes: bool = False,
) -> Tensor:
    """What each large crop says that the others should answer: the label, or balanced pseudo-labels among the novel classes.

    Args:
        novel_VHBU: u_h of the large crops, not divided by tau.
        labels_B: int64; of unlabelled images any number, which is not looked at.
        labelled_B: bool, m.
        known_classes: L.
        epsilon, iterations, over_processes: see `sinkhorn`, which runs over the unlabelled images of each view and head alone.

    Returns:
        [V, H, B, L + U], rows sum to 1; no gradient.

    Raises:
        InputError: the label of a labelled image is not one of 0 .. L-1 (looked for on the CPU only: elsewhere that would be
            waiting for the device).

    Source: CrKD's released code, step 3; Fini et al. 2021 (UNO).
    """
    if not labels_B.is_cuda and (wrong := labels_B[labelled_B & ((labels_B < 0) | (labels_B >= known_classes))]).numel():
        raise InputError("labels_B", int(wrong[0]), f"the label of a labelled image: one of the known classes 0 to {known_classes - 1}")
    pseudo_VHBU = sinkhorn(novel_VHBU, epsilon=epsilon, iterations=iterations, rows_B=~labelled_B, over_processes=over_processes)
    known_BL = one_hot(torch.where(labelled_B, labels_B, 0), known_classes).to(pseudo_VHBU) * labelled_B[:, None]
    return torch.cat([known_BL.expand(*novel_VHBU.shape[:2], -1, -1), pseudo_VHBU], dim=-1)


def swapped_prediction(logits_WHBK: Tensor, targets_VHBK: Tensor, temperature: float) -> Tensor:
    """Every view predicts the targets of every other large crop.

        L_cl(h) = 1 / (V (W-1)) sum_{v < V} sum_{w != v} mean_B( - sum_c target_{v,h,c} log softmax(y_{w,h} / tau)_c )

    Known and novel classes compete in one softmax; the mean runs over labelled and unlabelled images together.

    Args:
        logits_WHBK: y of all views, the large crops first.
        targets_VHBK: of the large crops; a constant.
        temperature: tau.

    Returns:
        [H], one loss for each head.

    Raises:
        InputError: fewer than two views, or more or fewer large crops than there can be; tau is not above 0.

    Source: CrKD's released code, step 4; Fini et al. 2021 (UNO), section 3.2.
    """
    views, large = len(logits_WHBK), len(targets_VHBK)
    if views < 2:
        raise InputError("views", views, "at least 2: each view predicts the others' targets")
    if not 1 <= large <= views:
        raise InputError("large_views", large, f"a number from 1 to {views}, since there are {views} views")
    log_p_WHBK = (at_least_float32(logits_WHBK) / positive("temperature", temperature)).log_softmax(-1)
    of_others_VHBK = log_p_WHBK.sum(0) - log_p_WHBK[:large]
    cross_entropy_VHB = -(targets_VHBK.detach() * of_others_VHBK).sum(-1)
    return cross_entropy_VHB.mean(-1).sum(0) / (large * (views - 1))


def relation_weight(logits_VHBK: Tensor, labelled_B: Tensor, known_classes: int, softening: float) -> tuple[Tensor, Tensor]:
    """How much each image should look like the known classes: the probability that the student itself gives them, divided by its mean.

        eta = sum_{c < L} softmax(y / softening)_c over all L + U classes        w = eta / mean(eta)

    Gradient flows through numerator and mean: an image whose relation is easy to keep gains weight and known mass, and others lose it.

    Args:
        logits_VHBK: the student's y on the large crops.
        labelled_B: bool; the mean is over the other images, all views and all heads together.
        known_classes: L.
        softening: tau T.

    Returns:
        eta and w, [V, H, B] each; w is 0 for labelled images.

    Source: CrKD's released code, step 5.
    """
    log_eta_VHB = (at_least_float32(logits_VHBK) / softening).log_softmax(-1)[..., :known_classes].logsumexp(-1)
    counted_VHB = log_eta_VHB.masked_fill(labelled_B, -torch.inf)
    entries = counted_VHB.shape[0] * counted_VHB.shape[1] * _count(~labelled_B)
    # With logarithms the ratio stays right, and its gradient finite, where eta itself underflows.
    log_mean = counted_VHB.flatten().logsumexp(0).clamp_min(torch.finfo(torch.float32).min) - entries.log()
    return log_eta_VHB.exp(), (counted_VHB - log_mean).exp()


def relation_loss(
    logits_VHBK: Tensor,
    teacher_VHBL: Tensor,
    labelled_B: Tensor,
    *,
    cosine_temperature: float = 0.1,
    temperature: float = 4.0,
    weighting: Weighting = "learnable",
    divergence: Divergence = "cross-entropy",
) -> Tensor:
    """On unlabelled images the student keeps the distribution over the known classes that the supervised model gives: its class relation.

        p = softmax(b / (tau T)),  q = softmax(y_{c < L} / (tau T)), both over the known classes alone
        L_rel(h) = mean over views and unlabelled images of  T^2 w ( - sum_c p_c log q_c )

    A batch without unlabelled images has the loss 0.

    Args:
        logits_VHBK: the student's y on the large crops.
        teacher_VHBL: b, the teacher's known logits, where H may be 1 (the same for every head). No gradient reaches them.
        labelled_B: bool, m.
        cosine_temperature: tau.
        temperature: T.
        weighting: learnable (w of `relation_weight`) or constant (w = 1).
        divergence: cross-entropy as in the released code, or the paper's KL. They differ by the entropy of p, which w multiplies: the
            gradient that reaches w is another.

    Returns:
        [H], one loss for each head.

    Raises:
        InputError: a temperature is not above 0, or the logits do not fit each other.

    Source: CrKD's released code, step 5.
    """
    for name, choice, known in (("weighting", weighting, Weighting), ("divergence", divergence, Divergence)):
        one_of(name, choice, get_args(known))
    softening = positive("cosine_temperature", cosine_temperature) * positive("temperature", temperature)
    classes = teacher_VHBL.shape[-1]
    if logits_VHBK.ndim != 4 or classes > logits_VHBK.shape[-1]:
        raise InputError("logits_VHBK", f"shape {list(logits_VHBK.shape)}", f"[V, H, B, K] with K of at least {classes} known classes")
    log_p_VHBL = (at_least_float32(teacher_VHBL.detach()) / softening).log_softmax(-1)
    log_q_VHBL = (at_least_float32(logits_VHBK)[..., :classes] / softening).log_softmax(-1)
    against_VHBL = log_q_VHBL - log_p_VHBL if divergence == "kl" else log_q_VHBL
    difference_VHB = -(log_p_VHBL.exp() * against_VHBL).sum(-1)
    if weighting == "learnable":
        _, weight_VHB = relation_weight(logits_VHBK, labelled_B, classes, softening)
    else:
        weight_VHB = (~labelled_B).to(difference_VHB)
    summed_H = (weight_VHB * difference_VHB).sum((0, 2))
    return temperature**2 * summed_H / (len(logits_VHBK) * _count(~labelled_B))


def _count(rows_B: Tensor) -> Tensor:
    """How many rows are chosen, at least 1 to divide by; a tensor, so that nobody waits for the device."""
    return rows_B.sum().clamp_min(1)
