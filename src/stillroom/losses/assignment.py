"""Balanced soft assignments of samples to clusters."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.errors import InputError, positive


@torch.no_grad()
def sinkhorn(scores_BK: Tensor, *, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Assignments near exp(scores / epsilon) that use every cluster about equally: alternate normalisation of clusters and samples.

    The last normalisation is that of the samples, so each row sums to 1 while the clusters are equal only approximately.

    Args:
        scores_BK: similarity of each sample to each of K clusters. B may be 0, or smaller than K.
        epsilon: > 0; the smaller, the harder the assignments.
        iterations: of both normalisations, at least 1.

    Returns:
        float32 [B, K], no gradient; rows sum to 1.

    Raises:
        InputError: the scores are not [B, K], epsilon is not above 0, or there is no iteration.

    Source: Cuturi 2013; Caron et al. 2020 (SwAV), section 3.1, for the equal shares.
    """
    if scores_BK.ndim != 2:
        raise InputError("scores_BK", f"a tensor of shape {tuple(scores_BK.shape)}", "[B, K], one row per sample")
    positive("epsilon", epsilon)
    if iterations < 1:
        raise InputError("iterations", iterations, "a whole number of at least 1")
    samples, clusters = scores_BK.shape
    if samples == 0:
        return scores_BK.float()
    scaled_BK = scores_BK.float() / epsilon
    shares_BK = (scaled_BK - scaled_BK.max()).exp()  # the constant cancels in the normalisation, and keeps exp finite
    shares_BK /= shares_BK.sum()
    tiny = torch.finfo(torch.float32).tiny  # a cluster or sample whose every share underflowed stays at 0
    for _ in range(iterations):
        shares_BK = shares_BK / (shares_BK.sum(0, keepdim=True).clamp_min(tiny) * clusters)
        shares_BK = shares_BK / (shares_BK.sum(1, keepdim=True).clamp_min(tiny) * samples)
    return shares_BK * samples
