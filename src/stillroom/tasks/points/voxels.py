"""From points to voxels and pillars, and from pillars to a map seen from above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.errors import InputError
from stillroom.tasks.points.grid import BevGrid
from stillroom.tasks.points.segments import segment_max, segment_mean


@dataclass(frozen=True)
class Voxels:
    """Which points fall into which voxel.

    Args:
        coords: int64 [M, 4] (batch, z, y, x), each voxel that holds a point once, in rising order.
        kept: int64 [P], the points that fall into a voxel: those in range (and within the caps, where there are any).
        voxel: int64 [P], the row of `coords` that each kept point falls into.
        shape: voxels along (z, y, x).
        batch_size: samples, those without a voxel included.
    """

    coords: Tensor
    kept: Tensor
    voxel: Tensor
    shape: tuple[int, int, int]
    batch_size: int


@dataclass(frozen=True)
class VoxelGrid:
    """A block of space cut into voxels.

    Args:
        low, high: its corners (x, y, z), metres.
        size: of a voxel (x, y, z), metres.

    Raises:
        InputError: the block is empty or holds no whole number of voxels.
    """

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    size: tuple[float, float, float]

    def __post_init__(self) -> None:
        for axis, low, high, size in zip("xyz", self.low, self.high, self.size, strict=True):
            count = (high - low) / size if size > 0 else 0.0
            if not count > 0.5 or abs(count - round(count)) > 1e-3:
                raise InputError("size", self.size, f"a whole number of voxels from {low:g} to {high:g} m along {axis}")

    @classmethod
    def pillars(cls, grid: BevGrid, z_range: tuple[float, float]) -> VoxelGrid:
        """Columns on the cells of `grid`, as high as `z_range`, metres."""
        (x0, x1), (y0, y1), (z0, z1) = grid.x_range, grid.y_range, z_range
        return cls((x0, y0, z0), (x1, y1, z1), (grid.cell, grid.cell, z1 - z0))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (z, y, x)."""
        x, y, z = (round((high - low) / size) for low, high, size in zip(self.low, self.high, self.size, strict=True))
        return z, y, x

    @property
    def bev(self) -> BevGrid:
        """The raster of one layer.

        Raises:
            InputError: a voxel is not square from above.
        """
        if abs(self.size[0] - self.size[1]) > 1e-6:
            raise InputError("size", self.size, "voxels that are square from above")
        return BevGrid((self.low[0], self.high[0]), (self.low[1], self.high[1]), self.size[0])

    def centres(self, coords: Tensor) -> Tensor:
        """Centres of voxels [M, 4] (batch, z, y, x): [M, 3] (x, y, z), metres."""
        size = torch.tensor(self.size, device=coords.device)
        return (coords[:, [3, 2, 1]] + 0.5) * size + size.new_tensor(self.low)


