"""The number type that losses are computed in: at least float32, and float64 where that came."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32, or in their own type where that is wider: half precision is widened, float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def in_one_type(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their types, float32 at least: what a student's and a teacher's answers are compared in."""
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    return first.to(dtype), second.to(dtype)
