"""The number type that losses are computed in: at least float32, and float64 where that came."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, or in their own type where that is wider: half precision is widened, float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def in_one_type(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All in the widest of their types, which is at least float32: what a student's and a teacher's answers are compared in."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return tuple(tensor.to(dtype) for tensor in tensors)
