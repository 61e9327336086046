"""Sloppy boxes made on purpose, as the benchmark makes them (section 0 of the specification): drawn once for a whole set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from stillroom.errors import InputError
from stillroom.methods.ssd_det.bags import noisy_boxes
from stillroom.tasks.detection.sources import Annotated

SEED = 45  # the benchmark's
_LEAST = 1.0  # pixels: who reads boxes leaves out smaller ones


def add_noise(boxes_N4: np.ndarray, sides_N2: np.ndarray, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes with noise, float64 [N, 4], and which of them stay as they are, bool [N]: noise would leave less than a pixel of a side.

    Args:
        boxes_N4: absolute (x1, y1, x2, y2).
        sides_N2: width and height of each one's image; a noisy box ends a pixel before, as in the benchmark.
        ratio: r, above 0 and below 1.
        seed: of NumPy's legacy generator, which draws four numbers for each box in turn.

    Raises:
        InputError: a ratio that cannot be used.
    """
    if not 0 < ratio < 1:
        raise InputError("ratio", ratio, "a number above 0 and below 1: the share of its sides that a box is moved and changed by at most")
    given = torch.from_numpy(boxes_N4.astype(np.float64))
    uniforms = torch.from_numpy(np.random.RandomState(seed).uniform(-1, 1, (len(given), 4)))
    noisy = noisy_boxes(given, uniforms, ratio, torch.from_numpy(sides_N2.astype(np.float64)) - 1)
    kept = ((noisy[:, 2:] - noisy[:, :2]) < _LEAST).any(1) | (noisy == given).all(1)
    return torch.where(kept[:, None], given, noisy).numpy(), kept.numpy()


def noised(annotated: Annotated, ratio: float, seed: int = SEED) -> Annotated:
    """The same images with noisy boxes; crowds stay as they are."""
    ends = np.cumsum([len(mine) for mine in annotated.boxes])[:-1]
    boxes, own = np.concatenate(annotated.boxes), np.concatenate(annotated.crowd) == 0
    sides = np.repeat([shape[::-1] for shape in annotated.shapes], [len(mine) for mine in annotated.boxes], axis=0)
    boxes[own], _ = add_noise(boxes[own], sides[own], ratio, seed)
    return replace(annotated, boxes=np.split(boxes, ends))
