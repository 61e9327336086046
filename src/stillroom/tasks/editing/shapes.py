"""Drawn pictures whose edit can be checked: a coloured shape on a two-tone ground, 16 x 16 (the specification's small experiment)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stillroom.tasks.images.stores import MemoryImages

SIZE = 16
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
PROTOTYPES = torch.tensor(  # of each colour, in [-1, 1]
    [[0.8, -0.7, -0.7], [-0.7, 0.6, -0.7], [-0.7, -0.5, 0.9], [0.8, 0.7, -0.7], [0.8, -0.6, 0.8], [-0.7, 0.7, 0.8]]
)
_JITTER, _NOISE = 0.08, 0.02
_AREA = 0.20, 0.45  # share of the picture that a shape covers


@dataclass(frozen=True)
class Drawn:
    """Pictures and what is known of them, because they were drawn.

    Attributes:
        images: uint8, with the colour as label.
        masks_NHW: bool, where the shape is.
        grounds_NCHW: uint8 [N, 3, 16, 16], the picture without the shape and without noise.
    """

    images: MemoryImages
    masks_NHW: Tensor
    grounds_NCHW: Tensor

    def take(self, indices: np.ndarray) -> Drawn:
        """Some of them."""
        return Drawn(self.images.take(indices), self.masks_NHW[indices], self.grounds_NCHW[indices])


def drawn_shapes(count: int, seed: int) -> Drawn:
    """`count` pictures, as many of each colour as of any other: a disc, a square, a triangle or a cross of 20 to 45 % of the picture, at a
    random place in a slightly varied colour, on a ground that runs from one dull tone to another; noise of standard deviation 0.02.

    Args:
        count: N.
        seed: of everything that is drawn.
    """
    rng = np.random.default_rng((8, seed))
    labels_N = np.arange(count) % len(COLOURS)
    masks_NHW = np.stack([_shape(rng) for _ in range(count)]) if count else np.zeros((0, SIZE, SIZE), bool)
    tones = rng.uniform(-0.35, 0.35, (count, 1, 3)) + rng.uniform(-0.12, 0.12, (count, 2, 3))
    angle_N = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    rows, columns = np.mgrid[:SIZE, :SIZE] / (SIZE - 1) - 0.5
    blend_NHW = (0.5 + (np.cos(angle_N) * rows + np.sin(angle_N) * columns) / np.sqrt(2)).clip(0, 1)[..., None]
    grounds = tones[:, 0, None, None] * blend_NHW + tones[:, 1, None, None] * (1 - blend_NHW)
    colours = PROTOTYPES.numpy()[labels_N] + rng.normal(0, _JITTER, (count, 3))
    pictures = np.where(masks_NHW[..., None], colours[:, None, None], grounds) + rng.normal(0, _NOISE, grounds.shape)
    images = MemoryImages(_bytes(pictures), labels_N.astype(np.int64), [f"drawn/{seed}/{i}" for i in range(count)])
    return Drawn(images, torch.from_numpy(masks_NHW), _bytes(grounds))


def _bytes(pictures_NHWC: np.ndarray) -> Tensor:
    """Pictures in [-1, 1] as uint8 [N, 3, H, W]."""
    levels = ((pictures_NHWC.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    return torch.from_numpy(levels).permute(0, 3, 1, 2).contiguous()


def _shape(rng: np.random.Generator) -> np.ndarray:
    """Where one shape is, bool [16, 16]; drawn again until its area is within bounds."""
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    while True:
        kind, half = rng.integers(4), rng.uniform(3.5, 7)
        y, x = rows - rng.uniform(half, SIZE - half), columns - rng.uniform(half, SIZE - half)
        inside = np.maximum(abs(x), abs(y)) < half
        if kind == 0:
            inside = np.hypot(x, y) < half
        elif kind == 2:
            inside &= abs(x) < (y + half) / 2
        elif kind == 3:
            inside &= np.minimum(abs(x), abs(y)) < half / 2.5
        if _AREA[0] <= inside.mean() <= _AREA[1]:
            return np.asarray(inside)
