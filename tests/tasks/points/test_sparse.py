"""Voxels, pillars and sparse convolutions: equal to their dense counterparts, and to themselves on odd batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stillroom.errors import InputError
from stillroom.tasks.points.backbones import SecondBackbone, SecondFPN, VoxelBackbone, scaled
from stillroom.tasks.points.grid import BevGrid
from stillroom.tasks.points.segments import segment_max, segment_mean, segment_sum
from stillroom.tasks.points.sparse import SparseConv3d, SparseInverseConv3d, SparseTensor, SubMConv3d, interpolate
from stillroom.tasks.points.voxels import MeanVoxelEncoder, PillarEncoder, VoxelGrid, scatter_to_bev, voxelize

GRID = VoxelGrid((-4.0, -4.0, -1.0), (4.0, 4.0, 1.0), (0.5, 0.5, 0.5))


def sparse(share: float = 0.3, channels: int = 3, shape: tuple[int, int, int] = (5, 7, 6), batch: int = 2) -> SparseTensor:
    torch.manual_seed(0)
    coords = (torch.rand(batch, *shape) < share).nonzero()
    coords = coords[torch.randperm(len(coords))]  # nothing relies on their order
    return SparseTensor(torch.randn(len(coords), channels, dtype=torch.float64, requires_grad=True), coords, shape, batch)


def dense_weight(module: SubMConv3d | SparseConv3d) -> Tensor:
    return module.weight.permute(0, 4, 1, 2, 3)


def occupied(tensor: SparseTensor) -> Tensor:
    return tensor.with_features(torch.ones(len(tensor.coords), 1, dtype=torch.float64)).dense()


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("kernel", [1, 3, (3, 1, 5)])
def test_submanifold_convolution_is_a_masked_dense_one(kernel: int | tuple[int, int, int], share: float) -> None:
    tensor = sparse(share)
    module = SubMConv3d(3, 4, kernel, bias=True).double()
    padding = [size // 2 for size in module.kernel]
    dense = functional.conv3d(tensor.dense(), dense_weight(module), module.bias, padding=padding) * occupied(tensor)
    out = module(tensor).dense()
    torch.testing.assert_close(out, dense)
    wanted = torch.autograd.grad(dense.square().sum(), (tensor.features, module.weight))
    torch.testing.assert_close(torch.autograd.grad(out.square().sum(), (tensor.features, module.weight)), wanted)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 2, (0, 1, 1)), ((3, 1, 1), (2, 1, 1), 0)]
)  # fmt: skip
def test_strided_and_inverse_convolution_are_the_dense_ones(kernel: int, stride: int, padding: int) -> None:
    tensor = sparse()
    down = SparseConv3d(3, 4, kernel, stride=stride, padding=padding).double()
    up = SparseInverseConv3d(4, 2, kernel).double()
    out = down(tensor)
    dense = functional.conv3d(tensor.dense(), dense_weight(down), stride=down.stride, padding=down.padding)
    torch.testing.assert_close(out.dense(), dense)
    rest = [
        n - (o - 1) * s + 2 * p - k
        for n, o, s, p, k in zip(tensor.spatial_shape, out.spatial_shape, down.stride, down.padding, down.kernel, strict=True)
    ]
    weight = up.weight.permute(4, 0, 1, 2, 3)
    back = functional.conv_transpose3d(dense, weight, stride=down.stride, padding=down.padding, output_padding=rest)
    torch.testing.assert_close(up(out).dense(), back * occupied(tensor))
    assert up(out).maps is tensor.maps  # on the very voxels it came from, whose maps are still known
    with pytest.raises(InputError, match="strided convolution"):
        up(tensor)


def test_reduced_precision_adds_up_in_float32() -> None:
    tensor = sparse(0.8)
    tensor = tensor.with_features(tensor.features.detach().float())
    module = SubMConv3d(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(tensor).features
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), module(tensor).features, atol=0.02, rtol=0.02)


def test_interpolation_is_trilinear_between_the_centres() -> None:
    coords = torch.ones(1, 4, 5, 6).nonzero()
    tensor = SparseTensor(coords[:, 1:].double() + 0.5, coords, (4, 5, 6), 1)
    torch.manual_seed(0)
    at = torch.rand(40, 3, dtype=torch.float64) * torch.tensor([3.0, 4, 5]) + 0.5
    torch.testing.assert_close(interpolate(tensor, at, torch.zeros(40, dtype=torch.int64)), at)
    corner = torch.zeros(1, 3, dtype=torch.float64)
    first = torch.zeros(1, dtype=torch.int64)
    assert interpolate(tensor, corner, first)[0].tolist() == [0.0625] * 3  # one of eight neighbours exists, weighing an eighth
    assert interpolate(tensor, corner, first, renormalise=True)[0].tolist() == [0.5] * 3
    coarse = SparseTensor(tensor.features, coords, (4, 5, 6), 1, stride=(2, 2, 2))
    torch.testing.assert_close(interpolate(coarse, 2 * at, torch.zeros(40, dtype=torch.int64)), at)


def test_points_that_are_no_points() -> None:
    points = torch.tensor([[0.1, 0.1, 0.1, 1.0], [torch.nan, 0, 0, 2], [9, 0, 0, 3], [0.2, 0.1, 0.1, 5], [torch.inf, 0, 0, 4]])
    voxels = voxelize(points, torch.zeros(5, dtype=torch.int64), 1, GRID)
    assert voxels.kept.tolist() == [0, 3]
    assert voxels.coords.tolist() == [[0, 2, 8, 8]]
    assert MeanVoxelEncoder()(points, voxels)[0].tolist() == pytest.approx([0.15, 0.1, 0.1, 3.0])
    # the greatest number below the far side is inside the last voxel, not beyond it
    edge = torch.nextafter(torch.tensor(4.0), torch.tensor(0.0)).repeat(1, 3) * torch.tensor([1.0, 1.0, 0.0])
    assert voxelize(edge, torch.zeros(1, dtype=torch.int64), 1, GRID).coords.tolist() == [[0, 2, 15, 15]]


@pytest.mark.parametrize("size", [0.5, 0.05])  # few cells: by a table; many: by sorting
def test_voxels_are_those_that_hold_points(size: float) -> None:
    torch.manual_seed(0)
    grid = VoxelGrid((-4.0, -4.0, -1.0), (4.0, 4.0, 1.0), (size, size, size))
    points, sample = torch.rand(500, 3) * torch.tensor([8.0, 8, 2]) - torch.tensor([4.0, 4, 1]), torch.arange(2).repeat_interleave(250)
    voxels = voxelize(points, sample, 2, grid)
    assert len(voxels.coords.unique(dim=0)) == len(voxels.coords)
    assert len(voxels.kept) == 500
    assert torch.equal(voxels.coords[voxels.voxel][:, 0], sample)
    assert ((grid.centres(voxels.coords)[voxels.voxel] - points).abs() <= size / 2 + 1e-5).all()


def test_caps_keep_the_first_to_come() -> None:
    cell = torch.tensor([0, 1, 0, 2, 0, 1])
    points = torch.cat((cell[:, None] * 0.5 + 0.1, torch.full((6, 2), 0.1)), 1)
    sample = torch.zeros(6, dtype=torch.int64)
    assert voxelize(points, sample, 1, GRID, max_points=2).kept.tolist() == [0, 1, 2, 3, 5]
    assert voxelize(points, sample, 1, GRID, max_voxels=2).kept.tolist() == [0, 1, 2, 4, 5]
    assert voxelize(points.flip(0), sample, 1, GRID, max_points=1, max_voxels=2).kept.tolist() == [0, 1]
    assert voxelize(points, torch.tensor([0, 0, 0, 1, 1, 1]), 2, GRID, max_voxels=1).kept.tolist() == [0, 2, 3]


def test_the_last_sample_may_be_empty() -> None:
    for points, sample in ((torch.rand(30, 4), torch.zeros(30, dtype=torch.int64)), (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))):
        voxels = voxelize(points, sample, 4, VoxelGrid((0.0, 0.0, -5.0), (4.0, 4.0, 1.0), (0.25, 0.25, 0.25)))
        network = VoxelBackbone(4, voxels.shape, factor=0.25).train()
        out = network(MeanVoxelEncoder()(points, voxels), voxels)
        assert out.shape == (4, network.out_channels, 2, 2)
        out.sum().backward()
        pillars = VoxelGrid.pillars(BevGrid((0.0, 4.0), (0.0, 4.0), 0.5), (-5.0, 3.0))
        flat = voxelize(points, sample, 4, pillars)
        features = PillarEncoder(4, pillars, (16, 8)).train()(points, flat)
        canvas = scatter_to_bev(features, flat.coords, 4, 8, 8)
        assert canvas.shape == (4, 8, 8, 8)
        assert not canvas[1:].any()
        assert not canvas.isnan().any()


def test_pillars_land_on_their_cells_and_ignore_the_order_of_points() -> None:
    torch.manual_seed(0)
    pillars = VoxelGrid.pillars(BevGrid((-4.0, 4.0), (-2.0, 2.0), 0.5), (-1.0, 1.0))
    points = torch.rand(200, 4) * torch.tensor([8.0, 4, 2, 1]) - torch.tensor([4.0, 2, 1, 0])
    encoder = PillarEncoder(4, pillars).eval()
    maps = []
    for order in (torch.arange(200), torch.randperm(200)):
        voxels = voxelize(points[order], torch.zeros(200, dtype=torch.int64), 1, pillars)
        maps.append(scatter_to_bev(encoder(points[order], voxels), voxels.coords, 1, 8, 16))
    torch.testing.assert_close(maps[0], maps[1])
    assert maps[0].is_contiguous(memory_format=torch.channels_last)
    only = torch.tensor([[3.9, -1.9, 0.0, 1.0]])
    voxels = voxelize(only, torch.zeros(1, dtype=torch.int64), 1, pillars)
    there = scatter_to_bev(torch.ones(1, 1), voxels.coords, 1, 8, 16)
    assert there[0, 0].nonzero().tolist() == [[0, 15]]  # y is the row, x the column


def test_segments_that_are_empty_or_tie() -> None:
    values = torch.tensor([[-1.0, 2.0], [-1.0, 5.0], [4.0, 5.0]], requires_grad=True)
    index = torch.tensor([0, 0, 2])
    assert segment_sum(values, index, 4).tolist() == [[-2, 7], [0, 0], [4, 5], [0, 0]]
    assert segment_mean(values, index, 4).tolist() == [[-1, 3.5], [0, 0], [4, 5], [0, 0]]
    most = segment_max(values, index, 4)
    assert most.tolist() == [[-1, 5], [0, 0], [4, 5], [0, 0]]
    most[0, 0].backward()
    assert values.grad is not None
    assert values.grad[:, 0].tolist() == [0.5, 0.5, 0]
    assert segment_sum(torch.ones(3000, 1, dtype=torch.float16), torch.zeros(3000, dtype=torch.int64), 1).item() == 3000


def test_necks_of_both_presets() -> None:
    backbone = SecondBackbone(8, (8, 16, 32), (1, 1, 1), (2, 2, 2))
    neck = SecondFPN(backbone.out_channels, (16, 16, 16), (0.5, 1, 2))
    assert neck(backbone(torch.rand(1, 8, 32, 32))).shape == (1, 48, 8, 8)
    assert [scaled(width, 0.25) for width in (16, 64, 256)] == [4, 16, 64]
    narrow = VoxelBackbone(5, (40, 16, 16), factor=0.5)
    assert narrow.out_channels == 2 * 64  # 41 layers leave 2, as in the released code
    with pytest.raises(InputError, match="multiples of 8"):
        VoxelBackbone(5, (40, 12, 16))
    with pytest.raises(InputError, match="enough layers"):
        VoxelBackbone(5, (8, 16, 16))
