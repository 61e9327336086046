"""Drawn pictures of one shape each, and captions that say what is to be seen: pairs without any download.

A shape (6), a colour (8), a size (2) and a place (4) make 384 combinations; a quarter of them is held out, so that a model has to put
together what it has never seen together. A training picture has several captions, in which the four words stand in any order, half of the
time behind a filler; a held-out one has one, in a fixed order.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

SIDE = 24
CONTEXT = 8
STATISTICS = (0.45,) * 3, (0.3,) * 3
SHAPES = ("disc", "square", "triangle", "cross", "ring", "x")
COLOURS = {
    "red": (0.9, 0.15, 0.15), "green": (0.15, 0.75, 0.2), "blue": (0.2, 0.3, 0.95), "yellow": (0.95, 0.9, 0.15),
    "magenta": (0.9, 0.2, 0.85), "cyan": (0.15, 0.85, 0.9), "white": (0.97, 0.97, 0.97), "black": (0.05, 0.05, 0.05),
}  # fmt: skip
SIZES = {"small": 3.2, "large": 5.2}  # radius in pixels
PLACES = {"topleft": (7, 7), "topright": (7, 17), "bottomleft": (17, 7), "bottomright": (17, 17)}  # row and column
FILLER = "a"
WORDS = (*SHAPES, *COLOURS, *SIZES, *PLACES, FILLER)
_JITTER = 2.0
_NOISE = 0.05
_FINE = 4  # parts of a pixel's side that its colour is the mean of
_HELD_OUT = 96
_CAPTIONS = 8  # of a training picture

Combination = tuple[str, str, str, str]  # size, colour, shape, place


def combinations(seed: int) -> tuple[list[Combination], list[Combination]]:
    """Those to train on, 288, and those that are held out, 96."""
    every = list(itertools.product(SIZES, COLOURS, SHAPES, PLACES))
    order = np.random.default_rng([seed, 0]).permutation(len(every))
    return [every[i] for i in order[_HELD_OUT:]], [every[i] for i in order[:_HELD_OUT]]


def drawn(of: list[Combination], pictures: int, seed: int) -> Tensor:
    """uint8 [C x pictures, 3, 24, 24], the pictures of a combination one after the other."""
    rng = np.random.default_rng([seed, 1])
    rows, columns = (np.mgrid[: SIDE * _FINE, : SIDE * _FINE] + 0.5) / _FINE - 0.5
    found = []
    for size, colour, shape, place in (one for one in of for _ in range(pictures)):
        centre = np.array(PLACES[place]) + rng.uniform(-_JITTER, _JITTER, 2)
        inside = _inside(shape, (rows - centre[0]) / SIZES[size], (columns - centre[1]) / SIZES[size])
        covered_HW = inside.reshape(SIDE, _FINE, SIDE, _FINE).mean((1, 3))
        ground = rng.uniform(0.35, 0.5) + rng.normal(0, _NOISE, (3, SIDE, SIDE))
        painted = np.array(COLOURS[colour])[:, None, None] * rng.uniform(0.8, 1.2)
        found.append(ground + covered_HW * (painted - ground) + rng.normal(0, _NOISE, ground.shape))
    return torch.from_numpy((np.stack(found) * 255).round().clip(0, 255).astype(np.uint8))


def _inside(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Where a shape of radius 1 or a little more around the origin is."""
    distance, square, least = np.hypot(x, y), np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
    inside: dict[str, np.ndarray] = {
        "disc": distance <= 1.05,
        "square": square <= 1,
        "triangle": (y <= 0.9) & (abs(x) <= 0.6 * (y + 1.1)),
        "cross": (square <= 1.2) & (least <= 0.28),
        "ring": (distance <= 1.15) & (distance >= 0.7),
        "x": (square <= 1.1) & (square - least <= 0.4),
    }
    return inside[shape]


def captions(of: list[Combination], pictures: int, seed: int) -> list[list[str]]:
    """Several of each training picture, the words in any order, half of the time behind the filler."""
    rng = np.random.default_rng([seed, 2])
    found = []
    for one in (one for one in of for _ in range(pictures)):
        orders = [rng.permutation(np.array(one)).tolist() for _ in range(_CAPTIONS)]
        found.append([" ".join([FILLER, *words] if rng.random() < 0.5 else words) for words in orders])
    return found
