"""Masks in image files, whatever program wrote them; and photos that must not be transparent."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from stillroom.tasks.images.folders import printable
from stillroom.tasks.images.stores import FileImages, UnreadableImage, reason_of

_LOSSY = ("JPEG", "MPO")  # formats in which the values of a mask are no longer what they were
_IDS = 16  # values below it are numbers of objects, not grey levels
_COLOUR = 32  # grey levels that channels of a mask may differ by


def read_mask(file: str | Path | IO[bytes], name: str | None = None) -> Tensor:
    """A mask as grey levels, uint8 [1, H, W], 255 where it is set; soft edges stay soft. Turned upright as its EXIF orientation says.

    Read as what they are: transparency, where there is any (of a cut-out its alpha is the mask); palettes of colours and values that are
    numbers of objects (all below 16): whatever is not 0 is set; 16 bits; JPEG, in which an edge rings: above 127 is set.

    Raises:
        UnreadableImage: it cannot be decoded, or is a coloured picture.
    """
    name = printable(str(file) if name is None else name)
    try:
        with Image.open(file) as opened:
            lossy = opened.format in _LOSSY
            levels = _levels(ImageOps.exif_transpose(opened), name)
    except FileNotFoundError:
        raise UnreadableImage(f"{name}: no such file") from None
    except UnreadableImage:
        raise
    except Exception as error:  # formats' readers raise whatever they stumble over in damaged bytes
        raise UnreadableImage(f"{name}: not a readable mask ({reason_of(error)})") from None
    if lossy:
        levels = np.where(levels > 127, 255, 0)
    elif levels.max(initial=0) < _IDS:
        levels = np.where(levels > 0, 255, 0)
    return torch.from_numpy(levels.astype(np.uint8))[None]


def _levels(image: Image.Image, name: str) -> np.ndarray:
    if (alpha := _alpha(image)) is not None:
        return alpha
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        return values >> 8 if values.max(initial=0) > 255 else values
    if image.mode == "F":
        raise UnreadableImage(f"{name}: a mask of floating-point values; save it with 8 bits")
    colours = np.asarray(image.convert("RGB")).astype(np.int64)
    if np.ptp(colours, axis=2).max(initial=0) <= _COLOUR:
        return colours[..., 1]
    if image.mode == "P":
        return np.where(np.asarray(image) > 0, 255, 0)
    raise UnreadableImage(f"{name}: a coloured picture; a mask has one channel")


def _alpha(image: Image.Image) -> np.ndarray | None:
    """Opacity, 255 where nothing shines through; None where all of the image is opaque."""
    if not image.has_transparency_data:
        return None
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return alpha if alpha.min(initial=255) < 255 else None


class OpaqueFiles(FileImages):
    """Images in files, of which those that are transparent in parts cannot be read: what colour shines through there is not known."""

    def _decoded(self, name: str, *, coarse: bool = False) -> Image.Image:
        image = super()._decoded(name, coarse=coarse)
        check_opaque(io.BytesIO(self.store.read(name)), name)
        return image


def check_opaque(file: str | Path | IO[bytes], name: str | None = None) -> None:
    """Raises UnreadableImage where an image, which can be decoded, is transparent in parts."""
    with Image.open(file) as image:
        if _alpha(image) is not None:
            told = "it is transparent in parts, and what lies behind is not known; flatten it, and give its alpha as the mask"
            raise UnreadableImage(f"{printable(str(file) if name is None else name)}: {told}")
