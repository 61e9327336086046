"""Labels that are 0 or 1, and what plain training makes of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stillroom.errors import InputError
from stillroom.losses.precision import at_least_float32


def binary(labels_BK: Tensor, logits_BK: Tensor) -> Tensor:
    """The labels as floating point of the logits' kind, float32 at least.

    Off the CPU, where looking at the values would make the step wait, one that is neither 0 nor 1 becomes NaN, and so does every loss of
    it.

    Args:
        labels_BK: 0 or 1, of any type.
        logits_BK: what they are the labels of.

    Raises:
        InputError: other shapes, or (on the CPU) another value.
    """
    if labels_BK.ndim != 2 or labels_BK.shape != logits_BK.shape:
        raise InputError("labels", f"shape {list(labels_BK.shape)}", f"0 or 1 for each logit, of shape {list(logits_BK.shape)}")
    valid_BK = (labels_BK == 0) | (labels_BK == 1)
    if labels_BK.device.type == "cpu" and not valid_BK.all():
        raise InputError("labels", f"the value {labels_BK[~valid_BK][0].item()}", "0 or 1: neither soft nor missing labels")
    return labels_BK.to(at_least_float32(logits_BK)).masked_fill(~valid_BK, torch.nan)


def summed_bce(logits_BK: Tensor, labels_BK: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Binary cross-entropy, summed over batch and labels.

        - sum_{i,c} [ y log max(sigma(s), eps) + (1 - y) log max(1 - sigma(s), eps) ]

    Where a probability is below eps its label gives no gradient.

    Args:
        logits_BK: s.
        labels_BK: y, 0 or 1.
        eps: the least probability.

    Returns:
        A scalar, float32 at least: a sum, not a mean.

    Raises:
        InputError: see `binary`.
    """
    targets_BK, s_BK = binary(labels_BK, logits_BK), at_least_float32(logits_BK)
    least = math.log(eps)
    log_yes_BK, log_no_BK = logsigmoid(s_BK).clamp_min(least), logsigmoid(-s_BK).clamp_min(least)
    return -(targets_BK * log_yes_BK + (1 - targets_BK) * log_no_BK).sum()
