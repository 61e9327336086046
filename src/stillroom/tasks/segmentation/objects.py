"""Drawn pictures of single-coloured objects on grey grounds, with the class of every pixel: what can be segmented without any file."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.loading import sample_seeds

SIDE = 64  # pixels
SHAPES = ("disc", "square", "triangle", "cross")
TONES = {"warm": (0.0, 0.14), "cold": (0.5, 0.67)}  # hues, of a circle from 0 to 1
CLASSES = ("background", *(f"{tone} {shape}" for shape in SHAPES for tone in TONES))
_SIZES = (16, 28)  # pixels of an object's height and width
_COUNTS = (2, 3)  # objects in a picture
_TRIES = 50  # places that are drawn for an object
_ROWS, _COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float64) + 0.5


def draw(count: int, seed: int, *, objects: tuple[int, int] = _COUNTS) -> tuple[Tensor, np.ndarray, list[np.ndarray]]:
    """Pictures of a few objects that do not overlap.

    Args:
        count: N.
        seed: of everything in them.
        objects: how many are in a picture, from and to.

    Returns:
        Pixels uint8 [N, 3, 64, 64]; the class of each pixel, uint8 [N, 64, 64], 0 for the ground; and of each picture the objects' boxes
        (top, bottom, left, right), int64 [K, 4].
    """
    found = [_picture(np.random.default_rng(one), objects) for one in sample_seeds(seed, 0, np.arange(count)).tolist()]
    pixels, masks, boxes = zip(*found, strict=True)
    return torch.from_numpy(np.stack(pixels)), np.stack(masks), list(boxes)


def _picture(random: np.random.Generator, objects: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    canvas_HW3 = np.repeat(_ground(random)[..., None], 3, 2)
    mask_HW, boxes = np.zeros((SIDE, SIDE), np.uint8), []
    for _ in range(int(random.integers(objects[0], objects[1] + 1))):
        label = int(random.integers(1, len(CLASSES)))
        for _ in range(_TRIES):
            size = int(random.integers(_SIZES[0], _SIZES[1] + 1))
            top, left = random.integers(0, SIDE - size + 1, 2).tolist()
            if not mask_HW[top : top + size, left : left + size].any():
                inside_HW = _inside((label - 1) // len(TONES), top, left, size)
                low, high = list(TONES.values())[(label - 1) % len(TONES)]
                colour_3 = _rgb(random.uniform(low, high), random.uniform(0.6, 0.95), random.uniform(0.65, 0.95))
                texture_HW = random.normal(0, random.uniform(0.03, 0.12), (SIDE, SIDE))
                canvas_HW3[inside_HW] = colour_3 + texture_HW[inside_HW][:, None]
                mask_HW[inside_HW] = label
                boxes.append((top, top + size, left, left + size))
                break
    pixels = (canvas_HW3.clip(0, 1) * 255).round().astype(np.uint8)
    return np.moveaxis(pixels, 2, 0), mask_HW, np.array(boxes, np.int64).reshape(-1, 4)


def _ground(random: np.random.Generator) -> np.ndarray:
    """Noise, stripes, a gradient or a checker in grey tones, [H, W]."""
    dark, light = np.sort(random.uniform(0.15, 0.85, 2))
    kind, angle = random.integers(4), random.uniform(0, np.pi)
    along_HW = (np.cos(angle) * _COLUMNS + np.sin(angle) * _ROWS) / SIDE
    if kind == 0:
        shade_HW = random.uniform(0, 1, (SIDE, SIDE))
    elif kind == 1:
        shade_HW = 0.5 + 0.5 * np.sin(2 * np.pi * random.uniform(3, 9) * along_HW)
    elif kind == 2:
        shade_HW = (along_HW - along_HW.min()) / np.ptp(along_HW)
    else:
        cell = int(random.integers(4, 12))
        shade_HW = ((_ROWS // cell + _COLUMNS // cell) % 2).astype(np.float64)
    ground: np.ndarray = dark + (light - dark) * shade_HW + random.normal(0, 0.02, (SIDE, SIDE))
    return ground


def _inside(shape: int, top: int, left: int, size: int) -> np.ndarray:
    """Where an object is, bool [H, W]."""
    y, x = 2 * (_ROWS - top) / size - 1, 2 * (_COLUMNS - left) / size - 1  # from -1 to 1 across it
    within = np.maximum(abs(x), abs(y)) <= 1
    cross = np.minimum(abs(x), abs(y)) <= 0.36
    found: np.ndarray = within & (np.hypot(x, y) <= 1, within, abs(x) * 2 <= y + 1, cross)[shape]
    return found


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour, [3] from 0 to 1; hues from 0 to 1."""
    ramp = abs((hue + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1
    return value * (1 - saturation + saturation * ramp.clip(0, 1))
