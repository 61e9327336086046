"""Numbers that several processes must agree on. Every function is the identity in a single process, and all processes must call it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


when_alone: list[Callable[[], None]] = []  # what else ends with the group of processes; see `go_alone`


def world_size() -> int:
    """Processes that train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return torch.distributed.get_rank() if world_size() > 1 else 0


def go_alone() -> None:
    """Ends the group of processes that trained together; what follows is this process's own.

    The first process alone makes a report, with metrics by class and more: a metric that waited for the others' share then would wait for
    ever, or for processes that have ended. The next training founds a new group.
    """
    if world_size() > 1:
        torch.distributed.barrier()  # nobody founds the next group while another has not left this one
        for end in when_alone:
            end()
        torch.distributed.destroy_process_group()


def averaged(values: Tensor) -> Tensor:
    """The mean of the values over the processes, without gradient: what is divided by it adds up as in one process."""
    values = values.detach().clone()
    if world_size() > 1:
        torch.distributed.all_reduce(values)
        values /= world_size()
    return values


def largest(values: Tensor) -> Tensor:
    """The largest of the values of all processes, a scalar without gradient."""
    found = values.detach().amax()
    if world_size() > 1:
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return found


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


def gathered(value: T) -> list[T]:
    """What each process has, the first's first; anything that can be pickled."""
    if world_size() == 1:
        return [value]
    parts: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(parts, value)
    return parts


def gather_rows(rows: Tensor) -> Tensor:
    """The rows [M, ...] of all processes, M of each its own, one process after the other; on one process the rows themselves.

    Without gradient: for scores and selections that must be equal everywhere.
    """
    return rows if world_size() == 1 else torch.cat(gathered(rows.detach().cpu())).to(rows.device)


def gather_samples(batches: Sequence[tuple[Tensor, ...]]) -> list[np.ndarray]:
    """What every process noted of its samples, as columns [N, ...] in the order of ids, each sample once.

    Args:
        batches: for each batch the samples' ids [B], then other columns [B, ...]. A process may have none; nothing comes of none at all.
    """
    mine = [torch.cat(column).cpu().numpy() for column in zip(*batches, strict=True)]
    columns = [np.concatenate(parts) for parts in zip(*filter(None, gathered(mine)), strict=True)]
    if not columns:
        return []
    _, first = np.unique(columns[0], return_index=True)
    return [column[first] for column in columns]


def whole_batch(rows: Tensor) -> Tensor:
    """The rows of all processes, which have as many each, one process after the other; the gradient reaches this process's own.

    DDP takes the mean of the processes' gradients, each of which knows its own rows alone: times their number it is the whole batch's.
    """
    world = world_size()
    if world == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world)]
    torch.distributed.all_gather(parts, rows.detach().contiguous())
    if rows.requires_grad:
        own = rows.clone()
        own.register_hook(lambda gradient: world * gradient)
        parts[rank()] = own
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """All processes' rows; back comes the sum of what every process's loss wants of this one's."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total[rank() * ctx.count : (rank() + 1) * ctx.count]


def gather_with_gradient(rows: Tensor) -> Tensor:
    """The rows [B, ...] of all processes, which have as many each, one process after the other, in the order of their ranks.

    For losses of this process's own rows against everybody's: the gradient that reaches the rows is that of the sum of all processes'
    losses. With DDP's mean over the processes it is that of the mean loss, as if one process had them all. Every process must go back
    through it, too.
    """
    gathered_rows: Tensor = _Gather.apply(rows) if world_size() > 1 else rows
    return gathered_rows
