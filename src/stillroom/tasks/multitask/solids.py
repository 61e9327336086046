"""Drawn scenes with exact labels, depth, normals and edges: what can be learnt without any file."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.loading import sample_seeds

CLASSES = ("background", *(f"{skin} {shape}" for shape in ("sphere", "rectangle", "cylinder") for skin in ("plain", "striped")))
PIXEL = 0.06  # metres
_NEAREST = 0.5  # metres
_COUNTS = (2, 5)  # objects of a scene
_SIZES = (5.0, 11.0)  # pixels: radius of a sphere, half a side of a rectangle, radius or half the length of a cylinder
_LIGHT = np.array([-0.45, -0.6, -0.66])  # towards the light; x right, y down, z forward


def draw(count: int, side: int, seed: int) -> tuple[Tensor, dict[str, np.ndarray]]:
    """Tilted planes with a few objects before them, seen along z without perspective.

    Args:
        count: N.
        side: S, pixels.
        seed: of everything in them.

    Returns:
        Pixels uint8 [N, 3, S, S]; and by the targets' names: ``semseg`` and ``edges`` uint8 [N, S, S], ``depth`` float32 [N, 1, S, S] in
        metres, ``normals`` float32 [N, 3, S, S] towards the camera.
    """
    found = [_scene(np.random.default_rng(one), side) for one in sample_seeds(seed, 0, np.arange(count)).tolist()]
    pixels, *truths = (np.stack(parts) for parts in zip(*found, strict=True))
    return torch.from_numpy(pixels), dict(zip(("semseg", "depth", "normals", "edges"), truths, strict=True))


def _scene(random: np.random.Generator, side: int) -> tuple[np.ndarray, ...]:
    y, x = np.mgrid[:side, :side] * 1.0
    slope = random.uniform(-0.5, 0.5, 2)
    depth = 5 + PIXEL * (slope[0] * (x - side / 2) + slope[1] * (y - side / 2))
    normals = np.broadcast_to(_unit(np.array([*slope, -1.0]))[:, None, None], (3, side, side)).copy()
    label, owner = np.zeros((side, side), np.uint8), np.zeros((side, side), np.int64)
    albedo = np.broadcast_to(random.uniform(0.3, 0.8, (3, 1, 1)), (3, side, side)).copy()
    for number in range(1, int(random.integers(_COUNTS[0], _COUNTS[1] + 1)) + 1):
        shape, striped = int(random.integers(3)), int(random.integers(2))
        height, normal, inside = _object(random, shape, x - random.uniform(4, side - 4), y - random.uniform(4, side - 4))
        nearest = depth[inside].min(initial=5.0)
        z = nearest - random.uniform(0.05, 0.3) + PIXEL * (height - height[inside].max(initial=0))
        depth[inside], label[inside], owner[inside] = z[inside], 1 + 2 * shape + striped, number
        normals[:, inside] = normal[:, inside]
        colour, other = random.uniform(0.2, 1.0, (2, 3, 1, 1))
        angle, period = random.uniform(0, np.pi), random.uniform(3, 5)
        stripes = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period) > 0
        skin = np.where(stripes & bool(striped), 1 - colour if striped else other, colour)
        albedo[:, inside] = skin[:, inside]
    depth += max(0.0, _NEAREST - float(depth.min()))
    light = _unit(_LIGHT)
    shade = (0.35 + 0.65 * np.einsum("chw,c->hw", normals, light).clip(0)) * (1.15 - 0.05 * depth)
    image = albedo * shade + random.normal(0, 0.06, (3, side, side))
    edges = changes(owner).astype(np.uint8)
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels, label, depth[None].astype(np.float32), normals.astype(np.float32), edges


def _object(random: np.random.Generator, shape: int, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth in pixels, up to a constant, [S, S]; normals [3, S, S]; and where the object is, bool [S, S]. x and y count from its centre."""
    size, other = random.uniform(*_SIZES, 2)
    angle = random.uniform(0, np.pi)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    if shape == 1:
        slope = random.uniform(-0.8, 0.8, 2)
        normal = np.broadcast_to(_unit(np.array([*slope, -1.0]))[:, None, None], (3, *x.shape))
        return slope[0] * x + slope[1] * y, normal, (abs(along) < size) & (abs(across) < 0.7 * other)
    off = across if shape else np.hypot(x, y)
    inside = (abs(off) < (0.7 * size if shape else size)) & (abs(along) < other + size * (1 - bool(shape)))
    radius = 0.7 * size if shape else size
    bulge = np.sqrt((radius**2 - off**2).clip(0))
    sides = np.stack((-np.sin(angle) * across, np.cos(angle) * across)) if shape else np.stack((x, y))
    return -bulge, np.concatenate((sides, -bulge[None])) / radius, inside


def _unit(vector: np.ndarray) -> np.ndarray:
    unit: np.ndarray = vector / np.linalg.norm(vector)
    return unit


def changes(numbers_HW: np.ndarray) -> np.ndarray:
    """Where a map of numbers differs from its right or its lower neighbour, bool [H, W]."""
    found = np.zeros(numbers_HW.shape, bool)
    found[:, :-1] |= numbers_HW[:, :-1] != numbers_HW[:, 1:]
    found[:-1] |= numbers_HW[:-1] != numbers_HW[1:]
    return found
