"""Pictures of products with what is wrong with each: in files or in memory, their masks beside them; and reading a mask."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from stillroom.errors import InputError
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.folders import printable
from stillroom.tasks.images.stores import FileImages, Images, MemoryImages, reason_of

if TYPE_CHECKING:
    from typing_extensions import Self

GOOD = "good"  # the kind of pictures without a defect
_LOSSY = ("JPEG", "MPO", "WEBP")  # formats in which a mask's edges have values between


class Inspected(Images, Protocol):
    """Pictures, their categories as labels, and what is wrong with them.

    Attributes:
        kinds: of each picture, `GOOD` or the name of its defect, str [N].
    """

    kinds: np.ndarray

    def mask(self, index: int) -> np.ndarray | None:
        """Where the defect is, bool [H, W] in the picture's own pixels; None of a good picture, and where it is not known."""


class InspectedFiles(FileImages):
    """Pictures in files; see `Inspected`.

    Args:
        store: where they lie.
        names: of the pictures.
        labels: the category of each, int64 [N].
        kinds: see `Inspected`.
        masks: name of each picture's mask; None where there is none.
    """

    def __init__(self, store: Store, names: Sequence[str], labels: np.ndarray, kinds: np.ndarray, masks: Sequence[str | None]) -> None:
        super().__init__(store, names, labels)
        self.kinds, self.masks = kinds, masks

    def take(self, indices: np.ndarray, labels: np.ndarray | None = None) -> Self:
        """As `MemoryImages.take`."""
        some = super().take(indices, labels)
        some.kinds, some.masks = self.kinds[indices], [self.masks[i] for i in indices.tolist()]
        return some

    def mask(self, index: int) -> np.ndarray | None:
        """As `Inspected.mask`."""
        name = self.masks[index]
        return None if name is None else read_mask(self.store, name)


class InspectedMemory(MemoryImages):
    """Pictures in memory; see `Inspected`.

    Args:
        pixels, labels, names: see `MemoryImages`; the labels are categories.
        kinds: see `Inspected`.
        masks: bool [N, H, W].
    """

    def __init__(self, pixels: Tensor, labels: np.ndarray, names: Sequence[str], kinds: np.ndarray, masks: np.ndarray) -> None:
        super().__init__(pixels, labels, names)
        self.kinds, self.masks = kinds, masks

    def take(self, indices: np.ndarray, labels: np.ndarray | None = None) -> InspectedMemory:
        """As `MemoryImages.take`."""
        some = super().take(indices, labels)
        return InspectedMemory(some.pixels, some.labels, some.names, self.kinds[indices], self.masks[indices])

    def mask(self, index: int) -> np.ndarray | None:
        """As `Inspected.mask`."""
        return None if self.kinds[index] == GOOD else self.masks[index]


def read_mask(store: Store, name: str, argument: str = "data") -> np.ndarray:
    """A mask from its file, bool [H, W]: in a lossless format whatever is not 0, as ids of defects are written (VisA); of a JPEG what is
    above 127. Of a palette of greys the greys count, of any other the numbers; transparency counts for nothing.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Image.open(io.BytesIO(store.read(name))) as image:
            lossy = image.format in _LOSSY
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode in ("RGBA", "LA", "PA", "CMYK", "YCbCr"):
                image = image.convert("RGB" if image.mode in ("RGBA", "CMYK", "YCbCr") else "L")
            values = np.asarray(image)
            if image.mode == "P":
                colours = np.asarray(image.convert("RGB"))
                grey = (colours == colours[..., :1]).all() and colours.min() == 0 < colours.max()
                values = colours[..., 0] if grey else values
    except Exception as error:  # formats' readers raise whatever they stumble over in damaged bytes
        raise InputError(argument, printable(name), f"a mask that can be read ({reason_of(error)})") from None
    values = values.max(-1) if values.ndim == 3 else values
    return values > (127 if lossy else 0)


def size_of(store: Store, name: str) -> tuple[int, int] | None:
    """Height and width of a picture in pixels, as it is shown; None where it cannot be read. Only the head is decoded."""
    try:
        with Image.open(io.BytesIO(store.read(name))) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) >= 5  # lying on its side, by EXIF
    except Exception:  # whatever a format's reader stumbles over; the picture itself will be found out as unreadable
        return None
    return (width, height) if turned else (height, width)
