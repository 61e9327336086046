"""Multiple-instance learning over bags: scores, the losses of both stages, and how a bag becomes one box.

G objects of P proposals and K classes (C + 1 in stage I, background last; C in stage II); v [G, P] says which proposals count.
Numbers in brackets are sections of the specification.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, normalize, one_hot

from stillroom.losses.precision import at_least_float32

_EPS = 1e-6  # within the focal loss's logarithms
_TINY = 1e-12  # below which scores are all nothing, or all alike


def instance_scores(logits_GPK: Tensor, valid_GP: Tensor) -> Tensor:
    """S_ins: how much of each class's object lies in each proposal; softmax over the bag, proposals that do not count left out (4)."""
    return normalize(at_least_float32(logits_GPK).softmax(1) * valid_GP[..., None], p=1.0, dim=1, eps=_TINY)


def bag_scores(classes_GPK: Tensor, instances_GPK: Tensor) -> Tensor:
    """S_hat, [G, K]: sum over the bag of S_cls * S_ins, in [0, 1] (4)."""
    return (classes_GPK * instances_GPK).sum(1).clamp(0, 1)


def stage1_loss(bags_GK: Tensor, labels_G: Tensor, count: Tensor | float, weights_G: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of the bags' scores, summed over objects and classes, over `count` (4).

    An object without a valid proposal has scores of 0: it adds 100, without a gradient, as in the release.
    """
    wanted_GK = one_hot(labels_G, bags_GK.shape[1]).to(bags_GK.dtype)
    with torch.autocast(bags_GK.device.type, enabled=False):  # which refuses this loss, of probabilities in any precision
        rows_G = binary_cross_entropy(bags_GK, wanted_GK, reduction="none").sum(1)
    return (rows_G if weights_G is None else weights_G.detach() * rows_G).sum() / count


def stage2_loss(bags_GK: Tensor, labels_G: Tensor, count: Tensor | float, weights_G: Tensor, valid_GP: Tensor) -> Tensor:
    """Focal loss of the bags' scores, weighted by a_g, summed, over `count`; objects without a valid proposal are left out (7)."""
    wanted_GK = one_hot(labels_G, bags_GK.shape[1]).to(bags_GK.dtype)
    return (weights_G.detach() * (valid_GP > 0).any(1) * focal(bags_GK, wanted_GK)).sum() / count


def negative_loss(logits_QC: Tensor, keep_Q: Tensor, weight: Tensor, count: Tensor | float) -> Tensor:
    """weight * sum over negatives of keep * FL(sigmoid(z), 0), over `count`, the number of objects (7).

    Args:
        weight: mean of a_g over the objects, without gradient.
    """
    scores_QC = at_least_float32(logits_QC).sigmoid()
    return weight.detach() * (keep_Q * focal(scores_QC, torch.zeros_like(scores_QC))).sum() / count


def focal(scores_NK: Tensor, wanted_NK: Tensor) -> Tensor:
    """FL(p, q) = -(p - q)^2 [ q log(p + 1e-6) + (1 - q) log(1 - p + 1e-6) ], summed over classes, [N]; the factor has a gradient (7)."""
    logs_NK = wanted_NK * (scores_NK + _EPS).log() + (1 - wanted_NK) * (1 - scores_NK + _EPS).log()
    return -((scores_NK - wanted_NK) ** 2 * logs_NK).sum(1)


def of_label(scores_GPK: Tensor, labels_G: Tensor) -> Tensor:
    """The label's column, [G, P]."""
    return scores_GPK.gather(2, labels_G[:, None, None].expand(-1, scores_GPK.shape[1], 1)).squeeze(2)


def identity_scores(overlaps_GP: Tensor) -> Tensor:
    """u: what SISD answers, brought to 0 .. 1 within each bag; all 1 where all answers of a bag are the same (9)."""
    u_GP = 0.5 * at_least_float32(overlaps_GP) + 0.5
    low_G1, high_G1 = u_GP.amin(1, keepdim=True), u_GP.amax(1, keepdim=True)
    alike_G1 = high_G1 - low_G1 < _TINY
    return torch.where(alike_G1, 1.0, (u_GP - low_G1) / (high_G1 - low_G1).where(~alike_G1, 1.0))


@torch.no_grad()
def merged(bags_GP4: Tensor, scores_GP: Tensor, top: int = 7) -> Tensor:
    """One box of each bag, [G, 4], without gradient: the mean of the `top` best, weighted by their scores; unweighted where these are 0.

    Source: section 4 of the specification; Liu et al. 2022 (OA-MIL) merge so.
    """
    best_GT, places_GT = scores_GP.topk(min(top, scores_GP.shape[1]), dim=1)
    sums_G1 = best_GT.sum(1, keepdim=True)
    nothing_G1 = sums_G1 < _TINY
    weights_GT = torch.where(nothing_G1, 1 / best_GT.shape[1], best_GT / sums_G1.where(~nothing_G1, 1.0) + 1e-8)
    return (weights_GT[..., None] * bags_GP4.gather(1, places_GT[..., None].expand(-1, -1, 4))).sum(1)


def cut(boxes_G4: Tensor, limits_G2: Tensor) -> Tensor:
    """Boxes within [0, W] x [0, H]."""
    return torch.minimum(boxes_G4.clamp_min(0), limits_G2.to(boxes_G4.dtype).repeat(1, 2))
