"""Compositional pictures: every class is a shape, a hue and a texture, so that each shares two of the three with many others.

5 shapes (disc, square, triangle, cross, ring) x 4 hues x 3 textures (plain, vertical and horizontal stripes) are 60 classes of 16x16
pictures. Centre, radius, rotation, saturation, brightness, background and noise are random; every picture is a function of its
number and the seed alone and always the same.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.loading import sample_order, sample_seeds, uniforms
from stillroom.tasks.images.stores import MemoryImages

SIZE = 16
SHAPES = ("disc", "square", "triangle", "cross", "ring")
HUES = ("red", "lime", "cyan", "violet")  # at 0, 1/4, 1/2 and 3/4 of the colour circle
TEXTURES = ("plain", "vertical", "horizontal")
_HUE_SPREAD = 0.045  # standard deviation, of the circle
_NOISE = 0.12  # standard deviation of each channel, for pixels in [0, 1]
_DARK = 0.3  # what the dark half of a stripe is multiplied by
_PERIOD = 4.0  # pixels from one stripe to the next
_TRAIN, _VAL, _ORDER = 1, 2, 3


def class_names() -> tuple[str, ...]:
    """Names such as "violet vertical ring", 60 of them, in an order that mixes shapes, hues and textures."""
    every = [f"{hue} {texture} {shape}" for shape, hue, texture in itertools.product(SHAPES, HUES, TEXTURES)]
    return tuple(every[kind] for kind in _kinds())


def shape_images(per_class: int, *, val: bool = False, seed: int = 0) -> MemoryImages:
    """So many pictures of each class, class after class. Those of validation are others; more of them begin with the fewer.

    Another `seed` draws other pictures of the same classes: what is tried out on them has not seen those of seed 0.
    """
    names = class_names()
    labels = np.repeat(np.arange(len(names)), per_class)
    number = np.tile(np.arange(per_class), len(names))
    seeds = sample_seeds(_VAL if val else _TRAIN, seed, number * len(names) + labels)
    folder = f"shapes/{f'seed{seed}/' if seed else ''}{'val' if val else 'train'}"
    return MemoryImages(
        _painted(_kinds()[labels], seeds), labels, [f"{folder}/{names[c]}/{i}" for c, i in zip(labels, number, strict=True)]
    )


def _kinds() -> np.ndarray:
    """The combination of shape, hue and texture that each class is."""
    return sample_order(_ORDER, 0, len(SHAPES) * len(HUES) * len(TEXTURES))


def _painted(kinds_N: np.ndarray, seeds_N: np.ndarray) -> Tensor:
    """uint8 [N, 3, 16, 16]."""
    shapes_N, hues_N, textures_N = np.unravel_index(kinds_N, (len(SHAPES), len(HUES), len(TEXTURES)))
    draws = uniforms(seeds_N, 12 + 6 * SIZE**2)
    scalars, pixels = draws[:, :12], draws[:, 12:]
    centre = (SIZE - 1) / 2 + 4 * scalars[:, :2] - 2
    radius, angle = 4.2 + 2 * scalars[:, 2], 0.7 * scalars[:, 3] - 0.35
    hue = hues_N / len(HUES) + _HUE_SPREAD * _normal(scalars[:, 4:6])[:, 0]
    colour_N3 = _rgb(hue, 0.35 + 0.55 * scalars[:, 6], 0.5 + 0.45 * scalars[:, 7])

    rows, columns = np.mgrid[:SIZE, :SIZE]
    down, right = (axis[None] - centre[:, i, None, None] for i, axis in enumerate((rows, columns)))
    cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    x, y = cosine * right + sine * down, cosine * down - sine * right  # along the picture's own axes
    cover = np.clip(_inside(shapes_N, x, y, radius[:, None, None]) + 0.5, 0, 1)
    across = np.where((textures_N == 1)[:, None, None], x, y) / _PERIOD + scalars[:, 8, None, None]
    dark = (textures_N > 0)[:, None, None] & (across % 1 < 0.5)
    paint = colour_N3[:, :, None, None] * np.where(dark, _DARK, 1.0)[:, None]
    image = cover[:, None] * paint + (1 - cover[:, None]) * scalars[:, 9:12, None, None]
    image += _NOISE * _normal(pixels).reshape(image.shape)
    return torch.from_numpy((image.clip(0, 1) * 255).round().astype(np.uint8))


def _inside(shapes_N: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How many pixels each point lies inside its shape's edge, [N, 16, 16]; negative outside."""
    distance, wide, narrow = np.hypot(x, y), 0.85 * radius, 0.34 * radius
    by_shape = (
        radius - distance,
        wide - np.maximum(abs(x), abs(y)),
        np.minimum(0.5 * radius - y, 0.5 * (y + radius) - (3**0.5 / 2) * abs(x)),
        np.maximum(np.minimum(radius - abs(x), narrow - abs(y)), np.minimum(narrow - abs(x), radius - abs(y))),
        0.25 * radius - abs(distance - 0.75 * radius),
    )
    return np.choose(shapes_N[:, None, None], by_shape)


def _rgb(hue_N: np.ndarray, saturation_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
    """[N, 3] in [0, 1]; the hue in turns of the colour circle."""
    sixth = (np.array([5, 3, 1]) + 6 * hue_N[:, None]) % 6
    return value_N[:, None] * (1 - saturation_N[:, None] * np.clip(np.minimum(sixth, 4 - sixth), 0, 1))


def _normal(draws: np.ndarray) -> np.ndarray:
    """Box and Muller: [N, 2 M] uniform numbers to [N, M] normal ones."""
    radius, turn = np.split(draws, 2, axis=1)
    return np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * turn)
