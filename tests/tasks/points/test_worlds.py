"""Made-up streets and rooms are what they say they are."""

import time

import numpy as np
import pytest
import torch

from stillroom.errors import InputError
from stillroom.tasks.points.boxes import points_in_boxes
from stillroom.tasks.points.raycast import NOTHING, cast, overlapping, spinning_window, whole
from stillroom.tasks.points.rooms import CLASSES, RoomSpec, RoomWorld
from stillroom.tasks.points.worlds import SENSOR, DrivingWorld, WorldSpec

SPEC = WorldSpec(beams=16, azimuths=180, cameras=4, frames=3, ego_speed=(4.0, 6.0), objects=(8, 8))


@pytest.fixture(scope="module")
def worlds():
    return [DrivingWorld((1, seed), SPEC) for seed in range(4)]


def test_a_seed_gives_the_same_bytes_in_any_order(worlds):
    again = DrivingWorld((1, 0), SPEC)
    later, first = again.frame(2), again.frame(0)
    for mine, theirs in ((first, worlds[0].frame(0)), (later, worlds[0].frame(2))):
        assert mine.points.tobytes() == theirs.points.tobytes()
        assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(mine.views, theirs.views, strict=True))
    assert DrivingWorld((1, 5), SPEC).frame(0).points.tobytes() != first.points.tobytes()


def test_points_lie_on_their_objects_and_the_counts_are_theirs(worlds):
    for world in worlds:
        frame = world.frame(0)
        boxes = world.boxes(0)[:, :7].copy()
        boxes[:, 3:6] += 0.2  # the noise of the distance
        inside = points_in_boxes(torch.from_numpy(frame.points).double(), torch.from_numpy(boxes)).numpy()
        on = np.flatnonzero(frame.instances >= 0)
        assert inside[frame.instances[on], on].all()
        counts = np.bincount(frame.instances[on], minlength=len(boxes))
        assert (frame.about["points"] == counts[frame.about["track"]]).all()
        assert (frame.about["points"] >= 3).all()
        assert (frame.point_labels[on] >= -1).all()
        assert set(frame.point_labels[frame.instances < 0].tolist()) <= {-1}


def test_what_stands_behind_a_wall_has_no_point():
    near, far = [6.0, 0, 1.5, 0.5, 6, 3, 0], [12.0, 0, 0.8, 4, 2, 1.6, 0]
    elevations = np.deg2rad(np.linspace(-25, 5, 16))
    around = np.arange(180) * 2 * np.pi / 180
    up = elevations[:, None]
    rays = np.stack((np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up) + 0 * around), -1).astype(np.float32)
    window = spinning_window(elevations, 180)
    both, alone = (cast(SENSOR, rays, np.array(boxes), window) for boxes in ([near, far], [far]))
    assert (alone.box == 0).any()
    assert (both.box == 0).any()
    assert not (both.box == 1).any()


def test_windows_lose_no_ray(worlds):
    elevations, boxes = worlds[0]._beams, worlds[0].boxes(1)[:, :7]
    quick = cast(SENSOR, worlds[0]._rays, boxes, spinning_window(elevations, 180))
    slow = cast(SENSOR, worlds[0]._rays, boxes, whole(16, 180))
    assert (quick.box == slow.box).all()
    assert (quick.distance == slow.distance).all()
    assert ((quick.box == NOTHING) == ~np.isfinite(quick.distance)).all()


