"""Numbers that several processes must agree on. Every function is the identity in a single process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def world_size() -> int:
    """Processes that train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def average_gradients(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Mean of each gradient over the processes; absent only where it is absent in all of them (elsewhere absent counts as zero).

    One message for each device and type, so a method that makes its own gradient queries pays what DDP's buckets would cost.

    Args:
        gradients: one for each parameter, None where absent.
        parameters: give the shapes of the absent ones.
    """
    world = world_size()
    if world == 1:
        return list(gradients)
    present = torch.tensor([gradient is not None for gradient in gradients], dtype=torch.int32, device=parameters[0].device)
    torch.distributed.all_reduce(present, op=torch.distributed.ReduceOp.MAX)
    kept = [i for i, flag in enumerate(present.tolist()) if flag]
    averaged: list[Tensor | None] = [None] * len(gradients)
    kinds = {(parameters[i].device, parameters[i].dtype) for i in kept}
    for kind in sorted(kinds, key=str):
        group = [i for i in kept if (parameters[i].device, parameters[i].dtype) == kind]
        parts = [torch.zeros_like(parameters[i]) if (g := gradients[i]) is None else g.to(kind[1]) for i in group]
        flat = torch.cat([part.reshape(-1) for part in parts])
        torch.distributed.all_reduce(flat)
        flat /= world
        for i, part in zip(group, flat.split([parameters[i].numel() for i in group]), strict=True):
            averaged[i] = part.view_as(parameters[i])
    return averaged


def gather_rows(rows: Tensor) -> Tensor:
    """The rows [M, ...] of all processes, M of each its own, one process after the other; on one process the rows themselves.

    Without gradient: for scores and selections that must be equal everywhere. Every process must ask.
    """
    if world_size() == 1:
        return rows
    parts: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(parts, rows.detach().cpu())
    return torch.cat(parts).to(rows.device)
