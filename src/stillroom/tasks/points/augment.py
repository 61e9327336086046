"""Random changes of frames: the same for points, boxes, flow, cameras and poses, so that all sensors stay aligned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.points.frames import Frame, View
from stillroom.tasks.points.raycast import overlapping

_FLAT = [0, 1, 3, 4, 6]  # of a box, what is seen of it from above


@dataclass(frozen=True)
class BevAugment:
    """How much a frame may be changed: turned, scaled, mirrored and shifted, in this order.

    Args:
        rotation: radians about z, at most, to either side.
        scale: least and most.
        mirror_x, mirror_y: probability that x, or y, changes its sign.
        shift: standard deviation in metres along each axis.

    Raises:
        InputError: a number that cannot be used.
    """

    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    mirror_x: float = 0.0
    mirror_y: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise InputError("scale", list(self.scale), "two factors above 0, the smaller first")

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """One change, [4, 4], from a frame's coordinates to the changed one's. It draws as many numbers whatever it may change."""
        angle = random.uniform(-1, 1) * self.rotation
        signs = np.where(random.random(2) < (self.mirror_x, self.mirror_y), -1.0, 1.0)
        matrix = np.eye(4)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1.0]])
        matrix[:3, :3] = np.diag([*signs, 1.0]) @ turn * random.uniform(*self.scale)
        matrix[:3, 3] = random.normal(size=3) * self.shift
        return matrix


def moved(frame: Frame, matrix: np.ndarray) -> Frame:
    """A frame in other coordinates.

    Args:
        frame: as it was.
        matrix: [4, 4], old to new: a turn about z, mirrored and scaled evenly as may be, and a shift.
    """
    linear, scale = matrix[:3, :3], float(abs(np.linalg.det(matrix[:3, :3])) ** (1 / 3))
    points = frame.points.copy()
    points[:, :3] = frame.points[:, :3] @ linear.T + matrix[:3, 3]
    return replace(
        frame,
        points=points,
        boxes=moved_boxes(frame.boxes, matrix),
        ignored=moved_boxes(frame.ignored, matrix),
        flow=None if frame.flow is None else (frame.flow @ linear.T).astype(np.float32),
        views=tuple(replace(view, cam2ego=matrix @ view.cam2ego) for view in frame.views),
        ego2global=None if frame.ego2global is None else frame.ego2global @ np.linalg.inv(matrix),
        meta={**frame.meta, "moved": matrix @ frame.meta.get("moved", np.eye(4)), "scale": scale * frame.meta.get("scale", 1.0)},
    )


def moved_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Boxes [M, 9] in other coordinates: centre, size, yaw and velocity; see `moved`."""
    linear = matrix[:3, :3]
    scale = abs(np.linalg.det(linear)) ** (1 / 3)
    heading = np.stack((np.cos(boxes[:, 6]), np.sin(boxes[:, 6])), 1) @ linear[:2, :2].T
    parts = (
        boxes[:, :3] @ linear.T + matrix[:3, 3],
        boxes[:, 3:6] * scale,
        np.arctan2(heading[:, 1], heading[:, 0])[:, None],
        boxes[:, 7:9] @ linear[:2, :2].T,
    )
    return np.concatenate(parts, 1).astype(np.float32)


