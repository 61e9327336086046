"""Frames, batches and what changes them: all sensors stay aligned, and what cannot be used is counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stillroom.errors import InputError
from stillroom.tasks.points.augment import BevAugment, ImageAugment, ObjectBank, RoomAugment, moved
from stillroom.tasks.points.boxes import points_in_boxes
from stillroom.tasks.points.drawings import cloud, from_above, in_camera, label_colours
from stillroom.tasks.points.frames import Frame, View, boxes_of, cleaned, collate
from stillroom.tasks.points.raycast import overlapping
from stillroom.tasks.points.worlds import DrivingWorld, WorldSpec

SPEC = WorldSpec(cameras=2, frames=2, objects=(8, 8))


@pytest.fixture(scope="module")
def frame():
    return DrivingWorld((4, 1), SPEC).frame()


def test_points_and_boxes_that_are_none_are_left_out_and_counted(frame):
    points = frame.points.copy()
    points[3, 1], points[5, 0], points[7, 3] = np.nan, np.inf, np.nan
    boxes = np.concatenate((frame.boxes, boxes_of([[1, 2, 0, 0, 1, 1, 0], [1, 2, 0, 1, 1, 1, np.nan]])))
    labels = np.append(frame.labels, [0, 0])
    about = {name: np.append(values, values[:2]) for name, values in frame.about.items()}
    found = cleaned(replace(frame, points=points, boxes=boxes, labels=labels, about=about))
    assert (found.points, found.boxes) == (2, 2)
    assert len(found.frame.points) == len(frame.points) - 2
    assert len(found.frame.instances) == len(found.frame.points)
    assert np.isfinite(found.frame.points).all()
    assert len(found.frame.labels) == len(frame.labels)
    kept = cleaned(replace(frame, boxes=boxes_of([[1, 2, 0, 1, 1, 1, 0]]), labels=np.array([0]), about={}))
    assert kept.boxes == 0  # a velocity that is not known does not cost the box


def test_an_empty_last_frame_keeps_the_size_of_the_batch(frame):
    empty = frame.take_points(np.zeros(0, np.int64)).take_boxes(np.zeros(0, np.int64))
    batch = collate([frame, empty, frame, empty], range(4))
    assert batch.inputs.batch_size == 4
    assert batch.batch_index.unique().tolist() == [0, 2]
    assert [len(boxes) for boxes in batch.boxes] == [len(frame.boxes), 0] * 2
    assert batch.inputs.images.shape == (4, 2, 3, 48, 96)
    assert batch.inputs.cameras.intrinsics.shape == (4, 2, 3, 3)
    alone = collate([empty], [0])
    assert alone.points.shape == (0, 5)
    assert alone.inputs.batch_size == 1


def test_frames_that_do_not_fit_each_other_are_refused(frame):
    with pytest.raises(InputError, match="cameras"):
        collate([frame, replace(frame, views=frame.views[:1])], [0, 1])
    with pytest.raises(InputError, match="points of"):
        collate([frame, frame.with_columns(("x", "y", "z"))], [0, 1])


def inside(frame):
    grown = frame.boxes.astype(float).copy()
    grown[:, 3:6] += 0.2
    return points_in_boxes(torch.from_numpy(frame.points).double(), torch.from_numpy(grown)).sum(1)


def projected(frame, view):
    ego2cam = np.linalg.inv(view.cam2ego)
    camera = frame.points[:, :3] @ ego2cam[:3, :3].T + ego2cam[:3, 3]
    pixels = camera @ view.intrinsics.T
    uv = pixels[:, :2] / np.maximum(pixels[:, 2:], 1e-3)
    return uv @ view.post[:2, :2].T + view.post[:2, 3], camera[:, 2]


def test_one_change_moves_points_boxes_cameras_flow_and_pose_alike(frame):
    augment = BevAugment(rotation=1.0, scale=(0.8, 1.2), mirror_x=0.5, mirror_y=0.5, shift=0.5)
    random = np.random.default_rng(0)
    for _ in range(6):
        matrix = augment.draw(random)
        changed = moved(frame, matrix)
        scale = abs(np.linalg.det(matrix[:3, :3])) ** (1 / 3)
        assert inside(changed).tolist() == pytest.approx(inside(frame).tolist(), abs=2)
        assert changed.boxes[:, 3:6] == pytest.approx(frame.boxes[:, 3:6] * scale, rel=1e-4)
        before, after = projected(frame, frame.views[0]), projected(changed, changed.views[0])
        ahead = before[1] > 1
        assert np.abs(before[0][ahead] - after[0][ahead]).max() < 0.05
        speed = np.linalg.norm(frame.boxes[:, 7:], axis=1)
        along = (np.stack((np.cos(changed.boxes[:, 6]), np.sin(changed.boxes[:, 6])), 1) * changed.boxes[:, 7:]).sum(1)
        assert along == pytest.approx(speed * scale, abs=1e-3)  # velocity and yaw turn together
        lands = changed.ego2global @ np.append(changed.points[0, :3], 1)
        assert lands[:3] == pytest.approx((frame.ego2global @ np.append(frame.points[0, :3], 1))[:3], abs=1e-3)
        assert np.linalg.norm(changed.flow, axis=1) == pytest.approx(np.linalg.norm(frame.flow, axis=1) * scale, abs=1e-4)


def test_pictures_are_changed_as_their_cameras_say(frame):
    view = frame.views[0]
    spot = np.zeros_like(view.image)
    spot[20:23, 40:43] = 255
    shown = replace(view, image=spot)
    for random in (None, *map(np.random.default_rng, range(5))):
        changed = ImageAugment((64, 120), resize=(-0.1, 0.1), mirror=0.5, rotation=8.0).apply(shown, random)
        assert changed.image.shape == (64, 120, 3)
        weight = changed.image[..., 0].astype(float)
        v, u = (np.array([weight.sum(1), weight.sum(0)], object)[k] for k in (0, 1))
        centre = [(u * np.arange(120)).sum() / u.sum(), (v * np.arange(64)).sum() / v.sum()]
        wanted = changed.post[:2, :2] @ [41, 21] + changed.post[:2, 3]
        assert centre == pytest.approx(wanted, abs=0.6)


def test_pasted_objects_stand_free_and_bring_their_points(frame):
    others = [DrivingWorld((5, number), SPEC).frame() for number in range(3)]
    bank = ObjectBank(others, 3, [6, 6, 6])
    pasted = bank.paste(frame, np.random.default_rng(0))
    assert len(pasted.boxes) > len(frame.boxes)
    new = replace(pasted, boxes=pasted.boxes[len(frame.boxes) :])
    assert (inside(new) >= 5).all()
    flat = pasted.boxes[:, [0, 1, 3, 4, 6]]
    hit = overlapping(flat[len(frame.boxes) :], flat)
    assert hit.sum() == len(new.boxes)  # each meets itself alone
    assert ObjectBank(others, 3, [0, 0, 0]).paste(frame, np.random.default_rng(0)) is frame


def test_a_rooms_turn_keeps_distances():
    matrix = RoomAugment(scale=(1.0, 1.0)).draw(np.random.default_rng(1))
    assert matrix @ matrix.T == pytest.approx(np.eye(3))
    assert matrix[2, 2] > np.cos(np.pi / 16)


def test_drawings(frame):
    reach = (-25, -25, -1, 25, 25, 5)
    above = np.asarray(from_above(frame, frame.boxes, frame.labels, reach, truth=frame.boxes, side=200))
    assert above.shape == (200, 200, 3)
    assert len(np.unique(above.reshape(-1, 3), axis=0)) > 10
    behind = boxes_of([[0.5, 0, 1, 4, 4, 3, 0]])  # it reaches around the camera
    for boxes, labels in ((frame.boxes, frame.labels), (behind, np.zeros(1, np.int64))):
        assert in_camera(frame.views[0], boxes, labels, side=96).size == (96, 48)
    picture = np.asarray(cloud(frame.points[:, :3], label_colours(frame.point_labels), side=64))
    assert picture.shape == (64, 192, 3)
    assert np.asarray(cloud(np.zeros((0, 3)), np.zeros((0, 3), np.uint8), side=64)).min() == 255


def test_columns_by_name():
    frame = Frame(np.arange(8, dtype=np.float32).reshape(2, 4), ("x", "y", "z", "ring"))
    assert frame.with_columns(("x", "y", "z", "lag", "ring")).points.tolist() == [[0, 1, 2, 0, 3], [4, 5, 6, 0, 7]]
    with pytest.raises(InputError, match="one of x, y, z, ring"):
        frame.column("colour")


def test_pictures_that_differ_by_some_pixels_are_padded():
    """As KITTI's do; the cameras stay what they are."""
    frames = []
    for size in ((20, 30), (22, 28)):
        view = View("left", np.full((*size, 3), 255, np.uint8), np.eye(3), np.eye(4))
        frames.append(Frame(np.zeros((1, 4), np.float32), ("x", "y", "z", "intensity"), views=(view,)))
    images = collate(frames, [0, 1]).inputs.images
    assert images.shape == (2, 1, 3, 22, 30)
    assert images[0, 0, :, :20].min() == 1
    assert not images[0, 0, :, 20:].any()
    assert not images[1, 0, :, :, 28:].any()
