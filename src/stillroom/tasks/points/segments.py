"""Reductions over groups of rows, without a loop over the groups. Sums are held in float32 or wider, whatever the precision around them."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum of the rows of each segment.

    Args:
        values: [N, ...].
        index: int64 [N], the segment of each row, in [0, size).
        size: number of segments; an empty one gives 0.

    Returns:
        [size, ...], float32 where `values` are of half precision.
    """
    values = _wide(values)
    return values.new_zeros(size, *values.shape[1:]).index_add_(0, index, values)


def segment_count(index: Tensor, size: int) -> Tensor:
    """Rows per segment: int64 [size]."""
    return torch.bincount(index, minlength=size)


def segment_mean(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Mean of the rows of each segment, 0 for an empty one; arguments as for `segment_sum`."""
    total = segment_sum(values, index, size)
    count = segment_count(index, size).clamp_min(1).to(total.dtype)
    return total / count.view(-1, *(1,) * (total.ndim - 1))


def segment_max(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Greatest value of each segment, entry by entry, 0 for an empty one; arguments as for `segment_sum`.

    Rows that tie share the gradient equally.
    """
    values = _wide(values)
    spread = index.view(-1, *(1,) * (values.ndim - 1)).expand_as(values)
    return values.new_zeros(size, *values.shape[1:]).scatter_reduce(0, spread, values, "amax", include_self=False)


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
