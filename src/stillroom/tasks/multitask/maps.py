"""Dense answers as pictures: of class numbers, depth, directions, probabilities; to look at, and to be read by programs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from stillroom.tasks.images.label_maps import voc_colours
from stillroom.tasks.images.label_pictures import palette_image
from stillroom.tasks.multitask.targets import Target

_MILLIMETRES = 1000
_FARTHEST = 65535  # millimetres that sixteen bits hold


def shown(target: Target, values: np.ndarray, depths: tuple[float, float] = (0.0, 10.0)) -> Image.Image:
    """To be looked at: classes in colours (white: not known), depth from near (light) to far (dark), directions as red (right),
    green (up) and blue (towards the camera), probabilities in grey; black where nothing is known.

    Args:
        target: what it is of.
        values: [H, W] of class numbers; [1, H, W] or [3, H, W] of what is measured; of saliency and edges 0 and 1, or probabilities.
        depths: in metres, that are light and dark.
    """
    if target.kind == "classes":
        return palette_image(values.astype(np.uint8), voc_colours(len(target.classes))).convert("RGB")
    if target.kind == "normals":
        return _directions(values * np.array([1, -1, -1]).reshape(3, 1, 1))
    flat = values.reshape(values.shape[-2:]).astype(np.float64)
    if target.kind == "depth":
        near, far = depths
        return Image.fromarray(_eight_bits(1 - 0.9 * (flat - near) / max(far - near, 1e-6)))
    return Image.fromarray(_eight_bits(np.where(flat <= 1, flat, np.nan)))


def written(target: Target, values: np.ndarray) -> Image.Image:
    """For programs: classes as a palette PNG; depth in millimetres of 16 bits; directions as (n + 1) / 2 and probabilities of 8 bits."""
    if target.kind == "classes":
        return palette_image(values.astype(np.uint8), voc_colours(len(target.classes)))
    if target.kind == "depth":
        return Image.fromarray((values[0] * _MILLIMETRES).round().clip(0, _FARTHEST).astype(np.uint16))
    return _directions(values) if target.kind == "normals" else shown(target, values)


def _directions(values_3HW: np.ndarray) -> Image.Image:
    return Image.fromarray(_eight_bits(np.moveaxis(values_3HW, 0, -1) / 2 + 0.5))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    bits: np.ndarray = (np.nan_to_num(values, nan=0.0).clip(0, 1) * 255).round().astype(np.uint8)
    return bits
