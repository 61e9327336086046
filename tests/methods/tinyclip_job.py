"""Losses of rows that two processes share, for test_tinyclip.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stillroom.engine.distributed import rank, world_size
from stillroom.methods.tinyclip import affinity_loss
from stillroom.tasks.imagetext import contrastive_loss

ROWS = 6


def embed(weights: Tensor, inputs: Tensor) -> Tensor:
    return normalize(inputs @ weights, dim=-1)


def losses_on_ranks(_: Any, world: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Each loss of this process's rows, and the gradient of the weights as DDP takes its mean."""
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    assert world_size() == world
    generator = torch.Generator().manual_seed(0)
    images, texts, teacher_images, teacher_texts = (torch.randn(ROWS, 5, generator=generator, dtype=torch.float64) for _ in range(4))
    own = slice(rank() * ROWS // world, (rank() + 1) * ROWS // world)
    teacher = normalize(teacher_images, dim=-1)[own], normalize(teacher_texts, dim=-1)[own]
    found = {}
    for kind in ("affinity", "contrast"):
        weights = torch.linspace(-1, 1, 20, dtype=torch.float64).view(5, 4).requires_grad_()
        image, text = embed(weights, images[own]), embed(weights, texts[own])
        loss = affinity_loss(image, text, *teacher, 20.0, 20.0) if kind == "affinity" else contrastive_loss(image, text, 20.0)
        (gradient,) = torch.autograd.grad(loss, weights)
        if world > 1:
            torch.distributed.all_reduce(gradient)
        found[kind] = loss.detach(), gradient / world
    return found
