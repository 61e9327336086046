"""What is DINO's own between the gradient and the weights: clipping per parameter, and which parameters decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import at_least_zero


@torch.no_grad()
def clip_each(parameters: Iterable[Tensor], limit: float) -> None:
    """Scales the gradient of each parameter by limit / (norm + 1e-6) where that is below 1, each on its own; 0 leaves all as they are.

    Source: specification, "Gradient clipping".
    """
    if not at_least_zero("clip", limit):
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_((limit / (parameter.grad.norm() + 1e-6)).clamp(max=1.0))


def decay_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups of what learns: tensors of two dimensions and more, and biases and vectors, which never decay.

    Source: specification, "Optimiser".
    """
    learning = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    free = [parameter.ndim < 2 or name.endswith(".bias") for name, parameter in learning]
    decayed = [parameter for (_, parameter), without in zip(learning, free, strict=True) if not without]
    spared = [parameter for (_, parameter), without in zip(learning, free, strict=True) if without]
    return [
        group
        for group in ({"params": decayed, "decays": True}, {"params": spared, "decays": False, "weight_decay": 0.0})
        if group["params"]
    ]
