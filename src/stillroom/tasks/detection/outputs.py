"""What the raw answers of every detector have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

# Boxes [G, 4], absolute (x1, y1, x2, y2), and labels int64 [G], 0 .. C-1, of each image of a batch.
Objects = tuple[Sequence[Tensor], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Raw answers of a detector to a batch of B images; each kind of detector adds its own.

    Attributes:
        features: the maps that the heads read, per level [B, D, h, w]: a pyramid's, or what a DETR's encoder makes of them.
        strides: pixels from a cell of a level to the next.
        image_sizes: int64 [B, 2], height and width of each image in the batch before padding.
    """

    features: tuple[Tensor, ...] = ()
    strides: tuple[int, ...]
    image_sizes: Tensor
