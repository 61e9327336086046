"""Boxes, grids, cameras: what goes wrong with conventions and rounding elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.errors import InputError
from stillroom.tasks.points.boxes import (
    bev,
    bev_iou,
    circle_nms,
    corners,
    enclosing_rectangles,
    iou_3d,
    points_in_boxes,
    rotated_nms,
    transform_boxes,
    transform_points,
)
from stillroom.tasks.points.cameras import Cameras
from stillroom.tasks.points.grid import NUSCENES, BevGrid, ClassList


def turn(yaw: float, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Tensor:
    made = torch.eye(4, dtype=torch.float64)
    made[:2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    made[:3, 3] = torch.tensor(shift)
    return made


def test_turned_rectangles_overlap_counter_clockwise() -> None:
    turned = torch.tensor([[0.0, 0.0, 4.0, 2.0, math.radians(30)]])
    straight = torch.tensor([[1.0, 0.5, 4.0, 2.0, 0.0]])
    assert bev_iou(turned, straight).item() == pytest.approx(0.4337, abs=1e-4)
    mirrored = turned * torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])
    assert bev_iou(mirrored, straight).item() == pytest.approx(0.3460, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-200, 200), st.floats(-200, 200), st.floats(0.05, 30), st.floats(0.05, 30), st.floats(-7, 7), st.floats(-3, 3)
)  # fmt: skip
def test_overlap_of_a_rectangle_with_itself_and_its_likes(x: float, y: float, dx: float, dy: float, yaw: float, more: float) -> None:
    box = torch.tensor([[x, y, dx, dy, yaw]])
    assert bev_iou(box, box).item() == pytest.approx(1, abs=1e-5)
    same = torch.tensor([[x, y, dy, dx, yaw + math.pi / 2], [x, y, dx, dy, yaw + math.pi]])
    assert bev_iou(box, same)[0].tolist() == pytest.approx([1, 1], abs=1e-4)
    quarter = torch.tensor([[x, y, dx, dy, yaw + math.pi / 2]])
    low, high = min(dx, dy), max(dx, dy)
    assert bev_iou(box, quarter).item() == pytest.approx(low * low / (2 * low * high - low * low), rel=1e-3)
    other = torch.tensor([[x + more, y - more / 2, dx, dy, yaw + more]])
    assert bev_iou(box, other).item() == pytest.approx(bev_iou(other, box).item(), abs=1e-6)
    assert bev_iou(box, torch.tensor([[x + 200, y, dx, dy, yaw]])).item() == 0
    assert bev_iou(box, torch.tensor([[x, y, 0.0, dy, yaw]])).item() == 0


def test_overlap_equals_the_share_of_sampled_points() -> None:
    generator = torch.Generator().manual_seed(0)
    made = torch.rand(12, 7, generator=generator) * torch.tensor([3.0, 3, 1, 3, 2, 2, 6]) + torch.tensor([0.0, 0, 0, 1, 1, 1, 0])
    points = torch.rand(200_000, 3, generator=generator) * torch.tensor([12.0, 12, 6]) - torch.tensor([4.5, 4.5, 2.5])
    inside = points_in_boxes(points, made).float()
    shared = inside @ inside.T
    union = inside.sum(1)[:, None] + inside.sum(1) - shared
    assert (iou_3d(made, made) - shared / union).abs().max() < 0.03


def test_boxes_of_another_convention_show_in_the_overlap() -> None:
    car = torch.tensor([[0.0, 0.0, 0.0, 4.0, 1.6, 1.5, 0.3]])
    quarter = car + torch.tensor([[0, 0, 0, 0, 0, 0, math.pi / 2]])
    assert iou_3d(car, quarter).item() == pytest.approx(0.25, abs=1e-5)  # (w, l, h) read as (l, w, h), or a clockwise yaw
    bottom = car + torch.tensor([[0, 0, 0.75, 0, 0, 0, 0]])
    assert iou_3d(car, bottom).item() == pytest.approx(1 / 3, abs=1e-5)  # the bottom's centre taken for the geometric one
    assert bev_iou(bev(car), bev(bottom)).item() == pytest.approx(1, abs=1e-6)


def test_no_boxes_and_numbers_that_are_none() -> None:
    none, some = torch.zeros(0, 7), torch.tensor([[0.0, 0, 0, 1, 1, 1, 0]])
    assert iou_3d(none, some).shape == (0, 1)
    assert points_in_boxes(torch.rand(5, 3), none).shape == (0, 5)
    assert len(rotated_nms(none, torch.zeros(0), 0.2)) == 0
    assert bev_iou(bev(some * torch.nan), bev(some)).item() == 0


def test_corners_lie_in_their_box_and_in_its_rectangle() -> None:
    box = torch.tensor([[1.0, -2.0, 0.5, 4.0, 1.6, 1.5, 0.7]])
    found = corners(box)[0]
    assert points_in_boxes((found - box[:, :3]) * 0.999 + box[:, :3], box).all()
    assert not points_in_boxes((found - box[:, :3]) * 1.001 + box[:, :3], box).any()
    assert found.mean(0).tolist() == pytest.approx(box[0, :3].tolist(), abs=1e-6)
    rectangle = enclosing_rectangles(box)[0]
    assert (found[:, :2].amin(0) - rectangle[:2]).abs().max() < 1e-6
    assert (found[:, :2].amax(0) - rectangle[2:]).abs().max() < 1e-6


@pytest.mark.parametrize("motion", [turn(0.8, (3, -1, 0.2)), torch.diag(torch.tensor([1.0, -1, 1, 1])).double(), turn(-2.0) * 1.1])
def test_a_transform_takes_box_points_and_velocity_along(motion: Tensor) -> None:
    motion = motion.clone()
    motion[3] = torch.tensor([0.0, 0, 0, 1])
    box = torch.tensor([[1.0, -2.0, 0.5, 4.0, 1.6, 1.5, 0.7, 3 * math.cos(0.7), 3 * math.sin(0.7)]], dtype=torch.float64)
    points = torch.rand(4000, 3, dtype=torch.float64) * 6 - torch.tensor([2.0, 5.0, 2.5])
    moved = transform_boxes(box, motion)
    assert torch.equal(points_in_boxes(points, box), points_in_boxes(transform_points(points, motion), moved))
    # what drives ahead still drives ahead
    assert math.atan2(moved[0, 8], moved[0, 7]) == pytest.approx(moved[0, 6].item(), abs=1e-6)


def test_suppression_is_the_greedy_one() -> None:
    generator = torch.Generator().manual_seed(1)
    boxes = torch.cat((torch.rand(200, 2, generator=generator) * 12, torch.rand(200, 3, generator=generator) + 0.5), 1)
    scores = torch.rand(200, generator=generator)
    kept: list[int] = []
    overlap = bev_iou(boxes, boxes)
    for place in scores.argsort(descending=True).tolist():
        if all(overlap[place, other] <= 0.2 for other in kept):
            kept.append(place)
    assert rotated_nms(boxes, scores, 0.2).tolist() == kept
    assert rotated_nms(boxes, scores, 0.2, max_kept=5).tolist() == kept[:5]
    assert len(rotated_nms(boxes, scores, 0.2, scale=3.0)) < len(kept)
    # exactly at the threshold goes, and of equal scores the first stays
    xy = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.1, 0.0]])
    assert circle_nms(xy, torch.ones(3), 4.0).tolist() == [0, 2]


def test_grid_cells_and_positions() -> None:
    grid = BevGrid((-4.0, 4.0), (0.0, 6.0), 0.5)
    assert (grid.ny, grid.nx) == (12, 16)
    assert grid.positions()[1, 2].tolist() == [-2.75, 0.75]
    assert grid.positions("corner")[1, 2].tolist() == [-3.0, 0.5]
    assert grid.to_cells(grid.positions())[1, 2].tolist() == [2.5, 1.5]
    assert grid.inside(torch.tensor([[4.0, 1.0], [-4.0, 0.0], [torch.nan, 1.0]])).tolist() == [False, True, False]
    assert grid.coarser(2).nx == 8
    with pytest.raises(InputError, match="whole number of cells"):
        BevGrid((0.0, 1.0), (0.0, 1.0), 0.3)
    with pytest.raises(InputError, match="lower bound first"):
        BevGrid((1.0, 0.0), (0.0, 1.0), 0.5)


def test_class_lists_are_checked() -> None:
    assert NUSCENES.first == [0, 1, 3, 5, 6, 8]
    with pytest.raises(InputError, match="in this order"):
        ClassList(("car", "bus"), (("bus",), ("car",)))
    with pytest.raises(InputError, match="each once"):
        ClassList(("car", "car"))


def test_a_projected_point_comes_back_and_lands_where_it_should() -> None:
    # x of the camera is -y of the ego, y is -z, z is x; one metre up
    cam2ego = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1], [0, 0, 0, 1]]).repeat(1, 1, 1, 1)
    intrinsics = torch.tensor([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]]).repeat(1, 1, 1, 1)
    cameras = Cameras(intrinsics, cam2ego)
    pixels, depth = cameras.project(torch.tensor([[[10.0, 1.0, 2.0], [-10.0, 1.0, 2.0]]]))
    assert pixels[0, 0, 0].tolist() == pytest.approx([40, 30])
    assert depth[0, 0].tolist() == pytest.approx([10, -10])
    halved = Cameras(intrinsics, cam2ego, torch.diag(torch.tensor([0.5, 0.5, 1])).repeat(1, 1, 1, 1), torch.tensor([[[3.0, 0, 0]]]))
    assert halved.project(torch.tensor([[[10.0, 1.0, 2.0]]]))[0][0, 0, 0].tolist() == pytest.approx([23, 15])
    moved = halved.moved(turn(0.4, (1, 2, 0)).float())
    back = moved.unproject(torch.tensor([[23.0, 15.0, 10.0]]))[0, 0, 0]
    assert back.tolist() == pytest.approx(transform_points(torch.tensor([[10.0, 1.0, 2.0]]), turn(0.4, (1, 2, 0)))[0].tolist(), abs=1e-4)
    with pytest.raises(InputError, match="calibration"):
        Cameras(torch.zeros(1, 1, 3, 3), cam2ego)
    with pytest.raises(InputError, match="calibration"):
        Cameras(intrinsics * torch.nan, cam2ego)
    with pytest.raises(InputError, match="shape"):
        Cameras(intrinsics, cam2ego[:, :0])
