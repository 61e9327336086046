"""What random views of whole batches of images are made with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def windows(images_BCHW: Tensor, corners_B2: Tensor, size: Sequence[int]) -> Tensor:
    """The window of one size, (height, width), at each image's own corner (top, left), int64 [B, 2]; of images mostly with a border."""
    every = images_BCHW.unfold(2, size[0], 1).unfold(3, size[1], 1)  # a view [B, C, top, left, H, W]
    tops_B, lefts_B = corners_B2.T
    return every[torch.arange(len(images_BCHW), device=images_BCHW.device), :, tops_B, lefts_B]


def grey(images_B3HW: Tensor) -> Tensor:
    """The luma of ITU-R 601, [B, 1, H, W]."""
    red, green, blue = images_B3HW.split(1, 1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