def test_a_point_projects_to_a_pixel_of_its_object(worlds):
    same = seen = 0
    for world in worlds:
        frame = world.frame(1)
        for view in frame.views:
            ego2cam = np.linalg.inv(view.cam2ego)
            camera = frame.points[:, :3] @ ego2cam[:3, :3].T + ego2cam[:3, 3]
            pixels = camera @ view.intrinsics.T
            ahead = camera[:, 2] > 0.5
            u, v = (np.round(pixels[ahead, k] / pixels[ahead, 2]).astype(int) for k in (0, 1))
            inside = (u >= 1) & (u < view.image.shape[1] - 1) & (v >= 1) & (v < view.image.shape[0] - 1)
            mine = frame.instances[ahead][inside]
            around = np.stack([view.ids[v[inside] + dv, u[inside] + du] for dv in (-1, 0, 1) for du in (-1, 0, 1)])
            on = mine >= 0
            same += (around[:, on] == mine[on]).any(0).sum()
            seen += on.sum()
    assert seen > 100
    assert same / seen > 0.97  # the lidar and the camera stand 20 cm apart: an edge may hide what the other sees


def test_flow_moves_every_mover_into_its_next_box(worlds):
    moved = 0
    for world in worlds:
        frame = world.frame(0)
        next2now = np.linalg.inv(world.ego2global(0)) @ world.ego2global(1)
        there = (frame.points[:, :3] + frame.flow - next2now[:3, 3]) @ next2now[:3, :3]
        boxes = world.boxes(1)[:, :7].copy()
        boxes[:, 3:6] += 0.2
        inside = points_in_boxes(torch.from_numpy(there), torch.from_numpy(boxes)).numpy()
        moving = np.flatnonzero(np.abs(frame.flow).sum(1) > 0)
        assert inside[frame.instances[moving], moving].all()
        moved += len(moving)
    assert moved > 20


def test_objects_stand_apart_all_the_time(worlds):
    for world in worlds:
        for index in range(SPEC.frames):
            flat = world.boxes(index)[:, [0, 1, 3, 4, 6]]
            assert not (overlapping(flat, flat) & ~np.eye(len(flat), dtype=bool)).any()


def test_velocities_turn_with_the_vehicle(worlds):
    world = worlds[1]
    now, soon = world.boxes(0), world.boxes(1)
    next2now = np.linalg.inv(world.ego2global(0)) @ world.ego2global(1)
    there = soon[:, :3] @ next2now[:3, :3].T + next2now[:3, 3]
    measured = (there - now[:, :3])[:, :2] / SPEC.step
    assert np.abs(measured - now[:, 7:9]).max() < 0.3  # an arc's chord against its tangent


def test_speed():
    world = DrivingWorld(3, WorldSpec(beams=32, azimuths=360, cameras=4))
    took = []
    for index in range(6):
        start = time.process_time()
        world.frame(index)
        took.append(time.process_time() - start)
    assert min(took) < 0.12  # 0.03 on a quiet core


def test_rooms_show_surfaces_from_where_cameras_stand():
    world = RoomWorld(4, RoomSpec(views=3))
    frame, again = world.frame(), RoomWorld(4, RoomSpec(views=3)).frame()
    assert frame.points.tobytes() == again.points.tobytes()
    assert {CLASSES.index("floor"), CLASSES.index("wall"), CLASSES.index("table")} <= set(frame.point_labels.tolist())
    boxes = world.boxes.copy()
    boxes[:, 3:6] += 0.06
    inside = points_in_boxes(torch.from_numpy(frame.points).double(), torch.from_numpy(boxes)).numpy()
    assert inside.any(0).all()
    of_thing = np.array([inside[world.things == thing].any(0) for thing in range(world.things.max() + 1)])
    assert of_thing[frame.instances, np.arange(len(frame.points))].all()
    view, row, column = frame.meta["pixels"].T
    assert all(frame.views[k].ids[r, c] == thing for k, r, c, thing in zip(view, row, column, frame.instances, strict=True))
    assert frame.points[frame.point_labels == CLASSES.index("floor"), 2].max() < 0.05


@pytest.mark.parametrize("wrong", [{"beams": 0}, {"frames": 0}, {"objects": (5, 2)}, {"field_of_view": 180.0}])
def test_a_world_that_cannot_be_is_refused(wrong):
    with pytest.raises(InputError):
        WorldSpec(**wrong)
