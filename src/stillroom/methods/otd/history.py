"""Historical self-distillation: a gradient is reinforced along the principal subspace of the same parameter's past gradients.

g <- g + w U_r U_r^T g,   between the backward pass and the optimiser's step
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stillroom.methods.otd.bank import LARGE_CAPACITY, GradientBank, history_sizes

LARGEST = 2_000_000  # entries of a parameter that has a bank


def reinforced(gradient: Tensor, basis_dr: Tensor, weight: float) -> Tensor:
    """g + w U U^T g, in the gradient's shape.

    Args:
        gradient: g, of d entries.
        basis_dr: U, orthonormal columns.
        weight: w.
    """
    flat = gradient.flatten()
    return (flat + weight * (basis_dr @ (basis_dr.T @ flat))).view_as(gradient)


class History(nn.Module):
    """A bank for every parameter of more than one dimension; to be called once in an optimiser's step, with the gradients that it would
    see: those of all processes, unscaled.

    Args:
        parameters: by name. Those of more than `largest` entries are left as they are, which is said.
        weight: w.
        energy: share of energy that the subspaces keep.
        largest: entries.
        capacity: of the banks of parameters of 500 entries or more.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        weight: float,
        energy: float,
        largest: int = LARGEST,
        capacity: int = LARGE_CAPACITY,
    ) -> None:
        super().__init__()
        self.weight = weight
        wide = [(name, parameter) for name, parameter in parameters if parameter.ndim > 1]
        self._reinforced = [(name, parameter) for name, parameter in wide if parameter.numel() <= largest]
        if left := [name for name, parameter in wide if parameter.numel() > largest]:
            warnings.warn(f"no history is kept of {', '.join(left)}: more than {largest} entries each", stacklevel=2)
        sizes = {name.replace(".", "/"): parameter.numel() for name, parameter in self._reinforced}
        self.banks = nn.ModuleDict({name: GradientBank(d, *history_sizes(d, capacity), energy) for name, d in sizes.items()})

    @torch.no_grad()
    def reinforce(self) -> None:
        """Notes every gradient as it is, then adds its share along the subspace, where there is one. Parameters without gradient rest."""
        for name, parameter in self._reinforced:
            if parameter.grad is None:
                continue
            bank = self.banks[name.replace(".", "/")]
            assert isinstance(bank, GradientBank)
            bank.update(parameter.grad.flatten())
            if bank.basis is not None:
                parameter.grad = reinforced(parameter.grad, bank.basis, self.weight)
