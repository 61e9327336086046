"""Drawn nuclei in two stains: a source with coarse classes, and a target that is stained otherwise and whose classes are finer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stillroom.engine.loading import sample_seeds
from stillroom.tasks.nuclei.maps import NucleiArrays, NucleiMap, numbered

SIDE = 48  # pixels
FINE = ("neutrophil", "epithelial", "lymphocyte", "plasma", "eosinophil", "connective")
COARSE = ("epithelial", "inflammatory", "connective")
COARSE_OF = dict(zip(FINE, ("inflammatory", "epithelial", "inflammatory", "inflammatory", "inflammatory", "connective"), strict=True))
NEW = ("neutrophil", "plasma", "eosinophil")  # that the source does not show
_COUNTS = (6, 12)  # nuclei of a picture
_TRIES = 20  # places that are drawn for a nucleus
_GROUND = np.array([0.90, 0.74, 0.84])
_ROWS, _COLUMNS = np.mgrid[:SIDE, :SIDE] + 0.5


@dataclass(frozen=True)
class Kind:
    """How nuclei of a class look.

    Attributes:
        radius: pixels, of a disc of the same area, from and to.
        ratio: of the longer to the shorter axis, from and to.
        colour: red, green, blue, from 0 to 1.
        texture: deviation of its shade.
        stripes: how strongly two bands cross it.
    """

    radius: tuple[float, float]
    ratio: tuple[float, float]
    colour: tuple[float, float, float]
    texture: float
    stripes: float


KINDS = (
    Kind((3.4, 4.4), (1.0, 1.2), (0.42, 0.28, 0.58), 0.04, 0.22),
    Kind((4.6, 6.0), (1.1, 1.4), (0.62, 0.48, 0.74), 0.06, 0.0),
    Kind((3.0, 4.0), (1.0, 1.1), (0.36, 0.22, 0.54), 0.02, 0.0),
    Kind((3.8, 4.8), (1.3, 1.6), (0.40, 0.26, 0.62), 0.10, 0.0),
    Kind((3.4, 4.4), (1.0, 1.2), (0.58, 0.24, 0.46), 0.04, 0.0),
    Kind((3.4, 4.2), (2.2, 3.2), (0.50, 0.38, 0.66), 0.04, 0.0),
)
SHARES = {"source": (0.0, 0.4, 0.3, 0.0, 0.0, 0.3), "target": (0.05, 0.35, 0.25, 0.05, 0.05, 0.25)}
_NOISE = {"source": 0.02, "target": 0.06}
_TURN, _CONTRAST = 0.9, 0.75  # of the target's hues, in radians about the greys; of its differences from the ground


def draw(count: int, seed: int, domain: str) -> NucleiArrays:
    """Pictures of 48 x 48 pixels with 6 to 12 nuclei that do not overlap.

    Args:
        count: N.
        seed: of everything in them.
        domain: ``source``, of the coarse classes, or ``target``.
    """
    found = [_picture(np.random.default_rng(one), domain) for one in sample_seeds(seed, 0, np.arange(count)).tolist()]
    coarse = np.array([0, *(1 + COARSE.index(COARSE_OF[name]) for name in FINE)])
    maps = [nuclei if domain == "target" else NucleiMap(nuclei.instances, coarse[nuclei.types]) for _, nuclei in found]
    return NucleiArrays([np.stack([pixels for pixels, _ in found])], maps.__getitem__, [str(number) for number in range(count)])


def _picture(random: np.random.Generator, domain: str) -> tuple[np.ndarray, NucleiMap]:
    instances_HW, types = np.zeros((SIDE, SIDE), np.int32), [0]
    canvas_HW3 = _GROUND + 0.03 * np.sin(random.uniform(0, 6) + (_ROWS * random.uniform(-1, 1) + _COLUMNS) / 9)[..., None]
    for kind in random.choice(len(KINDS), int(random.integers(_COUNTS[0], _COUNTS[1] + 1)), p=SHARES[domain]).tolist():
        look = KINDS[kind]
        for _ in range(_TRIES):
            (x, y), angle = random.uniform(2, SIDE - 2, 2), random.uniform(0, np.pi)
            radius, ratio = random.uniform(*look.radius), random.uniform(*look.ratio)
            along = np.cos(angle) * (_COLUMNS - x) + np.sin(angle) * (_ROWS - y)
            across = np.cos(angle) * (_ROWS - y) - np.sin(angle) * (_COLUMNS - x)
            inside_HW = (along / (radius * ratio**0.5)) ** 2 + (across * ratio**0.5 / radius) ** 2 <= 1
            if inside_HW.any() and not instances_HW[inside_HW].any():
                shade_HW = random.normal(0, look.texture, (SIDE, SIDE)) + look.stripes * np.cos(2 * np.pi * along / radius) / 2
                canvas_HW3[inside_HW] = np.array(look.colour) * random.uniform(0.9, 1.1) + shade_HW[inside_HW][:, None]
                instances_HW[inside_HW] = len(types)
                types.append(kind + 1)
                break
    if domain == "target":
        canvas_HW3 = _blurred(_GROUND + _CONTRAST * (canvas_HW3 - _GROUND)) @ _turned(_TURN)
    canvas_HW3 = canvas_HW3 + random.normal(0, _NOISE[domain], canvas_HW3.shape)
    return (canvas_HW3.clip(0, 1) * 255).round().astype(np.uint8), numbered(instances_HW, np.array(types))


def _turned(angle: float) -> np.ndarray:
    """Colours turned about the axis of greys, [3, 3]."""
    c, s = (1 - np.cos(angle)) / 3, np.sin(angle) / 3**0.5
    return np.cos(angle) * np.eye(3) + c + s * np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]])


def _blurred(canvas_HW3: np.ndarray) -> np.ndarray:
    """By a binomial filter of 3 x 3."""
    for axis in (0, 1):
        edged = np.concatenate((canvas_HW3.take([0], axis), canvas_HW3, canvas_HW3.take([-1], axis)), axis)
        before, after = (edged.take(range(start, start + SIDE), axis) for start in (0, 2))
        canvas_HW3 = (before + 2 * canvas_HW3 + after) / 4
    return canvas_HW3