# Pictures -------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageAugment:
    """How a camera's pictures are brought to a size, and changed in training.

    Args:
        size: height and width that networks read; None for pictures as they are, unchanged.
        resize: by how much of its size a picture is further enlarged or made smaller, least and most, e.g. (-0.06, 0.11).
        mirror: probability that it is mirrored.
        rotation: degrees at most, to either side.
    """

    size: tuple[int, int] | None = None
    resize: tuple[float, float] = (0.0, 0.0)
    mirror: float = 0.0
    rotation: float = 0.0

    def apply(self, view: View, random: np.random.Generator | None = None) -> View:
        """A picture in its size; changed, where there is something to draw from. Depth and ids are left out of a changed one.

        The whole picture is brought to the size, each side by its own factor; what is enlarged is cropped around its middle.
        """
        if self.size is None:
            return view
        height, width = view.image.shape[:2]
        factors = np.array([self.size[1] / width, self.size[0] / height])
        middle = np.array([(self.size[1] - 1) / 2, (self.size[0] - 1) / 2])
        linear, shift = np.diag(factors), (factors - 1) / 2  # pixel centres are whole numbers
        if random is not None:
            enlarged, mirrored = 1 + random.uniform(*self.resize), random.random() < self.mirror
            angle = np.deg2rad(random.uniform(-1, 1) * self.rotation)
            change = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * enlarged
            change = change @ np.diag([-1.0 if mirrored else 1.0, 1.0])
            linear, shift = change @ linear, change @ (shift - middle) + middle
        if np.allclose(linear, np.eye(2)) and np.allclose(shift, 0):
            return view
        back = np.linalg.inv(linear)
        # PIL asks where in the old picture the corner-based coordinates (u + 0.5, v + 0.5) of the new one lie
        start = back @ (-0.5 - shift) + 0.5
        coefficients = (*back[0], start[0], *back[1], start[1])
        picture = Image.fromarray(view.image)
        if random is None:
            picture = picture.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)  # which averages where it makes smaller
        else:
            picture = picture.transform((self.size[1], self.size[0]), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
        post = np.eye(3, 4)
        post[:2, :2], post[:2, 3] = linear @ view.post[:2, :2], linear @ view.post[:2, 3] + shift
        return replace(view, image=np.asarray(picture), post=post, depth=None, ids=None)


# Objects of other frames ----------------------------------------------------------------------------------------------------------------


class ObjectBank:
    """Objects cut out of training frames, with their points, to be pasted into others (ground-truth sampling, for lidar networks).

    Args:
        frames: to cut from.
        num_classes: C.
        wanted: of each class, how many a frame is to hold, [C].
        least: points of an object that is worth pasting.
    """

    def __init__(self, frames: Sequence[Frame], num_classes: int, wanted: Sequence[int], *, least: int = 5) -> None:
        self.wanted = tuple(wanted)
        self._objects: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(num_classes)]
        for frame in frames:
            for box, label in zip(frame.boxes, frame.labels, strict=True):
                inside = frame.points[_inside(frame.points, box)]
                if len(inside) >= least:
                    self._objects[label].append((box, inside))

    def paste(self, frame: Frame, random: np.random.Generator) -> Frame:
        """A frame with objects added where they stood in theirs, as many as are wanted and stand on no other; points that they would hide
        or that lie in them are taken out. Points of the frame lose what else was known of them."""
        boxes, labels, clouds = frame.boxes, frame.labels, []
        for label, (objects, wanted) in enumerate(zip(self._objects, self.wanted, strict=True)):
            missing = min(wanted - int((frame.labels == label).sum()), len(objects))
            for number in random.permutation(len(objects))[: max(missing, 0)]:
                box, cloud = objects[number]
                if not len(boxes) or not overlapping(box[None, _FLAT], boxes[:, _FLAT]).any():
                    boxes, labels = np.concatenate((boxes, box[None])), np.append(labels, label)
                    clouds.append(cloud)
        if not clouds:
            return frame
        free = ~np.any([_inside(frame.points, box) for box in boxes[len(frame.boxes) :]], axis=0)
        points = np.concatenate((frame.points[free], *clouds))
        return replace(frame, points=points, boxes=boxes, labels=labels, about={}, point_labels=None, instances=None, flow=None)


def _inside(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Which points [N, D] lie in a box, bool [N]."""
    x, y, z = (points[:, :3] - box[:3]).T
    cos, sin = np.cos(box[6]), np.sin(box[6])
    along, across = np.abs(cos * x + sin * y), np.abs(cos * y - sin * x)
    return np.asarray((along <= box[3] / 2) & (across <= box[4] / 2) & (np.abs(z) <= box[5] / 2))


# Rooms ----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoomAugment:
    """How much a room may be changed: tilted, turned and scaled.

    Args:
        tilt: radians about x and about y, at most.
        turn: radians about z, at most.
        scale: least and most.
    """

    tilt: float = np.pi / 32
    turn: float = np.pi
    scale: tuple[float, float] = (0.9, 1.1)

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """One change, [3, 3]: the three turns in random order, and the scale."""
        turns = []
        for axis, most in enumerate((self.tilt, self.tilt, self.turn)):
            angle = random.uniform(-most, most)
            i, j = [(1, 2), (2, 0), (0, 1)][axis]
            turn = np.eye(3)
            turn[i, i] = turn[j, j] = np.cos(angle)
            turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
            turns.append(turn)
        a, b, c = (turns[k] for k in random.permutation(3))
        return np.asarray(a @ b @ c * random.uniform(*self.scale))
