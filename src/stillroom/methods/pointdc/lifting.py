"""From pictures to points: which view sees which point, what its network says there, and the mean over views and super-voxels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from stillroom.tasks.points.segments import segment_mean
from stillroom.tasks.segmentation3d.clustering import unit


def seen(
    points_N3: Tensor, intrinsics: Tensor, world2cam: Tensor, depth_HW: Tensor | None, size: tuple[int, int], *, tolerance: float = 0.05,
    relative: float = 0.05,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Which points a view sees: ahead of it, inside its picture, and not behind what its depth map shows.

    Args:
        points_N3: metres, in the world.
        intrinsics: [3, 3].
        world2cam: [4, 4].
        depth_HW: metres, 0 where unknown: there nothing is seen. None without a depth camera: then the nearest point of a cell of
            pixels hides those behind it.
        size: height and width of the picture.
        tolerance: metres by which a point may differ from the depth map, or
        relative: its share of the point's depth, whichever is more.

    Returns:
        bool [N], and pixels (u, v) [N, 2].
    """
    camera = points_N3 @ world2cam[:3, :3].T + world2cam[:3, 3]
    depth = camera[:, 2]
    pixels = camera @ intrinsics.T
    uv = pixels[:, :2] / depth.clamp_min(1e-9)[:, None]
    height, width = size
    inside = (depth > 0) & (uv >= -0.5).all(1) & (uv[:, 0] < width - 0.5) & (uv[:, 1] < height - 0.5)
    column, row = (uv[:, axis].round().long().clamp(0, most - 1) for axis, most in ((0, width), (1, height)))
    if depth_HW is None:
        depth_HW = _nearest(depth, row, column, inside, size)
    near = (depth_HW[row, column] - depth).abs() <= (relative * depth).clamp_min(tolerance)
    return inside & near & (depth_HW[row, column] > 0), uv


def _nearest(depth: Tensor, row: Tensor, column: Tensor, inside: Tensor, size: tuple[int, int]) -> Tensor:
    """A depth map of the points themselves: the nearest in each cell of 4 x 4 pixels."""
    height, width = -(-size[0] // 4), -(-size[1] // 4)
    cell = (row // 4) * width + column // 4
    coarse = depth.new_full((height * width,), torch.inf)
    coarse.scatter_reduce_(0, cell[inside], depth[inside], "amin")
    whole = coarse.view(height, width).repeat_interleave(4, 0).repeat_interleave(4, 1)[: size[0], : size[1]]
    return torch.where(whole.isfinite(), whole, 0.0)


def sampled(features_CHW: Tensor, uv_N2: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear values [N, C] of features at pixels of a picture of `size`; pixel centres are whole numbers, outside the border's value.

    Features of another resolution stand for the picture's: they are read where the upsampled map (corners not aligned) would be.
    """
    height, width = size
    grid = (uv_N2 + 0.5) / uv_N2.new_tensor((width, height)) * 2 - 1
    found = grid_sample(features_CHW[None], grid[None, None].to(features_CHW), mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, :, 0].T


def lifted(views: Sequence[tuple[Tensor, Tensor]], count: int, channels: int) -> Tensor:
    """Mean over the views that see a point of its unit features there, [count, channels]; zero for one that no view sees.

    Args:
        views: of each, which points it sees (bool [count]) and their features [seen points, channels].
        count: points.
        channels: of a feature.
    """
    total, times = torch.zeros(count, channels), torch.zeros(count)
    for sees, features in views:
        total[sees] += unit(features)
        times += sees.float()
    return total / times.clamp_min(1)[:, None]


def region_targets(features_NC: Tensor, seen_N: Tensor, region_N: Tensor) -> Tensor:
    """The target of every point of a super-voxel: the mean over its points that a view sees; zero where there is none, [N, C].

    Args:
        features_NC: of each point, see `lifted`.
        seen_N: bool.
        region_N: int64, 0 .. R-1; a point of none (-1) keeps its own feature.
    """
    inside = region_N >= 0
    size = int(region_N.amax()) + 1 if len(region_N) else 0
    counted = inside & seen_N
    means = segment_mean(features_NC[counted], region_N[counted], max(size, 1))
    return torch.where(inside[:, None], means[region_N.clamp_min(0)], features_NC)
