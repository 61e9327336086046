"""From pictures to points: what a vision-language model says of each pixel, carried to the points that cameras see (A1), and which of
these points are background (A3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

_NEAREST = 0.1  # metres along a camera's axis
_BINS = 128  # of the histogram that Otsu's threshold is found on


def lift(
    points_N3: Tensor, lidar2cam_V44: Tensor, intrinsics_V33: Tensor, maps_VChw: Tensor, size: tuple[int, int], stride: int
) -> tuple[Tensor, Tensor]:
    """The features of the pixels that show a point: unit samples of each view, summed and made unit again.

    Args:
        points_N3: metres.
        lidar2cam_V44: the points' coordinates to each camera's.
        intrinsics_V33: of the pictures as they are seen.
        maps_VChw: features of each picture, a cell for `stride` pixels.
        size: width and height of the pictures. Pixel centres are whole numbers, so that -0.5 <= u < width - 0.5 is inside.
        stride: pixels per cell; pixel u lies at (u + 0.5) / stride - 0.5 of the map, and beyond its border the border's value counts.

    Returns:
        Features [N, C], zero rows for points that no camera sees, and how many see each, int64 [N].
    """
    total = points_N3.new_zeros(len(points_N3), maps_VChw.shape[1])
    views = torch.zeros(len(points_N3), dtype=torch.int64, device=points_N3.device)
    width, height = size
    for lidar2cam, intrinsics, features in zip(lidar2cam_V44, intrinsics_V33, maps_VChw, strict=True):
        camera = points_N3 @ lidar2cam[:3, :3].T + lidar2cam[:3, 3]
        depth = camera[:, 2]
        uv = (camera @ intrinsics.T)[:, :2] / depth.clamp_min(1e-9)[:, None]
        ahead = (depth > _NEAREST) & (uv >= -0.5).all(1) & (uv[:, 0] < width - 0.5) & (uv[:, 1] < height - 0.5)
        total[ahead] += normalize(bilinear(features, (uv[ahead] + 0.5) / stride - 0.5), dim=1, eps=1e-12)
        views += ahead
    return normalize(total, dim=1, eps=1e-12), views


def bilinear(map_Chw: Tensor, at_P2: Tensor) -> Tensor:
    """Values [P, C] of a map at (column, row); the border's value outside."""
    height, width = map_Chw.shape[1:]
    x, y = at_P2[:, 0].clamp(0, width - 1), at_P2[:, 1].clamp(0, height - 1)
    left, top = x.floor().long(), y.floor().long()
    right, bottom = (left + 1).clamp_max(width - 1), (top + 1).clamp_max(height - 1)
    across, down = (x - left), (y - top)
    upper = map_Chw[:, top, left] * (1 - across) + map_Chw[:, top, right] * across
    lower = map_Chw[:, bottom, left] * (1 - across) + map_Chw[:, bottom, right] * across
    return (upper * (1 - down) + lower * down).T


def background(features_NC: Tensor, seen_N: Tensor, text_BC: Tensor, threshold: float) -> Tensor:
    """Which points are background: seen, and as near to a background prompt as `threshold` or nearer, by the cosine. bool [N]."""
    if not len(features_NC):
        return seen_N.bool()
    cosine_NB = normalize(features_NC, dim=1, eps=1e-12) @ normalize(text_BC, dim=1, eps=1e-12).T
    return seen_N.bool() & (cosine_NB.amax(1) >= threshold)


def otsu(values: np.ndarray) -> float:
    """The threshold that splits a histogram in two with the least variance within the halves (Otsu 1979).

    For a model of which no threshold is known; `values` are the largest similarities to the background prompts of all seen points.
    """
    counts, edges = np.histogram(values, _BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    total, weighted = below[-1], (counts * centres).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = (weighted[-1] * below / total - weighted) ** 2 / (below * (total - below))
    return float(edges[1 + int(np.nan_to_num(apart, nan=0.0, posinf=0.0)[:-1].argmax())])
