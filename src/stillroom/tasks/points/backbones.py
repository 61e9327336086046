"""Backbones and necks of detectors that look from above: sparse in three dimensions, dense in two.

Each names its stages, so that `tap` reads them: `stages.0`, `stages.1`, ... A width factor multiplies every width (`scaled`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.errors import InputError
from stillroom.tasks.points.sparse import SparseBatchNorm, SparseConv3d, SparseReLU, SparseTensor, SubMConv3d
from stillroom.tasks.points.voxels import Voxels


def scaled(width: int, factor: float) -> int:
    """A width times a factor, rounded to a multiple of 8 (of 4 below 8), at least 4.

    Raises:
        InputError: the factor is not above 0.
    """
    if not factor > 0:
        raise InputError("factor", factor, "a number above 0")
    step = 8 if width * factor >= 8 else 4
    return max(step, int(width * factor / step + 0.5) * step)


def conv_norm(wide: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm (eps 1e-3, momentum 0.01), ReLU: [B, wide, H, W] -> [B, out, H / stride, W / stride]."""
    conv = nn.Conv2d(wide, out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out, eps=1e-3, momentum=0.01), nn.ReLU(inplace=True))


class SparseBasicBlock(nn.Module):
    """Two submanifold convolutions 3x3x3 with batch norm, and the input added before the last ReLU; a 1x1x1 shortcut where widths differ.

    Args:
        in_channels, out_channels: widths.
        momentum: of the batch norms.
    """

    def __init__(self, in_channels: int, out_channels: int, *, momentum: float = 0.01) -> None:
        super().__init__()
        self.conv1, self.norm1 = SubMConv3d(in_channels, out_channels), SparseBatchNorm(out_channels, momentum=momentum)
        self.conv2, self.norm2 = SubMConv3d(out_channels, out_channels), SparseBatchNorm(out_channels, momentum=momentum)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            norm = SparseBatchNorm(out_channels, momentum=momentum)
            self.shortcut = nn.Sequential(SubMConv3d(in_channels, out_channels, 1), norm)

    def forward(self, tensor: SparseTensor) -> SparseTensor:
        """[M, C_in] -> [M, C_out] at the same voxels."""
        inner = tensor.with_features(functional.relu(self.norm1(self.conv1(tensor)).features))
        out = self.norm2(self.conv2(inner)).features + self.shortcut(tensor).features
        return tensor.with_features(functional.relu(out))


class VoxelBackbone(nn.Module):
    """CenterPoint's sparse residual backbone: from voxels to a map from above at an eighth of their resolution.

    A submanifold convolution, four stages of two residual blocks (the last three begin with a convolution of stride 2), and a convolution
    that halves the height once more; what height is left is stacked into channels. As in the released code the block gets an empty layer
    on top, which makes 41 layers of 40 and leaves 2.

    Args:
        in_channels: values of a voxel.
        shape: voxels along (z, y, x); y and x multiples of 8.
        widths: of the first convolution and the four stages.
        factor: of every width.

    Raises:
        InputError: the block is not high enough to be halved four times, or y or x is no multiple of 8.
    """

    stride = 8

    def __init__(
        self,
        in_channels: int,
        shape: tuple[int, int, int],
        widths: tuple[int, int, int, int, int] = (16, 16, 32, 64, 128),
        *,
        factor: float = 1.0,
    ) -> None:
        super().__init__()
        z, y, x = shape
        if y % 8 or x % 8:
            raise InputError("shape", shape, "multiples of 8 along y and x")
        self.shape = (z + 1, y, x)
        first, *stages = (scaled(width, factor) for width in widths)
        self.stem = nn.Sequential(SubMConv3d(in_channels, first), SparseBatchNorm(first), SparseReLU())
        self.stages = nn.ModuleList()
        wide = first
        for place, width in enumerate(stages):
            down: list[nn.Module] = []
            if place:
                padding = (0, 1, 1) if place == 3 else (1, 1, 1)
                down = [SparseConv3d(wide, width, 3, stride=2, padding=padding), SparseBatchNorm(width), SparseReLU()]
                wide = width
            self.stages.append(nn.Sequential(*down, SparseBasicBlock(wide, width), SparseBasicBlock(width, width)))
            wide = width
        self.last = nn.Sequential(SparseConv3d(wide, wide, (3, 1, 1), stride=(2, 1, 1)), SparseBatchNorm(wide), SparseReLU())
        height = z + 1
        for padding_z in (1, 1, 0, 0):
            height = (height + 2 * padding_z - 3) // 2 + 1
        if height < 1:
            raise InputError("shape", shape, "enough layers to be halved four times (24)")
        self.out_channels = wide * height

    def forward(self, features: Tensor, voxels: Voxels) -> Tensor:
        """Values [M, in_channels] of the voxels -> [B, out_channels, y / 8, x / 8]."""
        tensor = self.stem(SparseTensor(features, voxels.coords, self.shape, voxels.batch_size))
        for stage in self.stages:
            tensor = stage(tensor)
        return self.last(tensor).to_bev()


