"""What is DINO's own between the gradient and the weights: clipping per parameter, LARS, and which parameters decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stillroom.errors import at_least_zero, positive


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
    return [group for group in ({"params": decayed, "decays": True}, {"params": spared, "decays": False, "weight_decay": 0.0}) if group["params"]]


class LARS(Optimizer):
    """SGD whose step is proportional to each tensor's norm.

        d = g + wd w;    d <- d eta |w| / |d|;    u <- mu u + d;    w <- w - lr u

    Vectors (one dimension) neither decay nor are scaled, and where |w| or |d| is 0 the factor is 1.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        weight_decay: wd.
        momentum: mu.
        eta: trust coefficient.

    Source: specification, "Optimiser"; You et al. 2017.
    """

    def __init__(self, params: Any, lr: float, *, weight_decay: float = 0.0, momentum: float = 0.9, eta: float = 0.001) -> None:
        at_least_zero("lr", lr)
        positive("eta", eta)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)
        return loss

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        change = parameter.grad
        assert change is not None
        if parameter.ndim != 1:
            change = change + group["weight_decay"] * parameter
            length, steepness = parameter.norm(), change.norm()
            scaled = group["eta"] * length / steepness
            change = change * torch.where((length > 0) & (steepness > 0), scaled, torch.ones_like(scaled))
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(group["momentum"]).add_(change)
        parameter.sub_(group["lr"] * state["momentum"])
