"""LARS: momentum SGD for large batches, whose steps are as large as the weights that they change ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from stillroom.errors import at_least_zero, positive


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

    Source: You, Gitman and Ginsburg 2017, in the form that self-distillation codes share.
    """

    def __init__(self, params: Any, lr: float, *, weight_decay: float = 0.0, momentum: float = 0.9, eta: float = 0.001) -> None:
        at_least_zero("lr", lr)
        positive("eta", eta)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
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
