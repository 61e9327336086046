"""The Distillation-Oriented Trainer's optimiser: momentum SGD with one momentum buffer for each of two losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import InputError, at_least_zero, share

TASK_BUFFER = "task_momentum_buffer"  # v_ce
DISTILL_BUFFER = "distill_momentum_buffer"  # v_kd


class DOTOptimizer(torch.optim.Optimizer):
    """SGD that keeps the task loss's and the distillation loss's gradients apart, each in a momentum buffer of its own.

    The distillation buffer has the larger momentum, so that where the two losses pull apart the teacher prevails. For a
    parameter theta that both losses reach, with mu = `momentum`, Delta = `delta`, gamma = `lr`, lambda = `weight_decay`:

        v_ce  <- (mu - Delta) v_ce + g_ce + lambda theta
        v_kd  <- (mu + Delta) v_kd + g_kd
        theta <- theta - gamma (v_ce + v_kd)

    The gradients are given to `step`; ``p.grad`` is not looked at. A gradient may be absent (None, which is not the same as
    zero). At each step

    - a parameter that only one loss reaches has the momentum mu, with weight decay whichever loss that is;
    - the buffer of an absent gradient rests: it is neither decayed nor applied;
    - a parameter that no loss reaches is untouched.

    A loss's first gradient is copied into its buffer as it is: undampened and, in the distillation buffer, without weight decay.
    With mu = Delta the task keeps no buffer and its gradient is applied as it is. With Delta = 0 and every parameter reached by
    both losses this is SGD on the sum of the losses.

    Args:
        params: parameters, or parameter groups (each with its own values of the following).
        lr: gamma >= 0. A change of it does not rescale the buffers.
        momentum: mu, the mean of the two momenta.
        delta: Delta, half their difference; 0.05 to 0.09 makes sense for mu = 0.9. Negative: the task has the larger one.
            Both mu - Delta and mu + Delta lie in [0, 1).
        weight_decay: lambda >= 0.
        dampening: d in [0, 1]; a gradient that enters a buffer is scaled by 1 - d.

    Raises:
        InputError: a value is out of its range.

    Source: Zhao et al. 2023, "DOT: A Distillation-Oriented Trainer". The update of parameters that both losses reach is the paper's;
    weight decay, absent gradients and the first step follow the code released with it.

    Example:
        >>> optimizer = DOTOptimizer(student.parameters(), lr=0.05)
        >>> parameters = optimizer.parameters()
        >>> distill = torch.autograd.grad(distill_loss, parameters, retain_graph=True, allow_unused=True)
        >>> task = torch.autograd.grad(task_loss, parameters, allow_unused=True)
        >>> optimizer.step(task=task, distill=distill)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        delta: float = 0.075,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay, "dampening": dampening})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; what it does not name it takes from the constructor's arguments. See `torch.optim.Optimizer`."""
        _check_values({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def parameters(self) -> list[Tensor]:
        """All parameters, group after group: the order in which `step` takes gradients."""
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(  # type: ignore[override]  # there is no step without the two gradients
        self, closure: Callable[[], Any] | None = None, *, task: Sequence[Tensor | None], distill: Sequence[Tensor | None]
    ) -> Any:
        """One update. The gradients are read, never changed nor kept.

        Args:
            closure: called first, for trainers that pass one. It need not compute anything.
            task: g_ce for each of `parameters()`, in their order; None where the task loss has no gradient.
            distill: g_kd, the same for the distillation loss.

        Returns:
            What `closure` returned.

        Raises:
            InputError: a list is not as long as `parameters()`, or a gradient is sparse or of another shape than its parameter.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        parameters = self.parameters()
        _check_gradients("task", task, parameters)
        _check_gradients("distill", distill, parameters)
        start = 0
        for group in self.param_groups:
            stop = start + len(group["params"])
            self._task_part(group, task[start:stop], distill[start:stop])
            self._distill_part(group, task[start:stop], distill[start:stop])
            start = stop
        return result

    def _task_part(self, group: dict[str, Any], task: Sequence[Tensor | None], distill: Sequence[Tensor | None]) -> None:
        momentum = group["momentum"] - group["delta"]
        for bundle in self._bundles(group["params"], task, distill, TASK_BUFFER):
            gradients = bundle.gradients
            if group["weight_decay"] != 0:
                gradients = _decayed(bundle, group["weight_decay"])
            if momentum == 0:
                torch._foreach_add_(bundle.params, gradients, alpha=-group["lr"])
                continue
            if bundle.first:
                self._start_buffers(bundle, TASK_BUFFER, gradients)
            else:
                _accumulate(bundle.buffers, gradients, momentum if bundle.shared else group["momentum"], group["dampening"])
            torch._foreach_add_(bundle.params, bundle.buffers, alpha=-group["lr"])

    def _distill_part(self, group: dict[str, Any], task: Sequence[Tensor | None], distill: Sequence[Tensor | None]) -> None:
        momentum = group["momentum"] + group["delta"]
        for bundle in self._bundles(group["params"], distill, task, DISTILL_BUFFER):
            gradients = bundle.gradients
            if bundle.first:
                self._start_buffers(bundle, DISTILL_BUFFER, gradients)
            elif bundle.shared:  # the task part has decayed these weights
                _accumulate(bundle.buffers, gradients, momentum, group["dampening"])
            else:
                if group["weight_decay"] != 0:
                    gradients = _decayed(bundle, group["weight_decay"])
                _accumulate(bundle.buffers, gradients, group["momentum"], group["dampening"])
            torch._foreach_add_(bundle.params, bundle.buffers, alpha=-group["lr"])

    def _bundles(
        self, params: list[Tensor], gradients: Sequence[Tensor | None], others: Sequence[Tensor | None], name: str
    ) -> Iterable[_Bundle]:
        """The parameters that have one of `gradients`, in bundles that one multi-tensor operation can treat."""
        bundles: dict[tuple[object, ...], _Bundle] = {}
        for p, gradient, other in zip(params, gradients, others, strict=True):
            if gradient is None:
                continue
            buffer = self.state[p].get(name)
            first, shared = buffer is None, other is not None
            key = (first, shared, p.device, p.dtype, gradient.dtype)
            bundle = bundles.get(key)
            if bundle is None:
                bundle = bundles[key] = _Bundle(first, shared)
            bundle.params.append(p)
            bundle.gradients.append(gradient)
            if buffer is not None:
                bundle.buffers.append(buffer)
        return bundles.values()

    def _start_buffers(self, bundle: _Bundle, name: str, gradients: Sequence[Tensor]) -> None:
        for p, gradient in zip(bundle.params, gradients, strict=True):
            buffer = gradient.detach().to(p.dtype, copy=True)  # the caller keeps their gradient
            self.state[p][name] = buffer
            bundle.buffers.append(buffer)


@dataclass
class _Bundle:
    """Parameters that are treated alike in one half of a step.

    Args:
        first: they have no buffer yet.
        shared: the other loss has gradients for them, too.
    """

    first: bool
    shared: bool
    params: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)


def _decayed(bundle: _Bundle, weight_decay: float) -> list[Tensor]:
    """g + lambda * theta."""
    return list(torch._foreach_add(bundle.gradients, bundle.params, alpha=weight_decay))


def _accumulate(buffers: list[Tensor], gradients: list[Tensor], momentum: float, dampening: float) -> None:
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, gradients, alpha=1 - dampening)


def _check_values(group: dict[str, Any]) -> None:
    for name in ("lr", "weight_decay"):
        at_least_zero(name, group[name])
    momentum, delta = group["momentum"], group["delta"]
    if not 0 <= momentum < 1:
        raise InputError("momentum", momentum, "a number from 0 and below 1")
    if not (0 <= momentum - delta < 1 and 0 <= momentum + delta < 1):
        raise InputError("delta", delta, f"momentum - delta and momentum + delta from 0 and below 1 (momentum is {momentum})")
    share("dampening", group["dampening"])


def _check_gradients(name: str, gradients: Sequence[Tensor | None], parameters: list[Tensor]) -> None:
    if len(gradients) != len(parameters):
        raise InputError(name, f"{len(gradients)} gradients", f"one (or None) for each of the optimiser's {len(parameters)} parameters")
    for i, (gradient, p) in enumerate(zip(gradients, parameters, strict=True)):
        if gradient is None:
            continue
        if gradient.shape != p.shape:
            raise InputError(f"{name}[{i}]", f"a gradient of shape {list(gradient.shape)}", f"its parameter's shape {list(p.shape)}")
        if gradient.layout != torch.strided:
            raise InputError(f"{name}[{i}]", "a sparse gradient", "a dense one (e.g. nn.Embedding(sparse=False))")
