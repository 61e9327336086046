"""From cameras to a map seen from above: each pixel's feature is spread along its ray by its depth's distribution, then dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import DeformConv2d

from stillroom.errors import InputError
from stillroom.tasks.points.cameras import Cameras
from stillroom.tasks.points.grid import BevGrid


@dataclass(frozen=True)
class DepthBins:
    """Depths along the optical axis, metres: bin i stands for its lower edge, low + i * step, below high.

    Raises:
        InputError: there is no bin.
    """

    low: float
    high: float
    step: float

    def __post_init__(self) -> None:
        if not (self.step > 0 and self.high - self.low >= self.step and self.low > 0):
            raise InputError("depths", (self.low, self.high, self.step), "0 < low < high, metres, and a step that fits between")

    def __len__(self) -> int:
        return round((self.high - self.low) / self.step)

    def values(self, device: torch.device | None = None) -> Tensor:
        """The lower edges [D]."""
        return self.low + torch.arange(len(self), device=device) * self.step

    def of(self, depth: Tensor) -> Tensor:
        """The bin of each depth, int64, any shape; -1 where there is none."""
        place = ((depth - self.low) / self.step).floor()
        return torch.where((place >= 0) & (place < len(self)), place, -1.0).long()


def bev_cells(points: Tensor, grid: BevGrid, z_range: tuple[float, float] = (-10.0, 10.0)) -> Tensor:
    """The cell that each point of a frustum drops onto.

    Args:
        points: [B, ..., 3] in the ego frame, metres.
        grid: the raster.
        z_range: points below or above are dropped.

    Returns:
        int64 [B, ...]: (b * ny + row) * nx + column, or -1. Cells are found by truncation, as in the released code: what lies less than a
        cell below the lower border falls into the first.
    """
    low = points.new_tensor((*grid.origin, z_range[0]))
    cell = ((points - low) / points.new_tensor((grid.cell, grid.cell, z_range[1] - z_range[0]))).trunc()
    inside = ((cell >= 0) & (cell < cell.new_tensor((grid.nx, grid.ny, 1)))).all(-1)
    sample = torch.arange(len(points), device=points.device).view(-1, *(1,) * (inside.ndim - 1))
    column, row = cell[..., 0], cell[..., 1]
    flat = (sample * grid.ny + torch.where(inside, row, 0.0).long()) * grid.nx + torch.where(inside, column, 0.0).long()
    return torch.where(inside, flat, -1)


class _Splat(torch.autograd.Function):
    """sum over depth and pixels of depth x feature into cells, one depth after another: the volume of both never exists at once."""

    @staticmethod
    def forward(ctx: Any, depth: Tensor, features: Tensor, cells: Tensor, count: int) -> Tensor:
        """Depth [P, D], features [P, C], cells int64 [P, D] or -1 -> [count, C]."""
        ctx.save_for_backward(depth, features, cells)
        out = features.new_zeros(count, features.shape[1])
        for place in range(depth.shape[1]):
            pixel = (cells[:, place] >= 0).nonzero().squeeze(1)
            out.index_add_(0, cells[pixel, place], features[pixel] * depth[pixel, place, None])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of a sum is a gather."""
        (depth, features, cells), grad = ctx.saved_tensors, grads[0]
        grad_depth, grad_features = torch.zeros_like(depth), torch.zeros_like(features)
        for place in range(depth.shape[1]):
            pixel = (cells[:, place] >= 0).nonzero().squeeze(1)
            arrived = grad[cells[pixel, place]]
            grad_depth[pixel, place] = (arrived * features[pixel]).sum(1)
            grad_features.index_add_(0, pixel, arrived * depth[pixel, place, None])
        return grad_depth, grad_features, None, None


def splat(depth: Tensor, features: Tensor, cells: Tensor, grid: BevGrid) -> Tensor:
    """Sums depth x feature over everything that drops onto a cell, in float32.

    Args:
        depth: [B, N, D, fh, fw], the weight of each depth.
        features: [B, N, C, fh, fw].
        cells: int64 [B, N, D, fh, fw] of `bev_cells`; depends on the cameras alone and may be kept while they stand still.
        grid: the raster.

    Returns:
        [B, C, ny, nx]; channels lie last in memory.
    """
    batch = len(depth)
    along = depth.float().movedim(2, -1).flatten(0, 3)
    rows = features.float().movedim(2, -1).flatten(0, 3)
    where = cells.movedim(2, -1).flatten(0, 3)
    out = cast(Tensor, _Splat.apply(along, rows, where, batch * grid.ny * grid.nx))
    return out.view(batch, grid.ny, grid.nx, -1).permute(0, 3, 1, 2)


