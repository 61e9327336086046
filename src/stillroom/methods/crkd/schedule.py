"""CrKD's learning rate: constant within an epoch, a linear warm-up from the smallest rate, then half a cosine back towards it."""

from __future__ import annotations

import math

from stillroom.errors import InputError


def learning_rate(epoch: int, *, lr: float, min_lr: float, warmup_epochs: int, epochs: int) -> float:
    """The rate of one epoch. Epochs W-1 and W both have the full rate.

        e < W:  min + e (lr - min) / (W - 1)          else:  min + (lr - min) (1 + cos(pi (e - W) / (E - W))) / 2

    Args:
        epoch: e, counted from 0.
        lr: the full rate.
        min_lr: the rate of the first epoch of a warm-up, and the limit at the end.
        warmup_epochs: W; with 1 the warm-up is one epoch at the smallest rate, with 0 there is none.
        epochs: E.

    Raises:
        InputError: the epoch is not one of the run's, or the warm-up does not end within it.

    Source: CrKD's released code (a scheduler that is stepped once for each epoch).
    """
    if not 0 <= epoch < epochs:
        raise InputError("epoch", epoch, f"a number from 0 to {epochs - 1}")
    if not 0 <= warmup_epochs <= epochs:
        raise InputError("warmup_epochs", warmup_epochs, f"a whole number of epochs from 0 to {epochs}")
    if epoch < warmup_epochs:
        return min_lr + epoch * (lr - min_lr) / max(warmup_epochs - 1, 1)
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs))) / 2
