"""Stops a run at the first loss, or weight, that is not finite, before it can spoil a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stillroom.errors import NonFiniteLoss, NonFiniteWeights


class FiniteGuard:
    """Watches the loss terms of every step.

    On the CPU each step is looked at before its backward pass, so the weights stay good. On an accelerator a look costs a
    synchronisation; there the flags of `every` steps are collected on the device and read together, and always before a
    checkpoint is written, so the last checkpoint on disk is good in both cases.

    Args:
        every: steps between two looks on an accelerator.
    """

    def __init__(self, every: int = 20) -> None:
        self.every = every
        self._seen: list[tuple[int, tuple[str, ...], Tensor, Tensor]] = []

    def watch(self, terms: Mapping[str, Tensor], ids: Tensor, step: int) -> None:
        """Notes the scalar terms of one step.

        Raises:
            NonFiniteLoss: naming the step, the terms and the samples.
        """
        values = torch.stack([term.detach().reshape(()).float() for term in terms.values()])
        self._seen.append((step, tuple(terms), values, ids))
        if values.device.type == "cpu" or len(self._seen) >= self.every:
            self.look()

    def look(self) -> None:
        """Reads everything noted since the last look.

        Raises:
            NonFiniteLoss: for the first bad step.
        """
        seen, self._seen = self._seen, []
        if not seen or bool(torch.isfinite(torch.cat([values for _, _, values, _ in seen])).all()):
            return
        for step, names, values, ids in seen:
            bad = {name: value for name, value in zip(names, values.tolist(), strict=True) if not torch.isfinite(torch.tensor(value))}
            if bad:
                raise NonFiniteLoss(step, bad, ids.tolist())

    def look_at_weights(self, module: nn.Module, step: int) -> None:
        """Before they are written anywhere: a finite loss may have had a gradient that was not.

        Of the student, that is: what becomes of networks beside it is the method's to say.

        Raises:
            NonFiniteWeights: naming them.
        """
        weights = dict(module.named_parameters())
        if not weights:
            return
        finite = torch.stack([weight.detach().isfinite().all() for weight in weights.values()]).tolist()
        if not all(finite):
            raise NonFiniteWeights(step, [name for name, good in zip(weights, finite, strict=True) if not good])
