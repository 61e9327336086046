"""Drawn textures with and without defects: data for experiments of minutes, of which every defect's place is known.

Four kinds of 64 x 64 pixels: ``weave`` (a product of sines), ``wood`` (warped vertical stripes with grain), ``stone`` (smoothed noise) and
``tiles`` (a checkerboard of 8 pixels), each in a tint of its own; their frequencies vary by 4 %, their phases are random, and every pixel
has noise. A defect is a stain of another colour, a thin scratch, a place that is blurred, one that is turned, or one into which another
texture is blended. Every picture is a function of its number and the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stillroom.tasks.anomaly.inspected import GOOD, InspectedMemory

CATEGORIES = ("weave", "wood", "stone", "tiles")
DEFECTS = ("stain", "scratch", "blur", "turned", "foreign")
SIZE = 64
_TINTS = np.array([[0.85, 0.75, 0.55], [0.75, 0.5, 0.3], [0.6, 0.62, 0.66], [0.5, 0.65, 0.6]])
_JITTER = 0.04  # of frequencies
_NOISE = 0.02  # standard deviation of a pixel's channel, for pixels in [0, 1]
_TRAIN, _GOOD, _BAD = 0, 1, 2  # streams of pictures


def textures(names: Sequence[str], train: int, test: int, seed: int) -> tuple[InspectedMemory, InspectedMemory]:
    """Good pictures to train on, and to test on as many good ones as anomalous ones.

    Args:
        names: some of `CATEGORIES`; they are the labels' meaning, in this order.
        train: good pictures of each to train on.
        test: good pictures of each, and anomalous ones, to test on.
        seed: of all of them.
    """
    kinds = [CATEGORIES.index(name) for name in names]
    training = [(label, kind, _TRAIN, i) for label, kind in enumerate(kinds) for i in range(train)]
    testing = [(label, kind, stream, i) for label, kind in enumerate(kinds) for stream in (_GOOD, _BAD) for i in range(test)]
    return _drawn(training, names, seed), _drawn(testing, names, seed)


def _drawn(wanted: Sequence[tuple[int, int, int, int]], names: Sequence[str], seed: int) -> InspectedMemory:
    pictures, masks, kinds, called = [], [], [], []
    for label, kind, stream, number in wanted:
        rng = np.random.default_rng((seed, kind, stream, number))
        picture, mask, defect = _texture(kind, rng), np.zeros((SIZE, SIZE), bool), GOOD
        if stream == _BAD:
            defect = DEFECTS[number % len(DEFECTS)]
            picture, mask = _spoiled(picture, kind, defect, rng)
        noisy = picture + rng.normal(0, _NOISE, picture.shape)
        pictures.append((noisy.clip(0, 1) * 255).round().astype(np.uint8))
        masks.append(mask)
        kinds.append(defect)
        called.append(f"textures/{names[label]}/{('train', 'test', 'test')[stream]}/{defect}/{number}")
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    labels = np.array([label for label, *_ in wanted], np.int64)
    return InspectedMemory(pixels, labels, called, np.array(kinds), np.stack(masks))


def _texture(kind: int, rng: np.random.Generator) -> np.ndarray:
    """A good picture, [64, 64, 3] in [0, 1]."""
    from scipy.ndimage import gaussian_filter

    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    frequency = 1 + rng.uniform(-_JITTER, _JITTER, 2)
    phase = rng.uniform(0, 2 * np.pi, 3)
    if CATEGORIES[kind] == "weave":
        value = 0.5 + 0.5 * np.sin(2 * np.pi * frequency[0] * x / 8 + phase[0]) * np.sin(2 * np.pi * frequency[1] * y / 8 + phase[1])
    elif CATEGORIES[kind] == "wood":
        warp = 3 * np.sin(2 * np.pi * y / 48 + phase[0]) + 1.5 * np.sin(2 * np.pi * y / 21 + phase[1])
        grain = gaussian_filter(rng.normal(0, 1, (SIZE, SIZE)), (4, 0.5))
        value = 0.6 + 0.3 * np.sin(2 * np.pi * frequency[0] * (x + warp) / 12 + phase[2]) + 0.3 * grain
    elif CATEGORIES[kind] == "stone":
        fine, coarse = (gaussian_filter(rng.normal(0, 1, (SIZE, SIZE)), sigma * frequency[0], mode="wrap") for sigma in (1.2, 4.0))
        value = 0.6 + 0.12 * fine / fine.std() + 0.1 * coarse / coarse.std()
    else:
        shift = rng.integers(0, 16, 2)
        value = np.where(((y + shift[0]) // 8 + (x + shift[1]) // 8) % 2 > 0, 0.85, 0.45)
    return (value[..., None] * _TINTS[kind]).clip(0, 1)


def _spoiled(picture: np.ndarray, kind: int, defect: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The picture with a defect, and where it is, bool [64, 64]."""
    from scipy.ndimage import gaussian_filter

    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    centre, radius = rng.uniform(16, SIZE - 16, 2), rng.uniform(4, 9, 2)
    angle = rng.uniform(0, np.pi)
    along = (x - centre[1]) * np.cos(angle) + (y - centre[0]) * np.sin(angle)
    across = -(x - centre[1]) * np.sin(angle) + (y - centre[0]) * np.cos(angle)
    if defect == "scratch":
        mask = (np.abs(across) < 0.9) & (np.abs(along) < rng.uniform(8, 16))
    elif defect == "stain":
        mask = (along / radius[0]) ** 2 + (across / radius[1]) ** 2 < 1
    else:
        top, left = (centre - 7).astype(int)
        mask = (y >= top) & (y < top + 14) & (x >= left) & (x < left + 14)
    if defect == "scratch":
        other = np.full_like(picture, rng.choice([0.15, 0.95]))
    elif defect == "stain":
        other = 0.5 * picture + 0.5 * rng.uniform(0, 1, 3)
    elif defect == "blur":
        other = gaussian_filter(picture, (2.5, 2.5, 0))
    elif defect == "turned":
        other = picture.copy()
        other[top : top + 14, left : left + 14] = np.rot90(picture[top : top + 14, left : left + 14])
    else:
        other = 0.5 * picture + 0.5 * _texture((kind + 1 + int(rng.integers(3))) % 4, rng)
    return np.where(mask[..., None], other, picture), mask