class SecondBackbone(nn.Module):
    """Stages of 3x3 convolutions on a map from above; the first of each stage strides.

    Args:
        in_channels: of the map.
        widths, layers, strides: per stage its width, the convolutions after the first, and the first one's stride.
        factor: of every width.
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int], layers: Sequence[int], strides: Sequence[int], *, factor: float = 1.0
    ) -> None:
        super().__init__()
        self.out_channels = [scaled(width, factor) for width in widths]
        ins = [in_channels, *self.out_channels[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(conv_norm(wide, out, stride=stride), *(conv_norm(out, out) for _ in range(count)))
            for wide, out, count, stride in zip(ins, self.out_channels, layers, strides, strict=True)
        )

    def forward(self, map_BCYX: Tensor) -> list[Tensor]:
        """[B, in_channels, ny, nx] -> the output of each stage."""
        outputs = []
        for stage in self.stages:
            map_BCYX = stage(map_BCYX)
            outputs.append(map_BCYX)
        return outputs


class SecondFPN(nn.Module):
    """Brings the stages to one resolution and joins them.

    Args:
        in_channels: per stage.
        out_channels: per stage; the neck's width is their sum.
        upsample: per stage: above 1 a transposed convolution whose kernel is its stride, 1 a 1x1 convolution, below 1 (0.5) a strided one.
        factor: of every width of the output.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: Sequence[int], upsample: Sequence[float], *, factor: float = 1.0) -> None:
        super().__init__()
        outs = [scaled(width, factor) for width in out_channels]
        self.out_channels = sum(outs)
        self.branches = nn.ModuleList()
        for wide, out, scale in zip(in_channels, outs, upsample, strict=True):
            stride = round(scale if scale >= 1 else 1 / scale)
            conv = (nn.ConvTranspose2d if scale > 1 else nn.Conv2d)(wide, out, stride, stride, bias=False)
            self.branches.append(nn.Sequential(conv, nn.BatchNorm2d(out, eps=1e-3, momentum=0.01), nn.ReLU(inplace=True)))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One map per stage -> [B, out_channels, ny, nx]."""
        return torch.cat([branch(stage) for branch, stage in zip(self.branches, maps, strict=True)], 1)


class BevBlock(nn.Module):
    """Residual block of the camera students' maps; where it strides or widens, the shortcut is a plain 3x3 convolution.

    Args:
        in_channels, out_channels: widths.
        stride: of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        same = in_channels == out_channels and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 3, stride, 1)

    def forward(self, map_BCYX: Tensor) -> Tensor:
        """[B, C_in, ny, nx] -> [B, C_out, ny / stride, nx / stride]."""
        inner = functional.relu(self.norm1(self.conv1(map_BCYX)))
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(map_BCYX))


class BevResNet(nn.Module):
    """Residual stages over a map from above.

    Args:
        in_channels: of the map.
        widths, layers, strides: per stage its width, its blocks and the first block's stride.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int] = (128, 256, 512),
        layers: Sequence[int] = (2, 2, 2),
        strides: Sequence[int] = (2, 2, 2),
    ) -> None:
        super().__init__()
        self.out_channels = list(widths)
        ins = [in_channels, *widths[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(BevBlock(wide, out, stride), *(BevBlock(out, out) for _ in range(count - 1)))
            for wide, out, count, stride in zip(ins, widths, layers, strides, strict=True)
        )

    def forward(self, map_BCYX: Tensor) -> list[Tensor]:
        """[B, in_channels, ny, nx] -> the output of each stage."""
        outputs = []
        for stage in self.stages:
            map_BCYX = stage(map_BCYX)
            outputs.append(map_BCYX)
        return outputs


class LssFPN(nn.Module):
    """Joins the finest and the coarsest stage of a `BevResNet` and doubles the resolution.

    Args:
        fine_channels, coarse_channels: of the two maps.
        out_channels: of the neck.
        upsample: what brings the coarse map to the fine one's size.
        final_relu: a batch norm and a ReLU at the end, so that the neck is non-negative as a lidar teacher's is.
    """

    def __init__(
        self, fine_channels: int, coarse_channels: int, out_channels: int = 256, *, upsample: int = 4, final_relu: bool = False
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        wide = 2 * out_channels
        self.up = nn.Upsample(scale_factor=upsample, mode="bilinear", align_corners=True)
        self.join = nn.Sequential(*_plain(fine_channels + coarse_channels, wide), *_plain(wide, wide))
        self.finish = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            *_plain(wide, out_channels),
            nn.Conv2d(out_channels, out_channels, 1),
            *([nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)] if final_relu else []),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The maps of all stages, of which the first and the last are read -> [B, out_channels, 2 ny, 2 nx]."""
        joined: Tensor = self.finish(self.join(torch.cat((self.up(maps[-1]), maps[0]), 1)))
        return joined


def _plain(wide: int, out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(wide, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