class DepthNet(nn.Module):
    """BEVDepth's branch: a camera's parameters gate its feature map, from which depth and context are read.

    The 33 numbers of a camera (intrinsics 9, the picture's augmentation 9 + 3, camera to ego 9 + 3) pass a batch norm and two linear
    layers to one gate per channel.

    Args:
        in_channels: of the feature map.
        context_channels: C.
        bins: D.
        width: of the branch.
        blocks: residual blocks of it.
        deformable: a deformable convolution after the blocks, as in the paper; a plain one is smaller and faster.
    """

    def __init__(
        self, in_channels: int, context_channels: int, bins: int, *, width: int = 256, blocks: int = 3, deformable: bool = False
    ) -> None:
        super().__init__()
        self.bins = bins
        self.reduce = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.camera_norm = nn.BatchNorm1d(33)
        self.gate = nn.Sequential(nn.Linear(33, width), nn.ReLU(), nn.Linear(width, width), nn.Sigmoid())
        self.blocks = nn.Sequential(*(_Residual(width) for _ in range(blocks)))
        self.offset = nn.Conv2d(width, 18, 3, padding=1) if deformable else None
        self.conv: nn.Module = (DeformConv2d if deformable else nn.Conv2d)(width, width, 3, padding=1, bias=False)
        if self.offset is not None:  # starts as a plain convolution
            nn.init.zeros_(self.offset.weight)
            nn.init.zeros_(cast(Tensor, self.offset.bias))
        self.norm = nn.BatchNorm2d(width)
        self.depth = nn.Conv2d(width, bins, 1)
        self.context = nn.Conv2d(width, context_channels, 1)

    def forward(self, features: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """Feature maps [B, N, in_channels, fh, fw] -> depth logits [B, N, D, fh, fw] and context [B, N, C, fh, fw]."""
        lead = features.shape[:2]
        x = self.reduce(features.flatten(0, 1))
        gate = self.gate(self._camera_norm(camera_numbers(cameras).flatten(0, 1).to(x)))
        gated = x * gate[:, :, None, None]
        depth = self.blocks(gated)
        depth = self.conv(depth) if self.offset is None else self.conv(depth, self.offset(depth))
        return self.depth(functional.relu(self.norm(depth))).unflatten(0, lead), self.context(gated).unflatten(0, lead)

    def _camera_norm(self, numbers: Tensor) -> Tensor:
        if self.training and len(numbers) < 2:  # one camera of one sample has no variance
            norm = self.camera_norm
            return functional.batch_norm(numbers, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
        normed: Tensor = self.camera_norm(numbers)
        return normed


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x))))))


def camera_numbers(cameras: Cameras) -> Tensor:
    """The parameters of each camera that `DepthNet` reads: [B, N, 33]."""
    assert cameras.post_rot is not None
    assert cameras.post_trans is not None
    turn, shift = cameras.cam2ego[..., :3, :3], cameras.cam2ego[..., :3, 3]
    parts = (cameras.intrinsics.flatten(2), cameras.post_rot.flatten(2), cameras.post_trans, turn.flatten(2), shift)
    return torch.cat(parts, -1).float()


class LiftSplat(nn.Module):
    """Spreads the cameras' features over a map from above.

    Args:
        grid: the map.
        bins: the depths.
        input_size: (height, width) of the network's pictures, pixels.
        stride: pixels per cell of their feature maps.
        z_range: what is pooled, metres.
    """

    def __init__(
        self,
        grid: BevGrid,
        bins: DepthBins,
        input_size: tuple[int, int],
        stride: int,
        *,
        z_range: tuple[float, float] = (-10.0, 10.0),
    ) -> None:
        super().__init__()
        self.grid, self.bins, self.input_size, self.stride, self.z_range = grid, bins, input_size, stride, z_range

    def cells(self, cameras: Cameras) -> Tensor:
        """Where each feature drops at each depth: int64 [B, N, D, fh, fw]; the same as long as the cameras stand still."""
        with torch.no_grad():
            frustum = cameras.frustum(self.input_size, self.stride, self.bins.values(cameras.intrinsics.device))
            return bev_cells(frustum, self.grid, self.z_range)

    def forward(self, depth_logits: Tensor, features: Tensor, cameras: Cameras, cells: Tensor | None = None) -> Tensor:
        """Depth logits [B, N, D, fh, fw] and features [B, N, C, fh, fw] -> [B, C, ny, nx]; `cells` where they are known already."""
        weight = depth_logits.float().softmax(2)
        return splat(weight, features, self.cells(cameras) if cells is None else cells, self.grid)


def depth_grid(uv: Tensor, depth: Tensor, size: tuple[int, int], stride: int, *, least: float, most: float) -> Tensor:
    """The nearest depth that the lidar saw in each cell of a feature map.

    Args:
        uv: [..., P, 2], pixels of the network's input.
        depth: [..., P], metres; depths outside [least, most) are left out.
        size: (rows, columns) of the feature map.
        stride: pixels per cell; a point belongs to cell round(pixel / stride).

    Returns:
        [..., rows, columns], metres, 0 where no point falls.
    """
    rows, columns = size
    cell = (uv / stride).round()
    inside = (cell >= 0).all(-1) & (cell[..., 0] < columns) & (cell[..., 1] < rows) & (depth >= least) & (depth < most)
    cell = torch.where(inside[..., None], cell, 0.0).long()
    place = cell[..., 1] * columns + cell[..., 0]
    grid = depth.new_full((*depth.shape[:-1], rows * columns), torch.inf)
    grid = grid.scatter_reduce(-1, place, torch.where(inside, depth, torch.inf), "amin")
    return torch.where(grid.isinf(), 0.0, grid).unflatten(-1, (rows, columns))


