"""Label maps as pictures for people: in the colours of their classes, alone and over a photo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from stillroom.tasks.images.label_maps import Colour

_OPACITY = 0.55  # of the classes' colours over a picture


def palette_image(mask_HW: np.ndarray, colours: Sequence[Colour]) -> Image.Image:
    """A mask as a palette image: index k is class k, in its colour."""
    image = Image.fromarray(mask_HW, mode="P")
    image.putpalette([channel for colour in [*colours, *[(255, 255, 255)] * (256 - len(colours))] for channel in colour])
    return image


def overlaid(image: Image.Image, mask_HW: np.ndarray, colours: Sequence[Colour]) -> Image.Image:
    """A picture with the colours of the classes over it; class 0 stays as it is where its colour is black."""
    tinted = Image.blend(image, palette_image(mask_HW, colours).convert("RGB"), _OPACITY)
    shown = (mask_HW != 0) | (tuple(colours[0]) != (0, 0, 0))
    return Image.composite(tinted, image, Image.fromarray((255 * shown).astype(np.uint8)))
