"""DOT's training iteration (section 3 of the paper): two gradients over one forward graph, kept apart all the way into the optimiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from stillroom.engine import Distiller, Losses
from stillroom.engine.distributed import average_gradients
from stillroom.engine.own_gradients import OwnGradients
from stillroom.errors import InputError
from stillroom.methods.dot.optimizer import DOTOptimizer

Gradients = list[Tensor | None]


class DOT(OwnGradients):
    """Any distiller, trained by the Distillation-Oriented Trainer.

    The host's task terms and its distillation terms are each summed; each sum has its own gradient and its own momentum buffer
    (:class:`DOTOptimizer`). BatchNorm statistics are updated once, because there is one forward pass.

    Gradient accumulation adds the two gradients up separately. In mixed precision both are unscaled by the same factor, and a step in
    which either is not finite is skipped with both buffers untouched. Clipping scales both by the factor that the norm of their sum
    asks for. Over several processes both are averaged before they enter the buffers; DDP's own synchronisation, which knows one
    backward pass per forward pass, is switched off. All of this paragraph is inferred: the paper and its code are silent on it.

    Args:
        host: a distiller with task and distillation terms.
        delta: the momentum gap Delta; momentum and weight decay are those of the training plan.
        dampening: d of the optimiser.

    Raises:
        InputError: the host steps by itself; in the first step, when the host has terms of one kind only; under FSDP; with an optimiser
            other than sgd.
    """

    def __init__(self, host: Distiller, *, delta: float = 0.075, dampening: float = 0.0) -> None:
        if not host.automatic_optimization:
            raise InputError("host", type(host).__name__, "a distiller that one optimiser trains on the sum of its terms: DOT replaces it")
        super().__init__(host.student, host.teacher)
        self.host = host
        self.delta, self.dampening = delta, dampening
        self._task: Gradients = []
        self._distill: Gradients = []

    def losses(self, batch: Any) -> Losses:
        """The host's, of which each kind must have a gradient."""
        losses = self._informed_host().losses(batch)
        for kind, total in (("task", losses.task_total), ("distillation", losses.distill_total)):
            if total is None:
                raise InputError(
                    "host", f"{type(self.host).__name__}, which has no {kind} term", "a distiller with both: DOT keeps the two apart"
                )
        return losses

    def training_data(self, data: Any) -> Any:
        """What the host shows."""
        return self._informed_host().training_data(data)

    def select(self) -> Tensor | None:
        """What the host selects."""
        return self._informed_host().select()

    def predict(self, batch: Any) -> Any:
        """The host's answer."""
        return self.host.predict(batch)

    def rate(self, base_lr: float) -> float:
        """The host's learning rate."""
        return self._informed_host().rate(base_lr)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The host's."""
        return self.host.parameter_groups()

    def configure_optimizers(self) -> DOTOptimizer:
        """DOT's optimiser with the plan's learning rate, momentum and weight decay."""
        plan = self.plan
        if plan.optimizer != "sgd" or plan.nesterov:
            raise InputError(
                "optimizer", "nesterov" if plan.nesterov else plan.optimizer, "sgd without nesterov: DOT is defined for it alone"
            )
        return DOTOptimizer(
            self.parameter_groups(),
            lr=plan.lr,
            momentum=plan.momentum,
            delta=self.delta,
            weight_decay=plan.weight_decay,
            dampening=self.dampening,
        )

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """One forward pass, two gradient queries and, once `accumulate` batches are in, one step."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, DOTOptimizer)
        losses = self.checked_losses(batch)
        assert losses.task_total is not None
        assert losses.distill_total is not None
        task, distill = self.two_gradients(losses, optimizer.parameters())
        self._task, self._distill = _add(self._task, task), _add(self._distill, distill)
        if (batch_idx + 1) % self.plan.accumulate == 0 or batch_idx + 1 == self.progress.steps_per_epoch:
            self._step(optimizer)
            self._task, self._distill = [], []
        return {"loss": losses.total.detach(), "terms": {name: term.detach() for name, term in losses.terms.items()}}

    def two_gradients(self, losses: Losses, parameters: Sequence[Tensor]) -> tuple[Gradients, Gradients]:
        """g_ce and g_kd, None where a loss does not reach a parameter; scaled for accumulation and mixed precision."""
        scaler = self.gradient_scaler()
        found: list[Gradients] = []
        for total, again in ((losses.distill_total, True), (losses.task_total, False)):
            assert total is not None
            total = total / self.plan.accumulate
            scaled = total if scaler is None else scaler.scale(total)
            gradients = torch.autograd.grad(scaled, parameters, retain_graph=again, allow_unused=True)
            # Two parameters may be given one and the same gradient tensor; unscaling in place needs each its own.
            found.append([g if g is None or scaler is None else g.clone() for g in gradients])
        return found[1], found[0]

    def _informed_host(self) -> Distiller:
        """The host, which alone is not told how and how far it is trained."""
        self.host.plan, self.host._place = self.plan, self._place  # not `progress`: a host that does not ask for it warns of nothing
        return self.host

    def _step(self, optimizer: DOTOptimizer) -> None:
        parameters = optimizer.parameters()
        task, distill = average_gradients(self._task, parameters), average_gradients(self._distill, parameters)
        scaler = self.gradient_scaler()
        finite = scaler is None or _unscale(scaler, parameters, task, distill)
        if finite:
            if self.plan.clip_norm is not None:
                task, distill = _clip_together(task, distill, self.plan.clip_norm)
            optimizer.step(task=task, distill=distill)
        if scaler is not None:
            scaler.update()


def _add(sums: Gradients, more: Gradients) -> Gradients:
    """Element by element; absent and absent is absent."""
    if not sums:
        return more
    return [b if a is None else a if b is None else a + b for a, b in zip(sums, more, strict=True)]


def _unscale(scaler: torch.amp.GradScaler, parameters: Sequence[Tensor], *lists: Gradients) -> bool:
    """Divides every gradient by the scaler's one factor, in place, and tells the scaler what it met; whether all are finite.

    The scaler speaks of optimisers and their ``.grad``: each list is shown to it as the gradients of a stand-in.
    """
    finite = True
    before = [p.grad for p in parameters]
    stand_ins = [torch.optim.SGD(list(parameters), lr=0.0) for _ in lists]  # all alive at once: the scaler tells them apart by their ids
    for gradients, stand_in in zip(lists, stand_ins, strict=True):
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        scaler.unscale_(stand_in)
        finite = finite and all(bool(torch.isfinite(g).all()) for g in gradients if g is not None)
    for p, gradient in zip(parameters, before, strict=True):
        p.grad = gradient
    return finite


def _clip_together(task: Gradients, distill: Gradients, clip_norm: float) -> tuple[Gradients, Gradients]:
    """Both lists, scaled by what brings the norm of their sum down to `clip_norm`."""
    total = [g for g in _add(task, distill) if g is not None]
    factor = (clip_norm / (get_total_norm(total) + 1e-6)).clamp(max=1.0)

    def scaled(gradients: Gradients) -> Gradients:
        return [None if g is None else g * factor for g in gradients]

    return scaled(task), scaled(distill)
