"""Procedural scenes: shapes with textures before a wavy background, with tight boxes. Drawn in seconds from a seed; no download.

Six classes (disc, rectangle, triangle; each solid or hollow), of which class k is drawn with a share proportional to 1 / (1 + k): rare
classes are part of the task. Colour and opacity say nothing about the class. Plain scenes are easier, and their classes are as frequent.
"""

from __future__ import annotations

import numpy as np

CLASSES = ("disc", "rectangle", "triangle", "hollow disc", "hollow rectangle", "hollow triangle")
_PRIOR = np.array([1 / (1 + rank) for rank in range(len(CLASSES))])
_SHARES = _PRIOR / sum(_PRIOR.tolist())
_FEWEST, _MOST, _TRIES = 1, 4, 20  # objects of a scene; one that finds no place in so many tries is left out
_MAX_OVERLAP = 0.25  # IoU with an object that is already there


Drawn = tuple[np.ndarray, np.ndarray, np.ndarray]


def make_scenes(count: int, *, size: int = 48, seed: int = 0, plain: bool = False) -> list[Drawn]:
    """Draws scenes; scene i depends on (seed, i) alone. Objects are a sixth to a half of the image wide and high.

    Args:
        count: how many.
        size: height and width S in pixels, at least 12.
        seed: of everything.
        plain: opaque objects in strong colours before a nearly flat background, of each class as many: for detectors that learn slowly.

    Returns:
        Of each: pixels uint8 [S, S, 3]; tight boxes float32 [G, 4], absolute (x1, y1, x2, y2); labels int64 [G], index into `CLASSES`.
    """
    return [_scene(np.random.default_rng((seed, i)), size, plain) for i in range(count)]


def _scene(random: np.random.Generator, size: int, plain: bool) -> Drawn:
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    angle, frequency, phase = random.uniform(0, 2 * np.pi, 3), random.uniform(0.05, 0.3, 3), random.uniform(0, 2 * np.pi, 3)
    waves = [np.sin(f * (np.cos(a) * columns + np.sin(a) * rows) + p) for a, f, p in zip(angle, frequency, phase, strict=True)]
    image = random.normal(0.45, 0.06, (size, size, 3)) + (0.05 if plain else 0.15) * np.stack(waves, -1)
    boxes: list[np.ndarray] = []
    labels: list[int] = []
    for _ in range(random.integers(_FEWEST, _MOST + 1)):
        label = int(random.integers(len(CLASSES)) if plain else random.choice(len(CLASSES), p=_SHARES))
        for _ in range(_TRIES):
            width, height = random.integers(size // 6, size // 2 + 1, 2)
            left, top = random.integers(0, size - width + 1), random.integers(0, size - height + 1)
            mask = _mask(label, rows, columns, left, top, width, height)
            there = np.argwhere(mask)
            (y1, x1), (y2, x2) = there.min(0), there.max(0) + 1
            box = np.array([x1, y1, x2, y2], np.float32)
            if all(_iou(box, other) <= _MAX_OVERLAP for other in boxes):
                opacity = random.uniform(0.85, 1.0) if plain else random.uniform(0.45, 0.9)
                colour = random.permutation([0.05, 0.95, random.uniform(0, 1)]) if plain else random.uniform(0, 1, 3)
                image[mask] = (1 - opacity) * image[mask] + opacity * colour
                boxes.append(box)
                labels.append(label)
                break
    image += random.normal(0, 0.05, image.shape)
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


def _mask(label: int, rows: np.ndarray, columns: np.ndarray, left: int, top: int, width: int, height: int) -> np.ndarray:
    """Where the shape is; a hollow one is a frame about a quarter of its half-width thick, at least one pixel."""
    # From -1 to 1 across the object, at the pixels' centres.
    x, y = 2 * (columns + 0.5 - left) / width - 1, 2 * (rows + 0.5 - top) / height - 1
    shape, hollow = label % 3, label >= 3
    reach = (np.hypot(x, y), np.maximum(abs(x), abs(y)), np.maximum(y, abs(x) * 2 - y - 1 + 1e-6))[shape]
    mask = reach <= 1
    if hollow:
        mask &= reach > 1 - max(0.35, 2.5 / min(width, height))
    return mask


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    inner = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    overlap = float(np.prod(inner.clip(0)))
    return overlap / (float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - overlap)
