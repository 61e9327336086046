"""Whole pictures of any sizes, as tasks on their pixels read them: decoded, kept in memory while there is room, resized, normalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torchvision.transforms.v2.functional import pil_to_tensor, resize

Read = TypeVar("Read")

_LONGEST = 2048  # pixels of a side of pictures that are measured on


class Kept(Generic[Read]):
    """Samples by their number: read once and kept, as long as there is room.

    Args:
        read: a sample of a number: a structure of tensors and arrays, of which the first is counted.
        count: how many there are.
        room: bytes.
    """

    def __init__(self, read: Callable[[int], Read], count: int, room: int) -> None:
        self._read, self._count, self._room = read, count, room
        self._kept: dict[int, Read] = {}

    def __len__(self) -> int:
        return self._count

    def __call__(self, index: int) -> Read:
        """The sample of that number."""
        if index not in self._kept:
            found = self._read(index)
            size = int(tree_leaves(found)[0].nbytes)
            if size > self._room:
                return found
            self._room -= size
            self._kept[index] = found
        return self._kept[index]


def pixels_of(image: Image.Image | Tensor) -> Tensor:
    """uint8 [3, H, W]."""
    return image if isinstance(image, Tensor) else pil_to_tensor(image)


def prepared(pixels_3HW: Tensor, shorter: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A whole picture as a network reads it: the shorter side in pixels resized (the longer one to 2048 at most), normalised."""
    size = [int(side) for side in pixels_3HW.shape[1:]]
    factor = min(shorter / min(size), _LONGEST / max(size))
    wanted = [max(1, round(side * factor)) for side in size]
    resized = pixels_3HW if wanted == size else resize(pixels_3HW, wanted, antialias=True)
    means, deviations = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (resized.float() / 255 - means) / deviations