def voxelize(
    points: Tensor, batch_index: Tensor, batch_size: int, grid: VoxelGrid, *, max_points: int | None = None, max_voxels: int | None = None
) -> Voxels:
    """Sorts points into voxels. Points out of range, or with a coordinate that is no number, are left out.

    Args:
        points: [N, 3+] (x, y, z, ...), metres.
        batch_index: int64 [N], the sample of each point.
        batch_size: samples; from the batch, never from the largest index, since a sample may have no point.
        grid: the voxels.
        max_points: per voxel only the first so many points are kept.
        max_voxels: per sample only the voxels of the first so many to receive a point are kept.
    """
    nz, ny, nx = grid.shape
    low, high, size = (points.new_tensor(value) for value in (grid.low, grid.high, grid.size))
    xyz = points[:, :3]
    inside = ((xyz >= low) & (xyz < high)).all(1)  # false for what is no number
    # the division may round up to the far side what lies just below it
    cell = ((xyz - low) / size).floor().minimum(size.new_tensor((nx - 1, ny - 1, nz - 1)))
    kept = inside.nonzero().squeeze(1)
    x, y, z = cell[kept].long().unbind(1)
    key = ((batch_index[kept] * nz + z) * ny + y) * nx + x
    if max_points is not None or max_voxels is not None:
        within = _within_caps(key, nz * ny * nx, max_points, max_voxels)
        kept, key = kept[within], key[within]
    unique, voxel = _unique(key, batch_size * nz * ny * nx)
    rest, column = unique // nx, unique % nx
    coords = torch.stack((rest // (ny * nz), rest // ny % nz, rest % ny, column), 1)
    return Voxels(coords, kept, voxel, grid.shape, batch_size)


def _unique(key: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """`torch.unique(key, return_inverse=True)` of keys in [0, most); by a table instead of sorting where it is small beside the keys."""
    if most > 8 * len(key) + (1 << 20):
        unique, inverse = torch.unique(key, return_inverse=True)
        return unique, inverse
    taken = torch.zeros(most, dtype=torch.bool, device=key.device).index_fill_(0, key, True)
    unique = taken.nonzero().squeeze(1)
    place = torch.empty(most, dtype=torch.int64, device=key.device)
    place[unique] = torch.arange(len(unique), device=key.device)
    return unique, place[key]


def _within_caps(key: Tensor, per_sample: int, max_points: int | None, max_voxels: int | None) -> Tensor:
    """Which points (voxel keys [P], in order of arrival) stay within the caps of `voxelize`: bool [P]."""
    unique, voxel, count = torch.unique(key, return_inverse=True, return_counts=True)
    order = voxel.argsort(stable=True)
    starts = count.cumsum(0) - count
    arrival = torch.empty_like(voxel)
    arrival[order] = torch.arange(len(key), device=key.device) - starts.repeat_interleave(count)  # how many came to the voxel before
    within = torch.ones_like(key, dtype=torch.bool) if max_points is None else arrival < max_points
    if max_voxels is not None and len(unique):
        first = order[starts]  # the point that opened each voxel
        sample = unique // per_sample
        opened = first.argsort()
        opened = opened[sample[opened].argsort(stable=True)]  # voxels by sample, then by when they were opened
        per = torch.bincount(sample)
        rank = torch.empty_like(first)
        rank[opened] = torch.arange(len(unique), device=key.device) - (per.cumsum(0) - per)[sample[opened]]
        within &= (rank < max_voxels)[voxel]
    return within


class RowNorm(nn.BatchNorm1d):
    """Batch norm over the rows of points or voxels [M, C]; fewer than two rows are normalised by the running statistics."""

    def __init__(self, channels: int, *, eps: float = 1e-3, momentum: float = 0.01) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)

    def forward(self, rows: Tensor) -> Tensor:
        """[M, C] -> [M, C]."""
        if self.training and len(rows) < 2:
            return functional.batch_norm(rows, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(rows)


class MeanVoxelEncoder(nn.Module):
    """A voxel's features are the means of its points' values: [N, D] -> [M, D]."""

    def forward(self, points: Tensor, voxels: Voxels) -> Tensor:
        """Points [N, D] and their voxels -> [M, D]."""
        return segment_mean(points[voxels.kept], voxels.voxel, len(voxels.coords))


class PillarEncoder(nn.Module):
    """PointPillars' small network over the points of a pillar, then the maximum over the pillar.

    Each point is its values, its offset (x, y, z) from the mean of its pillar's points and its offset (x, y) from the pillar's centre.
    A layer is Linear without bias, batch norm, ReLU; every layer but the last is half as wide as listed and is joined by its maximum
    over the pillar, so that its output has the listed width.

    Args:
        in_channels: D, values of a point.
        grid: pillars, one voxel high.
        widths: of the layers, the last of them the output's.

    Raises:
        InputError: `grid` has several layers.
    """

    def __init__(self, in_channels: int, grid: VoxelGrid, widths: Sequence[int] = (64,)) -> None:
        super().__init__()
        if grid.shape[0] != 1:
            raise InputError("grid", f"{grid.shape[0]} layers", "pillars, which are one voxel high")
        self.grid = grid
        self.out_channels = widths[-1]
        outs = [width // 2 for width in widths[:-1]] + [widths[-1]]
        ins = [in_channels + 5, *(2 * width for width in outs[:-1])]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(wide, out, bias=False), RowNorm(out), nn.ReLU()) for wide, out in zip(ins, outs, strict=True)
        )

    def told(self, points: Tensor, voxels: Voxels) -> Tensor:
        """What the first layer reads of each kept point, [P, D + 5]."""
        values, pillar = points[voxels.kept], voxels.voxel
        mean = segment_mean(values[:, :3], pillar, len(voxels.coords))
        centre = self.grid.centres(voxels.coords)[:, :2].to(values)
        return torch.cat((values, values[:, :3] - mean[pillar], values[:, :2] - centre[pillar]), 1)

    def forward(self, points: Tensor, voxels: Voxels) -> Tensor:
        """Points [N, D] and their pillars -> [M, widths[-1]]."""
        features, pillar, count = self.told(points, voxels), voxels.voxel, len(voxels.coords)
        for layer in self.layers[:-1]:
            features = layer(features)
            features = torch.cat((features, segment_max(features, pillar, count).to(features)[pillar]), 1)
        return segment_max(self.layers[-1](features), pillar, count)


def scatter_to_bev(features: Tensor, coords: Tensor, batch_size: int, ny: int, nx: int) -> Tensor:
    """Pillars laid out on their raster.

    Args:
        features: [M, C].
        coords: int64 [M, 4] (batch, z, y, x), z being 0.
        batch_size, ny, nx: of the map.

    Returns:
        [B, C, ny, nx], 0 where there is no pillar; channels lie last in memory (`torch.channels_last`).
    """
    canvas = features.new_zeros(batch_size * ny * nx, features.shape[1])
    canvas.index_copy_(0, (coords[:, 0] * ny + coords[:, 2]) * nx + coords[:, 3], features)
    return canvas.view(batch_size, ny, nx, -1).permute(0, 3, 1, 2)
