"""Images of any size for networks that want sides of a multiple: padded, and what they answer cropped back."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def padded(images_BCHW: Tensor, multiple: int) -> Tensor:
    """Zeros below and at the right, so that both sides are multiples of a number; the same tensor where they are already."""
    height, width = images_BCHW.shape[-2:]
    missing = -height % multiple, -width % multiple
    return pad(images_BCHW, (0, missing[1], 0, missing[0])) if any(missing) else images_BCHW


def cropped(images_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of padded images that was there before: `size` is its height and width in pixels."""
    return images_BCHW[..., : size[0], : size[1]]
