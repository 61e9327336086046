"""Batches of composites, their masks, and the photos that they were made from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stillroom.errors import InputError


class Batch(NamedTuple):
    """Composites and the truth.

    Attributes:
        composites: I_c, float32 [B, 3, H, W], normalised.
        masks: M of the foreground, float32 [B, 1, H, W] from 0 to 1.
        reals: I_r, float32 [B, 3, H, W], normalised.
        ids: int64 [B], each sample's index in its data set.
    """

    composites: Tensor
    masks: Tensor
    reals: Tensor
    ids: Tensor

    @property
    def inputs(self) -> Tensor:
        """What a network reads, [B, 4, H, W]."""
        return torch.cat((self.composites, self.masks), 1)

    @property
    def real_inputs(self) -> Tensor:
        """The real photo with the same mask, [B, 4, H, W]."""
        return torch.cat((self.reals, self.masks), 1)


def joined(images_B3HW: Tensor, mask_B1HW: Tensor) -> Tensor:
    """A picture and its mask as a network's input, [B, 4, H, W].

    Raises:
        InputError: the mask has more than one channel, another size than the picture, or values outside [0, 1].
    """
    if mask_B1HW.ndim != 4 or mask_B1HW.shape[1] != 1:
        raise InputError("mask", f"shape {list(mask_B1HW.shape)}", "a mask of one channel, [B, 1, H, W]")
    if images_B3HW.ndim != 4 or images_B3HW.shape[1] != 3 or images_B3HW.shape[2:] != mask_B1HW.shape[2:]:
        expected = f"a picture [B, 3, H, W] of the mask's size, {list(mask_B1HW.shape[2:])}"
        raise InputError("images", f"shape {list(images_B3HW.shape)}", expected)
    if not (mask_B1HW.min() >= 0 and mask_B1HW.max() <= 1):
        raise InputError("mask", f"values from {float(mask_B1HW.min()):g} to {float(mask_B1HW.max()):g}", "values from 0 to 1")
    return torch.cat((images_B3HW, mask_B1HW.to(images_B3HW.dtype)), 1)
