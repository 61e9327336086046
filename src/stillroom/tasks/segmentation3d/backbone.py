"""A sparse residual pyramid over voxels: features at four resolutions, brought to every voxel and added."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.tasks.points.backbones import SparseBasicBlock
from stillroom.tasks.points.frames import FrameInputs
from stillroom.tasks.points.sparse import SparseBatchNorm, SparseConv3d, SparseReLU, SparseTensor, SubMConv3d, interpolate

IN_CHANNELS = 6
_MOMENTUM = 0.02
_COARSEST = 16  # voxels of the last stage's cells
_NAME = re.compile(r"stillroom/fpn(?P<widths>\d+(?:_\d+){3})_to(?P<out>\d+)(?:_k(?P<kernel>[35]))?")


@dataclass(frozen=True)
class PyramidSpec:
    """What a pyramid is made of.

    Args:
        widths: of the stages at strides 2, 4, 8 and 16; the first is the stem's, too.
        out: of the answer.
        kernel: of the stem.
    """

    widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    out: int = 128
    kernel: int = 5

    def __str__(self) -> str:
        return f"stillroom/fpn{'_'.join(map(str, self.widths))}_to{self.out}_k{self.kernel}"

    @classmethod
    def parse(cls, name: str, argument: str) -> PyramidSpec:
        """Of ``stillroom/fpn32_64_128_256_to128_k5``.

        Raises:
            InputError: it is none.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise InputError(argument, name, "stillroom/fpnWIDTH_WIDTH_WIDTH_WIDTH_toOUT, e.g. stillroom/fpn32_64_128_256_to128_k5")
        a, b, c, d = map(int, found["widths"].split("_"))
        if not min(a, b, c, d, int(found["out"])):
            raise InputError(argument, name, "widths of at least 1")
        return cls((a, b, c, d), int(found["out"]), int(found["kernel"] or 5))


class Pyramid(nn.Module):
    """Res16FPN18 without a decoder: a stem, four stages of a convolution that halves the resolution and two residual blocks, and of each
    stage a linear map to the answer's width, brought to the voxels by trilinear interpolation. A coarse neighbour that is not there
    counts as zero.

    Args:
        spec: its widths.
        voxel: metres of a voxel's side.

    Source: PointDC, section 2 of its specification.
    """

    def __init__(self, spec: PyramidSpec, voxel: float) -> None:
        super().__init__()
        self.spec, self.voxel, self.out_channels = spec, voxel, spec.out
        first = spec.widths[0]
        self.stem = nn.Sequential(SubMConv3d(IN_CHANNELS, first, spec.kernel), SparseBatchNorm(first, momentum=_MOMENTUM), SparseReLU())
        ins = (first, *spec.widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(
                SparseConv3d(wide, wide, 2, stride=2, padding=0),
                SparseBatchNorm(wide, momentum=_MOMENTUM),
                SparseReLU(),
                SparseBasicBlock(wide, out, momentum=_MOMENTUM),
                SparseBasicBlock(out, out, momentum=_MOMENTUM),
            )
            for wide, out in zip(ins, spec.widths, strict=True)
        )
        self.lateral = nn.ModuleList(nn.Linear(width, spec.out, bias=False) for width in spec.widths)

    def forward(self, inputs: FrameInputs) -> Tensor:
        """Points [M, 6] (metres, colours in [0, 1]) -> features [M, out], not normalised; points of one voxel share theirs."""
        tensor, voxel_of = self.voxelized(inputs)
        # all levels are asked at the centres of the voxels
        places = tensor.coords[:, 1:].to(tensor.features) + 0.5
        total = tensor.features.new_zeros(len(places), self.out_channels)
        level = self.stem(tensor)
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            level = stage(level)
            total = total + interpolate(level.with_features(lateral(level.features)), places, tensor.coords[:, 0])
        return total[voxel_of]

    def voxelized(self, inputs: FrameInputs) -> tuple[SparseTensor, Tensor]:
        """The occupied voxels with the means of their points' six numbers (colour less a half; coordinates in voxels, x and y less the
        scan's mean), and the voxel of each point, int64 [M]."""
        places, size = inputs.points[:, :3] / self.voxel, max(inputs.batch_size, 1)
        index = inputs.batch_index
        counts = torch.bincount(index, minlength=size).clamp_min(1)[:, None]
        middle = places.new_zeros(size, 3).index_add_(0, index, places) / counts
        middle = middle * middle.new_tensor([1.0, 1.0, 0.0])
        numbers = torch.cat((inputs.points[:, 3:6] - 0.5, places - middle[index]), 1)
        cells = places.floor().long()
        least = cells.new_full((size, 3), torch.iinfo(torch.int64).max).scatter_reduce_(0, index[:, None].expand_as(cells), cells, "amin")
        cells = cells - least[index]
        extent = cells.amax(0) + 1 if len(cells) else cells.new_ones(3)
        x, y, z = (-(-int(side) // _COARSEST) * _COARSEST for side in extent)
        key = ((index * z + cells[:, 2]) * y + cells[:, 1]) * x + cells[:, 0]
        found, voxel_of = torch.unique(key, return_inverse=True)
        coords = torch.stack((found // (z * y * x), found // (y * x) % z, found // x % y, found % x), 1)
        total = numbers.new_zeros(len(found), IN_CHANNELS).index_add_(0, voxel_of, numbers)
        mean = total / torch.bincount(voxel_of, minlength=len(found)).clamp_min(1)[:, None].to(total)
        return SparseTensor(mean, coords, (z, y, x), size), voxel_of
