"""Who teaches in this iteration, and what the pivot is to study again: steps 1 to 3 of an iteration, from the student group's logits.

Nothing here waits for the device: every list has a length that is known beforehand, and "nobody errs" is a case of the same tensors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.engine.distributed import averaged
from stillroom.losses.precision import at_least_float32


class Evaluation(NamedTuple):
    """What one batch says about the student group of K networks.

    Attributes:
        mean_ce_K: l_i, each network's cross-entropy, averaged over the batch and over the processes.
        error_KN: whether network i gets sample n wrong.
        ratio_K: r_i, its share of the feedback samples; 0 for a network that adds none.
        quota_K: m_i, how many it adds, int64; their sum is M, or 0 when nobody errs.
        feedback_M: indices into the batch, network after network, each one's hardest errors first; 0, 1, 2, ... when nobody errs.
        ranking_K: the networks from the best to the worst.
    """

    mean_ce_K: Tensor
    error_KN: Tensor
    ratio_K: Tensor
    quota_K: Tensor
    feedback_M: Tensor
    ranking_K: Tensor


def evaluate_group(logits_KNC: Tensor, labels_N: Tensor, *, feedback_temperature: float = 1.0, size: int | None = None) -> Evaluation:
    """Tests the student group on a batch, ranks it, and collects the samples it gets wrong.

    The ranking is by l_i ascending (ties: the lower index). A network whose loss is not finite comes last and adds no feedback samples
    [inferred]. Of the others those that err share the M feedback samples by softmax(l_i / tau_F) [the softmax is the paper's, its
    argument inferred]: floor(r_i M), what is missing to the largest fractional parts (ties: the lower index). Network i adds its errors
    from the hardest on (by cross-entropy; ties: the lower index), again and again up to m_i [inferred].

    Args:
        logits_KNC: z_i, without need of a gradient.
        labels_N: y_t, int64.
        feedback_temperature: tau_F > 0; a smaller one leaves more to the worst network.
        size: M; by default N.
    """
    networks, samples, classes = logits_KNC.shape
    size = samples if size is None else size
    logits_KNC = at_least_float32(logits_KNC.detach())
    ce_KN = F.cross_entropy(logits_KNC.reshape(-1, classes), labels_N.repeat(networks), reduction="none").view(networks, samples)
    mean_ce_K = averaged(ce_KN.mean(1))  # all processes promote the same networks [inferred]
    error_KN = logits_KNC.argmax(-1) != labels_N

    finite_K = mean_ce_K.isfinite()
    ranking_K = torch.where(finite_K, mean_ce_K, torch.inf).argsort(stable=True)
    erring_K = finite_K & error_KN.any(1)
    ratio_K = torch.where(erring_K, mean_ce_K / feedback_temperature, -torch.inf).softmax(0).masked_fill(~erring_K, 0.0)
    quota_K = _quotas(ratio_K, erring_K, size)
    feedback_M = _hardest_errors(ce_KN, error_KN, quota_K, size)
    anyway_M = torch.arange(size, device=feedback_M.device) % samples
    return Evaluation(mean_ce_K, error_KN, ratio_K, quota_K, torch.where(erring_K.any(), feedback_M, anyway_M), ranking_K)


def _quotas(ratio_K: Tensor, erring_K: Tensor, size: int) -> Tensor:
    """m_i: whole numbers with the sum `size`, or all 0 when nobody errs."""
    exact_K = ratio_K * size
    floor_K = exact_K.floor()
    missing = torch.where(erring_K.any(), size - floor_K.sum(), 0)
    by_fraction_K = torch.where(erring_K, exact_K - floor_K, -1.0).argsort(descending=True, stable=True)
    place_K = torch.empty_like(by_fraction_K).scatter_(0, by_fraction_K, torch.arange(len(ratio_K), device=ratio_K.device))
    return floor_K.long() + (place_K < missing)


def _hardest_errors(ce_KN: Tensor, error_KN: Tensor, quota_K: Tensor, size: int) -> Tensor:
    """The first m_i of each network's errors, hardest first and in a cycle, one network after the other, int64 [M]."""
    order_KN = ce_KN.masked_fill(~error_KN, -torch.inf).argsort(dim=1, descending=True, stable=True)
    end_K = quota_K.cumsum(0)
    place_M = torch.arange(size, device=quota_K.device)
    network_M = torch.searchsorted(end_K, place_M, right=True).clamp(max=len(quota_K) - 1)
    within_M = place_M - (end_K - quota_K)[network_M]
    return order_KN[network_M, within_M % error_KN.sum(1).clamp(min=1)[network_M]]
