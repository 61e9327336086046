"""The distance of an answer to what it should be: the truth for a network that is trained on labels, a teacher's answer for a student."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from stillroom.engine.distributed import averaged, largest
from stillroom.losses.precision import at_least_float32, in_one_type

BERHU = 0.2  # of the largest error, from which on the inverse Huber loss is quadratic


def depth_decode(logits: Tensor, max_depth: float = 10.0) -> Tensor:
    """Depth in metres: max_depth * sigmoid(logit)."""
    return max_depth * at_least_float32(logits).sigmoid()


def inverse_huber(predicted: Tensor, target: Tensor, valid: Tensor, *, threshold_ratio: float = BERHU) -> Tensor:
    """Inverse Huber loss, the mean over the valid pixels of the batch of all processes; 0, with a graph, where there is none.

        d if d <= c else (d^2 + c^2) / (2 c),    d = |predicted - target|,    c = threshold_ratio * max d

    c is that of the whole batch, and a constant for gradients.

    Args:
        predicted, target: metres, of one shape. No gradient reaches the target.
        valid: where the target is known: bool, or above 0.

    Source: code of UniFuse, which the paper follows.
    """
    p, t = in_one_type(predicted, target.detach())
    known = valid > 0
    d = torch.where(known, p - torch.where(known, t, 0.0), 0.0).abs()
    c = threshold_ratio * largest(d)
    quadratic = (d.square() + c.square()) / (2 * c.clamp_min(torch.finfo(d.dtype).tiny))
    each = torch.where(d <= c, d, quadratic)
    return each.sum() / averaged(known.sum().to(d.dtype)).clamp_min(1)


def class_distance(scores_BCHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """Cross-entropy, the mean over the pixels of the batch of all processes whose label is not 0; 0, with a graph, where there is none.

    Args:
        scores_BCHW: channel c is of label c + 1.
        labels_BHW: 0 (ignored), 1 to C.
    """
    each_BHW = cross_entropy(at_least_float32(scores_BCHW), labels_BHW.long() - 1, ignore_index=-1, reduction="none")
    return each_BHW.sum() / averaged((labels_BHW > 0).sum().to(each_BHW.dtype)).clamp_min(1)


def occupancy_loss(logits_BQ: Tensor, probability_BQ: Tensor) -> Tensor:
    """Binary cross-entropy, summed over the query points and averaged over the batch.

    Args:
        logits_BQ: of being occupied.
        probability_BQ: the truth, or what a teacher thinks (soft). No gradient reaches it.

    Source: code of the occupancy networks that the paper follows.
    """
    logits, wanted = in_one_type(logits_BQ, probability_BQ.detach())
    return binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(-1).mean()