def depth_loss(depth_logits: Tensor, depth: Tensor, bins: DepthBins, *, weight: float = 100.0) -> Tensor:
    """BEVDepth's supervision: binary cross-entropy of each bin's sigmoid where the lidar saw something, / all B N D fh fw entries.

    Args:
        depth_logits: [B, N, D, fh, fw] or [B N, D, fh, fw].
        depth: [B, N, fh, fw], metres, 0 where there is none; what lies in no bin counts as none.
        bins: the depths.
        weight: what the mean is multiplied with.
    """
    logits = depth_logits.reshape(-1, *depth_logits.shape[-3:]).float()
    place = bins.of(depth.reshape(-1, *depth.shape[-2:]))
    target = functional.one_hot(place.clamp_min(0), len(bins)).movedim(-1, 1).to(logits)
    entries = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return weight * (entries * (place >= 0)[:, None]).mean()


def warp_bev(previous: Tensor, current2previous: Tensor, grid: BevGrid, *, position: str = "center") -> Tensor:
    """The previous frame's map as the present ego would have drawn it: bilinear, 0 outside; detached.

    Args:
        previous: [B, C, ny, nx].
        current2previous: [B, 4, 4] from the present ego frame to the previous one; shift and turn in the plane are used.
        grid: of both maps.
        position: where a cell stands, its "center" or, as in the released code, its lower "corner".
    """
    cells = grid.positions(position, device=previous.device)
    motion = current2previous.to(cells)
    there = cells.flatten(0, 1) @ motion[:, :2, :2].transpose(1, 2) + motion[:, None, :2, 3]
    shift = 0.5 if position == "center" else 0.0
    return _bilinear(previous.detach(), (grid.to_cells(there) - shift).unflatten(1, (grid.ny, grid.nx)))


def sample_bev(map_BCYX: Tensor, xy: Tensor, grid: BevGrid) -> Tensor:
    """Values of a map [B, C, ny, nx] at positions [B, P, 2] (metres), bilinear between cells' centres, 0 outside: [B, P, C]."""
    return _bilinear(map_BCYX, (grid.to_cells(xy) - 0.5)[:, :, None]).squeeze(-1).transpose(1, 2)


def sample_rows(map_BCYX: Tensor, xy_N2: Tensor, sample_N: Tensor, grid: BevGrid) -> Tensor:
    """Values of a map at positions of any number in each sample, bilinear between cells' centres, the border's value beyond them: [N, C].

    Args:
        map_BCYX: [B, C, ny, nx].
        xy_N2: metres.
        sample_N: int64, whose map each is on.
        grid: of the map.
    """
    at_N2 = grid.to_cells(xy_N2) - 0.5
    low_N2 = at_N2.floor()
    rows_BYXC = map_BCYX.permute(0, 2, 3, 1)
    found_NC = map_BCYX.new_zeros(len(xy_N2), map_BCYX.shape[1])
    for across, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight_N2 = (1 - low_N2.new_tensor((across, down)) - (at_N2 - low_N2)).abs()
        column = (low_N2[:, 0].long() + across).clamp(0, grid.nx - 1)
        row = (low_N2[:, 1].long() + down).clamp(0, grid.ny - 1)
        found_NC = found_NC + weight_N2.prod(1, keepdim=True) * rows_BYXC[sample_N, row, column]
    return found_NC


def sample_image(features: Tensor, uv: Tensor, stride: float) -> Tensor:
    """Values of feature maps at pixels.

    Args:
        features: [..., C, fh, fw].
        uv: [..., P, 2], pixels of the network's input, whose centres are whole numbers; positions outside are clamped to the border.
        stride: pixels per cell.

    Returns:
        [..., P, C], bilinear at (u + 0.5) / stride - 0.5.
    """
    lead = features.shape[:-3]
    at = ((uv + 0.5) / stride - 0.5).reshape(-1, 1, *uv.shape[-2:])
    found = _bilinear(features.reshape(-1, *features.shape[-3:]), at, padding="border")
    return found[:, :, 0].transpose(1, 2).unflatten(0, lead)


def _bilinear(maps: Tensor, at: Tensor, padding: str = "zeros") -> Tensor:
    """Maps [B, C, h, w] at (column, row) [B, H, W, 2], cells' centres being whole numbers: [B, C, H, W], in float32."""
    size = at.new_tensor((maps.shape[-1], maps.shape[-2]))
    with torch.autocast(maps.device.type, enabled=False):
        return functional.grid_sample(maps.float(), ((2 * at + 1) / size - 1).float(), padding_mode=padding, align_corners=False)
