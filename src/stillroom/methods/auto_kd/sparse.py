"""Training with half of the weights (section 5 of Auto-KD's specification): random masks, and their pruning and regrowth."""

from __future__ import annotations

import torch
from torch import Tensor


def random_mask(key: Tensor, density: float) -> Tensor:
    """A mask, bool, with exactly round(density * n) entries: those with the largest random key."""
    return _largest(key.flatten(), round(density * key.numel())).view_as(key)


def prune_and_regrow(weight: Tensor, mask: Tensor, key: Tensor, death_rate: float) -> tuple[Tensor, Tensor]:
    """Drops floor(death_rate * active) active weights of least magnitude, and activates as many others with the largest random key, from 0.

    Where fewer are inactive than are dropped, those of the dropped ones that are largest stay.

    Args:
        weight: any shape.
        mask: bool, of its shape: which are active.
        key: random, of its shape.
        death_rate: from 0 to 1.

    Returns:
        The new mask, and the weights under it.
    """
    flat, active, keys = weight.flatten(), mask.flatten(), key.flatten()
    count, inactive = int(active.sum()), int((~active).sum())
    dropped = min(int(death_rate * count), inactive)
    kept = _largest(flat.abs().masked_fill(~active, -1.0), count - dropped)
    grown = _largest(keys.masked_fill(active, -torch.inf), dropped)
    return (kept | grown).view_as(mask), (flat * kept).view_as(weight)


def _largest(values: Tensor, count: int) -> Tensor:
    """Bool: the largest of a vector; of equal ones the first."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[values.argsort(descending=True, stable=True)[:count]] = True
    return chosen
