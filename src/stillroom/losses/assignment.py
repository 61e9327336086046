"""Balanced soft assignments of samples to clusters."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from stillroom.errors import InputError, at_least, positive
from stillroom.losses.precision import at_least_float32

_FLOOR = torch.finfo(torch.float32).min  # stands for the log of 0 where it is subtracted: -inf - -inf would be NaN


@torch.no_grad()
def sinkhorn(
    scores_BK: Tensor, *, epsilon: float = 0.05, iterations: int = 3, rows_B: Tensor | None = None, over_processes: bool = False
) -> Tensor:
    """Assignments near exp(scores / epsilon) that use every cluster about equally: alternate normalisation of clusters and samples.

    The last normalisation is that of the samples, so each row sums to 1 while the clusters are equal only approximately. Computed with
    logarithms: nothing overflows, and no sample or cluster is lost because another one's shares are e^88 times larger.

    Args:
        scores_BK: similarity of each sample to each of K clusters, with any dimensions before these two, each an assignment of its own.
            B may be 0, or smaller than K.
        epsilon: > 0; the smaller, the harder the assignments.
        iterations: of both normalisations, at least 1.
        rows_B: bool [B], the samples to be assigned; by default all. (A mask rather than fewer rows: choosing rows waits for the device.)
        over_processes: balance the clusters over the samples of all processes, of which each may have another number. All must call, with
            the same K and leading dimensions. One small message for each iteration.

    Returns:
        [..., B, K], float32 at least, no gradient; rows sum to 1, those that `rows_B` leaves out are 0.

    Raises:
        InputError: the scores are not [..., B, K] or the mask is not [B], epsilon is not above 0, or there is no iteration.

    Source: Cuturi 2013; Caron et al. 2020 (SwAV), section 3.1, for the equal shares.
    """
    if scores_BK.ndim < 2:
        raise InputError("scores_BK", f"a tensor of shape {tuple(scores_BK.shape)}", "[B, K], one row per sample")
    if rows_B is not None and (rows_B.shape != scores_BK.shape[-2:-1] or rows_B.dtype != torch.bool):
        raise InputError("rows_B", f"{rows_B.dtype} of shape {tuple(rows_B.shape)}", f"bool [{scores_BK.shape[-2]}], one for each sample")
    positive("epsilon", epsilon)
    at_least("iterations", iterations, 1)
    log_BK = at_least_float32(scores_BK) / epsilon
    if rows_B is not None:
        log_BK = log_BK.masked_fill(~rows_B[:, None], -torch.inf)
    for _ in range(iterations):  # the shares 1/K of a cluster and 1/B of a sample are constants, which the next division removes
        log_BK = log_BK - _log_of_clusters(log_BK, over_processes).clamp_min(_FLOOR)
        log_BK = log_BK - log_BK.logsumexp(-1, keepdim=True).clamp_min(_FLOOR)
    return log_BK.exp()


def _log_of_clusters(log_BK: Tensor, over_processes: bool) -> Tensor:
    """[..., 1, K]: log of the sum over the samples."""
    log_1K = log_BK.logsumexp(-2, keepdim=True)
    if not (over_processes and distributed.is_available() and distributed.is_initialized()):
        return log_1K
    parts = [torch.empty_like(log_1K) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, log_1K.contiguous())
    return torch.stack(parts).logsumexp(0)
