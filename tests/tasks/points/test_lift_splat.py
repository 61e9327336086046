"""From cameras to the map from above."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.tasks.points.backbones import BevResNet, LssFPN
from stillroom.tasks.points.cameras import Cameras
from stillroom.tasks.points.grid import BevGrid
from stillroom.tasks.points.lift_splat import (
    DepthBins,
    DepthNet,
    LiftSplat,
    depth_grid,
    depth_loss,
    sample_bev,
    sample_image,
    splat,
    warp_bev,
)

GRID = BevGrid((-8.0, 8.0), (-8.0, 8.0), 1.0)
BINS = DepthBins(1.0, 9.0, 1.0)


def cameras(batch: int = 1) -> Cameras:
    cam2ego = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]]).repeat(batch, 2, 1, 1)
    cam2ego[:, 1, 0] *= -1  # the second looks back
    cam2ego[:, 1, 1] *= -1
    intrinsics = torch.tensor([[32.0, 0, 31.5], [0, 32, 15.5], [0, 0, 1]]).repeat(batch, 2, 1, 1)
    return Cameras(intrinsics, cam2ego)


def test_what_is_lifted_lands_where_the_point_is() -> None:
    module = LiftSplat(GRID, BINS, (32, 64), 16)
    logits, features = torch.full((1, 2, 8, 2, 4), -40.0), torch.zeros(1, 2, 3, 2, 4)
    logits[:, :, 4] = 40.0  # 5 m
    features[0, 0, :, 0, 0] = 7.0  # the upper left of the camera ahead
    bev = module(logits, features, cameras())
    point = cameras().unproject(torch.tensor([0.0, 0.0, 5.0]))[0, 0]
    row, column = (int(point[axis].item() + 8) for axis in (1, 0))
    assert (bev[0, 0] > 1e-6).nonzero().tolist() == [[row, column]]
    assert bev[0, 0, row, column].item() == pytest.approx(7)
    assert point[0] > 4.9
    assert point[1] > 0  # ahead and to the left


def test_the_splat_is_the_sum_over_the_whole_volume() -> None:
    torch.manual_seed(0)
    module = LiftSplat(GRID, BINS, (32, 64), 16)
    cells = module.cells(cameras(2))
    depth = torch.rand(2, 2, 8, 2, 4, dtype=torch.float32, requires_grad=True)
    features = torch.rand(2, 2, 3, 2, 4, requires_grad=True)
    out = splat(depth, features, cells, GRID)
    volume = depth[:, :, None] * features[:, :, :, None]  # [B, N, C, D, fh, fw]
    flat = torch.zeros(2 * 256, 3)
    inside = cells >= 0
    flat = flat.index_add(0, cells[inside], volume.movedim(2, -1)[inside])
    wanted = flat.view(2, 16, 16, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(out, wanted)
    weight = torch.rand_like(out)
    torch.testing.assert_close(
        torch.autograd.grad((out * weight).sum(), (depth, features)), torch.autograd.grad((wanted * weight).sum(), (depth, features))
    )


@pytest.mark.parametrize("deformable", [False, True])
def test_the_depth_branch_trains_on_one_camera(deformable: bool) -> None:
    one = Cameras(*(value[:, :1] for value in (cameras().intrinsics, cameras().cam2ego)))
    net = DepthNet(8, 5, len(BINS), width=8, blocks=1, deformable=deformable)
    logits, context = net(torch.rand(1, 1, 8, 2, 4), one)
    assert logits.shape == (1, 1, 8, 2, 4)
    assert context.shape == (1, 1, 5, 2, 4)
    depth = depth_grid(
        torch.tensor([[[[0.0, 0.0], [1.0, 1.0], [100.0, 0.0]]]]), torch.tensor([[[6.0, 5.0, 4.0]]]), (2, 4), 16, least=1, most=9
    )
    assert depth[0, 0].tolist() == [[5, 0, 0, 0], [0, 0, 0, 0]]  # the nearer of the two, and none from outside
    loss = depth_loss(logits, depth, BINS)
    loss.backward()
    assert net.depth.weight.grad is not None
    assert net.depth.weight.grad.any()
    assert depth_loss(logits, torch.zeros_like(depth), BINS).item() == 0
    with pytest.raises(InputError, match="depths"):
        DepthBins(5.0, 5.0, 1.0)


def motion(yaw: float, x: float) -> Tensor:
    made = torch.eye(4)[None].clone()
    made[0, :2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    made[0, 0, 3] = x
    return made


def test_the_previous_map_turns_with_the_ego() -> None:
    torch.manual_seed(0)
    before = torch.rand(1, 2, 16, 16, requires_grad=True)
    still = warp_bev(before, torch.eye(4)[None], GRID)
    torch.testing.assert_close(still, before.detach())
    assert not still.requires_grad
    ahead = warp_bev(before, motion(0, 2.0), GRID)  # the ego drove 2 m: what was 2 m ahead is here now
    torch.testing.assert_close(ahead[..., :-2], before.detach()[..., 2:])
    assert not ahead[..., -2:].any()
    quarter = warp_bev(before, motion(math.pi / 2, 0), GRID)
    torch.testing.assert_close(quarter, before.detach().rot90(-1, (3, 2)), atol=1e-5, rtol=0)


def test_samples_of_maps_and_pictures() -> None:
    ramp = GRID.positions().permute(2, 0, 1)[None]
    torch.testing.assert_close(
        sample_bev(ramp, torch.tensor([[[0.3, -2.2], [50.0, 0.0]]]), GRID)[0], torch.tensor([[0.3, -2.2], [0.0, 0.0]])
    )
    picture = torch.arange(4.0).repeat(1, 1, 3, 1)  # column numbers at stride 8: their centres are pixels 3.5, 11.5, ...
    found = sample_image(picture, torch.tensor([[[3.5, 3.5], [7.5, 9.0], [-9.0, 0.0]]]), 8)
    assert found[0, :, 0].tolist() == pytest.approx([0, 0.5, 0])


def test_the_camera_student_s_neck_doubles_its_finest_map() -> None:
    net = BevResNet(4, (8, 8, 16), (1, 1, 1), (2, 2, 2))
    maps = net(torch.rand(1, 4, 32, 32))
    neck = LssFPN(8, 16, 8, final_relu=True)
    assert neck(maps).shape == (1, 8, 32, 32)
    assert neck(maps).min() >= 0
