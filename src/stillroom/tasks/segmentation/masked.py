"""Pictures with the class of every pixel: in files or in memory; and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from stillroom.errors import InputError
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.stores import FileImages, Images, MemoryImages

if TYPE_CHECKING:
    from typing_extensions import Self

ReadMask = Callable[[str], np.ndarray]  # name of a file -> uint8 [H, W]


class MaskedImages(Images, Protocol):
    """Pictures, whose labels are all 0, and their masks."""

    def take(self, indices: np.ndarray) -> MaskedImages:
        """The pictures of the given indices, renumbered from 0."""

    def mask(self, index: int) -> np.ndarray:
        """The class of each pixel, uint8 [H, W] in the picture's own size; `IGNORE` where it counts nowhere."""


class MaskedFiles(FileImages):
    """Pictures in files; see `MaskedImages`.

    Args:
        store: where they lie.
        names: of the pictures.
        masks: names of their masks.
        read: a mask of such a name.
    """

    def __init__(self, store: Store, names: Sequence[str], masks: Sequence[str], read: ReadMask) -> None:
        super().__init__(store, names, np.zeros(len(names), np.int64))
        self.masks, self._read = list(masks), read

    def take(self, indices: np.ndarray, labels: np.ndarray | None = None) -> Self:
        """As `MemoryImages.take`."""
        some = super().take(indices, labels)
        some.masks = [self.masks[i] for i in indices.tolist()]
        return some

    def mask(self, index: int) -> np.ndarray:
        """As `MaskedImages.mask`."""
        return self._read(self.masks[index])


class MaskedMemory(MemoryImages):
    """Pictures in memory; see `MaskedImages`.

    Args:
        pixels: uint8 [N, 3, H, W].
        masks: uint8 [N, H, W].
        names: of the pictures.
    """

    def __init__(self, pixels: Tensor, masks: np.ndarray, names: Sequence[str]) -> None:
        super().__init__(pixels, np.zeros(len(pixels), np.int64), names)
        self.masks = masks

    def take(self, indices: np.ndarray, labels: np.ndarray | None = None) -> MaskedMemory:
        """As `MemoryImages.take`."""
        some = super().take(indices, labels)
        return MaskedMemory(some.pixels, self.masks[indices], some.names)

    def mask(self, index: int) -> np.ndarray:
        """As `MaskedImages.mask`."""
        found: np.ndarray = self.masks[index]
        return found


def mask_of(images: Images, index: int, size: tuple[int, int]) -> np.ndarray | None:
    """The mask of a picture of this height and width; None of a set without masks.

    Raises:
        InputError: it has another size.
    """
    if not hasattr(images, "mask"):
        return None
    mask_HW: np.ndarray = images.mask(index)
    if mask_HW.shape != size:
        got = f"{images.name(index)} of {size[1]} x {size[0]} pixels, whose mask has {mask_HW.shape[1]} x {mask_HW.shape[0]}"
        raise InputError("data", got, "masks of their pictures' sizes")
    return mask_HW


def size_of(image: Tensor | Image.Image) -> tuple[int, int]:
    """Height and width in pixels."""
    return (image.height, image.width) if isinstance(image, Image.Image) else (int(image.shape[1]), int(image.shape[2]))


class SegmentationBatch(NamedTuple):
    """Pictures to train on, cut to one size.

    Attributes:
        images: float32 [B, 3, S, S], normalised.
        masks: uint8 [B, S, S], the class of each pixel, `IGNORE` where it counts nowhere or is not known.
        ids: int64 [B], each picture's index in its data set.
        views: int64 [B], which recorded view each picture is in (see `ImageSetData.replaying`); None for others.
    """

    images: Tensor
    masks: Tensor
    ids: Tensor
    views: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """What a network reads."""
        return self.images


class WholeBatch(NamedTuple):
    """Whole pictures of any sizes to be measured on, by sliding windows.

    Attributes:
        images: float32 [3, H, W] each, normalised, resized for the network.
        masks: uint8 [H', W'] each, of the picture's own size.
        ids: int64 [B].
        window, stride: of the windows, in pixels.
    """

    images: Sequence[Tensor]
    masks: Sequence[Tensor]
    ids: Tensor
    window: int
    stride: int

    @property
    def inputs(self) -> Sequence[Tensor]:
        """The pictures."""
        return self.images
