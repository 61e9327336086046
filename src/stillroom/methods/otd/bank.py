"""A bank of past gradients, and the principal subspace that they span.

A ring G [d, c] of columns, zero at first. Update number k writes column k mod c; a refresh takes

    G = U S V^T,   r = 1 + the number of cumulative shares of S^2 below the energy to keep,   P = U_r U_r^T

by the Gram matrix where that is smaller: G^T G = V S^2 V^T, U_r = G V_r S_r^-1. d x d numbers are never held: memory is that of G and of
U_r, at most 2 d c numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_ROWS = 1 << 16  # of G that are taken to double precision at a time
_LEAST = 1e-8  # of the largest singular value: directions below it are rounding
_LARGE, LARGE_CAPACITY = 500, 300  # entries of a parameter from which on its history has a fixed capacity


def statistics_sizes(d: int) -> tuple[int, int]:
    """Capacity and refresh period, in updates, of a bank of a head's moments of d entries; at least 1 each."""
    capacity = max(4 * d // 5, 1)
    return capacity, 10 * capacity


def history_sizes(d: int, large: int = LARGE_CAPACITY) -> tuple[int, int]:
    """The same of a bank of a parameter's own past gradients; `large` is the capacity from 500 entries on."""
    capacity = max(4 * d // 5, 1) if d < _LARGE else large
    return capacity, capacity


class GradientBank(nn.Module):
    """See the module. Its tensors are made at the first update, where the vectors are.

    They are no buffers: every process has the same, and DDP would send them at every step. Who has a bank keeps what it holds.

    Args:
        size: d, entries of a vector.
        capacity: c, columns.
        refresh_every: updates from one refresh to the next; the first update refreshes nothing.
        energy: share of the squared singular values that the subspace keeps.
    """

    def __init__(self, size: int, capacity: int, refresh_every: int, energy: float) -> None:
        super().__init__()
        self.size, self.capacity, self.refresh_every, self.energy = size, capacity, refresh_every, energy
        self.count = 0
        self.columns: Tensor | None = None
        self.basis: Tensor | None = None  # U_r [d, r], once there was a refresh

    @property
    def rank(self) -> int:
        """r; 0 before the first refresh."""
        return 0 if self.basis is None else self.basis.shape[1]

    @property
    def most_bytes(self) -> int:
        """What it takes at most, in float32."""
        return 8 * self.size * self.capacity

    def update(self, vector_d: Tensor) -> None:
        """Writes a vector, without its gradient; refreshes the subspace when its time has come."""
        vector_d = vector_d.detach()
        if self.columns is None:
            self.columns = vector_d.new_zeros(self.size, self.capacity)
        elif self.columns.device != vector_d.device:  # taken up on another
            self._apply(lambda held: held.to(vector_d.device))
        self.columns[:, self.count % self.capacity] = vector_d
        if self.count and self.count % self.refresh_every == 0:
            self.basis = self._principal(self.columns)
        self.count += 1

    def _principal(self, g_dc: Tensor) -> Tensor | None:
        """U_r; of a bank of zeros what there was before."""
        gram_cc = g_dc.new_zeros(g_dc.shape[1], g_dc.shape[1], dtype=torch.float64)
        for rows in g_dc.split(_ROWS):
            gram_cc += rows.double().T @ rows.double()
        squared_c, v_cc = torch.linalg.eigh(gram_cc)
        squared_c, v_cc = squared_c.flip(0).clamp_min(0), v_cc.flip(1)
        if squared_c[0] == 0:
            return self.basis
        shares_c = squared_c.cumsum(0) / squared_c.sum()
        r = 1 + int((shares_c < self.energy).sum())
        r = min(r, int((squared_c > _LEAST**2 * squared_c[0]).sum()))
        scaled_cr = v_cc[:, :r] / squared_c[:r].sqrt()
        return torch.cat([(rows.double() @ scaled_cr).to(g_dc.dtype) for rows in g_dc.split(_ROWS)])

    def forward(self, vectors_dk: Tensor) -> Tensor:
        """P x: of vectors [d] or [d, k]; as they are before the first refresh."""
        return vectors_dk if self.basis is None else self.basis @ (self.basis.T @ vectors_dk)

    def held(self) -> dict[str, Any]:
        """What must be kept in a checkpoint."""
        return {"count": self.count, "columns": self.columns, "basis": self.basis}

    def take_up(self, held: dict[str, Any]) -> None:
        """Goes on from what was kept."""
        self.count, self.columns, self.basis = held["count"], held["columns"], held["basis"]

    def _apply(self, fn: Any, recurse: bool = True) -> GradientBank:
        super()._apply(fn, recurse)
        self.columns, self.basis = (None if held is None else fn(held) for held in (self.columns, self.basis))
        return self
