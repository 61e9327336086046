"""Anomaly maps: where, and how far, a student's features are from its teacher's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stillroom.errors import at_least_zero, one_of
from stillroom.losses.features import cosine_distances

Combine = Literal["sum", "product"]
LevelWeight = Literal["equal", "inv_area"]
_TRUNCATE = 4.0  # standard deviations at which the blur ends


@dataclass(frozen=True)
class MapOptions:
    """How an anomaly map is made of the levels; programs differ in each of these, and numbers with them.

    Args:
        combine: ``sum`` of the levels' maps, or their ``product`` (STFPM).
        level_weight: ``equal``, or ``inv_area``: each level divided by its number of positions, which makes the coarsest the heaviest.
        align_corners: how small maps are enlarged: corners of the outer pixels on each other, instead of the pixels' centres.
        blur: standard deviation of the Gaussian blur, in pixels of the network's input; 0 for none.

    Raises:
        InputError: an option that cannot be used.
    """

    combine: Combine = "sum"
    level_weight: LevelWeight = "equal"
    align_corners: bool = False
    blur: float = 4.0

    def __post_init__(self) -> None:
        one_of("combine", self.combine, ("sum", "product"))
        one_of("level_weight", self.level_weight, ("equal", "inv_area"))
        at_least_zero("blur", self.blur)

    def said(self, image_size: int) -> str:
        """All of it in words, for a report."""
        corners = "corners" if self.align_corners else "centres"
        weight = "equal weights" if self.level_weight == "equal" else "weights by 1 / positions"
        return f"{self.combine} of the levels, {weight}, {corners} aligned, blur of {self.blur:g} of {image_size} pixels"


def level_maps(students: Sequence[Tensor], teachers: Sequence[Tensor], size: tuple[int, int], options: MapOptions) -> Tensor:
    """1 - cosine of each level, enlarged to the image's size: [levels, B, H, W].

    Args:
        students, teachers: a map [B, C, h, w] of each level.
        size: H and W of the image, in pixels.
    """
    maps = []
    for student_BCHW, teacher_BCHW in zip(students, teachers, strict=True):
        distance_BHW = cosine_distances(student_BCHW, teacher_BCHW)
        if options.level_weight == "inv_area":
            distance_BHW = distance_BHW / (distance_BHW.shape[-2] * distance_BHW.shape[-1])
        maps.append(interpolate(distance_BHW[:, None], size, mode="bilinear", align_corners=options.align_corners)[:, 0])
    return torch.stack(maps)


def combined(levels_KBHW: Tensor, options: MapOptions) -> Tensor:
    """The levels' maps as one, before it is blurred: [B, H, W]."""
    return levels_KBHW.sum(0) if options.combine == "sum" else levels_KBHW.prod(0)


def anomaly_map(students: Sequence[Tensor], teachers: Sequence[Tensor], size: tuple[int, int], options: MapOptions) -> Tensor:
    """The map [B, H, W] of at least 0; larger means less normal. See `level_maps`; an image's score is its maximum.

    Source: the specification's "Inference".
    """
    return blurred(combined(level_maps(students, teachers, size, options), options), options.blur)


def image_scores(maps_BHW: Tensor) -> Tensor:
    """The score of each image, [B]: the maximum of its map."""
    return maps_BHW.amax((1, 2))


def blurred(maps_BHW: Tensor, sigma: float, truncate: float = _TRUNCATE) -> Tensor:
    """Gaussian blur in two dimensions, ended at `truncate` standard deviations, the border mirrored about the pixels' edge (half-sample
    symmetric, SciPy's ``reflect``).

    Args:
        maps_BHW: any size, also smaller than the kernel.
        sigma: in pixels; 0 for none.
    """
    if sigma == 0:
        return maps_BHW
    rows_HH, columns_WW = (_blur_matrix(size, sigma, truncate).to(maps_BHW) for size in maps_BHW.shape[1:])
    return rows_HH @ maps_BHW @ columns_WW.T


def _blur_matrix(size: int, sigma: float, truncate: float) -> Tensor:
    """The blur along an axis as a matrix [size, size]: row i holds the weights that pixel i is averaged with."""
    radius = int(truncate * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(size, -1)
    places = (torch.arange(size)[:, None] + offsets.long()) % (2 * size)
    mirrored = torch.where(places < size, places, 2 * size - 1 - places)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, mirrored, weights)


def heat(map_HW: Tensor, low: float, high: float) -> Tensor:
    """A map as a picture for people, uint8 [3, H, W]: black at `low` and below, over red and yellow to white at `high` and above."""
    shares_HW = ((map_HW - low) / max(high - low, math.ulp(1.0))).clamp(0, 1).nan_to_num(1.0)
    return (torch.stack([3 * shares_HW, 3 * shares_HW - 1, 3 * shares_HW - 2]).clamp(0, 1) * 255).round().to(torch.uint8)
