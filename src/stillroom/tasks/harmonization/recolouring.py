"""Other colours for a part of a photo, as another light would give it: what composites are made with, and what harmonization takes back.

Everything that is drawn is a pure function of seeds, one for each picture.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.loading import uniforms

_LOST = float(np.finfo(np.float32).eps)  # share of the largest singular value; smaller ones are dropped
_NORMALS = 14  # numbers that a light is drawn from
# The 24 patches of a ColorChecker chart in sRGB.
_CHART = np.array(
    [
        (115, 82, 68), (194, 150, 130), (98, 122, 157), (87, 108, 67), (133, 128, 177), (103, 189, 170),
        (214, 126, 44), (80, 91, 166), (193, 90, 99), (94, 60, 108), (157, 188, 64), (224, 163, 46),
        (56, 61, 150), (70, 148, 73), (175, 54, 60), (231, 199, 31), (187, 86, 149), (8, 133, 161),
        (243, 243, 242), (200, 200, 200), (160, 160, 160), (122, 122, 121), (85, 85, 85), (52, 52, 52),
    ]
)  # fmt: skip

COLOURS = ("random", "chart")  # how a foreground is given another light


# Random lights --------------------------------------------------------------------------------------------------------------------------


def relit(images_B3HW: Tensor, seeds: np.ndarray) -> Tensor:
    """Pictures in [0, 1] under a random light each: gamma exp(N(0, 0.3)), colours mixed by I + N(0, 0.05), gains exp(N(0, 0.25)) of each
    channel and exp(N(0, 0.2)) of all, clipped.

    Source: the specification's small-scale experiment.
    """
    numbers = torch.from_numpy(_normals(seeds, _NORMALS)).to(images_B3HW.dtype)
    gamma_B = (0.3 * numbers[:, 0]).exp()
    mixing_B33 = torch.eye(3, dtype=numbers.dtype) + 0.05 * numbers[:, 1:10].view(-1, 3, 3)
    gains_B3 = (0.25 * numbers[:, 10:13] + 0.2 * numbers[:, 13:]).exp()
    mixed = torch.einsum("bij,bjhw->bihw", mixing_B33, images_B3HW ** gamma_B[:, None, None, None])
    return (gains_B3[:, :, None, None] * mixed).clamp(0, 1)


def _normals(seeds: np.ndarray, count: int) -> np.ndarray:
    """Standard normal numbers, float64 [B, count]."""
    radius, angle = np.split(uniforms(seeds, 2 * count), 2, axis=1)
    return np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)


# Colour maps between lights -------------------------------------------------------------------------------------------------------------


def colour_terms(colours_N3: np.ndarray) -> np.ndarray:
    """[r, g, b, rg, rb, gb, r^2, g^2, b^2, rgb, 1] of each colour, float64 [N, 11]."""
    r, g, b = colours_N3.astype(np.float64).T
    return np.stack([r, g, b, r * g, r * b, g * b, r * r, g * g, b * b, r * g * b, np.ones_like(r)], axis=1)


def colour_map(source_P3: np.ndarray, target_P3: np.ndarray) -> np.ndarray:
    """The polynomial that turns a chart's colours under one light into those under another: coefficients [11, 3], by least squares.

    Args:
        source_P3, target_P3: the same patches under both lights, values on the scale of 0 to 255.

    Source: ccHarmony's construction. The solution is that of minimum norm without singular values under float32's epsilon.
    """
    return np.linalg.lstsq(colour_terms(source_P3), target_P3.astype(np.float64), rcond=_LOST)[0]


def mapped_colours(colours: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """The colours [..., 3] under the other light, clipped to 0 .. 255 and truncated to whole numbers, uint8."""
    found = colour_terms(colours.reshape(-1, 3)) @ coefficients
    return found.clip(0, 255).astype(np.uint8).reshape(colours.shape)


def mapped(images_B3HW: Tensor, seeds: np.ndarray) -> Tensor:
    """Pictures in [0, 1] from one random light to the chart's own and on to another, each by the polynomial of a colour chart."""
    chart_133 = torch.from_numpy(_CHART.T.copy())[None, :, None].double() / 255
    pairs = [255 * relit(chart_133.expand(len(seeds), -1, -1, -1), seeds + more)[:, :, 0].mT.numpy() for more in (1, 2)]
    found = []
    for image_3HW, before_P3, after_P3 in zip(images_B3HW, *pairs, strict=True):
        colours = (image_3HW.movedim(0, -1).numpy() * 255).round()
        standard = mapped_colours(colours, colour_map(before_P3, _CHART))
        found.append(torch.from_numpy(mapped_colours(standard, colour_map(_CHART, after_P3))).movedim(-1, 0))
    return torch.stack(found).to(images_B3HW.dtype) / 255


def composites(images_B3HW: Tensor, masks_B1HW: Tensor, seeds: np.ndarray, colours: str) -> Tensor:
    """Pictures in [0, 1] whose foreground has another light; where the mask is 0 they stay as they are.

    Args:
        images_B3HW, masks_B1HW: real photos and masks from 0 to 1.
        seeds: of the lights, int64 [B].
        colours: one of `COLOURS`: ``random`` (`relit`) or ``chart`` (`mapped`).
    """
    changed = mapped(images_B3HW, seeds) if colours == "chart" else relit(images_B3HW, seeds)
    return torch.where(masks_B1HW > 0, masks_B1HW * changed + (1 - masks_B1HW) * images_B3HW, images_B3HW)


# Masks ----------------------------------------------------------------------------------------------------------------------------------


def blobs(seeds: np.ndarray, side: int) -> Tensor:
    """Random smooth masks, float32 [B, 1, side, side], 0 or 1: the centre in the middle half, a radius of 4/32 to 10/32 of the side that
    three harmonics change by up to 25 % each.

    Source: the specification's small-scale experiment.
    """
    draws = uniforms(seeds, 2 * _NORMALS + 9)[:, 2 * _NORMALS :]  # behind what a light is drawn from
    middle_B2 = side * (0.25 + 0.5 * draws[:, :2])
    radius_B = side * (4 + 6 * draws[:, 2]) / 32
    rows, columns = np.mgrid[:side, :side] + 0.5
    down, across = rows - middle_B2[:, 0, None, None], columns - middle_B2[:, 1, None, None]
    angle_BHW = np.arctan2(down, across)
    edge_BHW = np.ones_like(angle_BHW)
    for number in range(3):
        strength_B, phase_B = 0.25 * draws[:, 3 + number], 2 * np.pi * draws[:, 6 + number]
        edge_BHW += strength_B[:, None, None] * np.cos((number + 1) * angle_BHW + phase_B[:, None, None])
    return torch.from_numpy((np.hypot(down, across) < radius_B[:, None, None] * edge_BHW).astype(np.float32))[:, None]
