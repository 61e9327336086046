"""Rooms made up from a seed: a box of floor and walls, furniture of boxes in it, and depth cameras that look around.

Points are what the cameras saw, thinned out on a grid: near surfaces are dense, backs and undersides are missing, as in real scans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stillroom.errors import InputError, at_least
from stillroom.tasks.points.frames import Frame, View
from stillroom.tasks.points.raycast import cast, overlapping, pinhole_window, pixel_rays

CLASSES = ("floor", "wall", "table", "chair", "cabinet", "bed", "lamp", "bin")
COLUMNS = ("x", "y", "z", "red", "green", "blue")
_TRIES = 30
_THICK = 0.1  # metres of floors and walls
# Colours that a class tends to; objects mix them half and half with colours of their own.
_PALETTE: Mapping[str, tuple[float, float, float]] = {
    "floor": (0.55, 0.42, 0.30), "wall": (0.82, 0.80, 0.74), "table": (0.60, 0.38, 0.20), "chair": (0.25, 0.35, 0.60),
    "cabinet": (0.70, 0.62, 0.50), "bed": (0.65, 0.30, 0.35), "lamp": (0.90, 0.85, 0.45), "bin": (0.25, 0.45, 0.30),
}  # fmt: skip
_AGAINST_WALLS = ("cabinet", "bed")


@dataclass(frozen=True)
class RoomSpec:
    """What rooms are like.

    Args:
        side: metres of length and width, least and most.
        height: metres.
        furniture: of each class how many, least and most.
        views: cameras on an ellipse inside, at 1.6 m.
        image_size: height and width of their pictures in pixels.
        field_of_view: degrees across.
        grid: metres; of all points in a cell one is kept.
    """

    side: tuple[float, float] = (4.0, 6.0)
    height: float = 2.6
    furniture: tuple[tuple[str, int, int], ...] = (
        ("table", 1, 2), ("chair", 2, 5), ("cabinet", 1, 3), ("bed", 0, 2), ("lamp", 1, 2), ("bin", 1, 3)
    )  # fmt: skip
    views: int = 6
    image_size: tuple[int, int] = (96, 128)
    field_of_view: float = 75.0
    grid: float = 0.12

    def __post_init__(self) -> None:
        at_least("views", self.views, 1)
        if not 1 < self.side[0] <= self.side[1]:
            raise InputError("side", list(self.side), "two lengths above 1 metre, the smaller first")


class RoomWorld:
    """A room and what cameras saw of it; the same bytes for the same seed.

    Args:
        seed: one number, or several.
        spec: what it is like.

    Attributes:
        boxes: float64 [P, 7], the parts of all things.
        classes: int64 [P], of `CLASSES`.
        things: int64 [P], which thing each part belongs to; floor and walls are things of their own.
    """

    def __init__(self, seed: int | tuple[int, ...], spec: RoomSpec | None = None) -> None:
        self.seed, self.spec = seed, spec or RoomSpec()
        self._random = np.random.default_rng(seed)
        self._size = self._random.uniform(*self.spec.side, 2)
        parts, names, things = self._shell()
        taken = np.zeros((0, 5))
        number = 5
        for name, least, most in self.spec.furniture:
            for _ in range(int(self._random.integers(least, most + 1))):
                placed = self._placed(name, taken)
                if placed is None:
                    continue
                boxes, footprint = placed
                taken = np.concatenate((taken, footprint))
                parts += list(boxes)
                names += [name] * len(boxes)
                things += [number] * len(boxes)
                number += 1
        self.boxes = np.array(parts)
        self.classes = np.array([CLASSES.index(name) for name in names], np.int64)
        self.things = np.array(things, np.int64)
        own = self._random.uniform(0.1, 0.9, (number, 3))
        palette = np.array([_PALETTE[name] for name in names])
        self._colours = 0.5 * palette + 0.5 * own[self.things]
        light = self._random.normal(size=3) * 0.6 + np.array([0, 0, 1.0])
        self._light = light / np.linalg.norm(light)

    def _shell(self) -> tuple[list[np.ndarray], list[str], list[int]]:
        """Floor and four walls."""
        length, width = self._size
        height = self.spec.height
        floor = np.array([0, 0, -_THICK / 2, length, width, _THICK, 0.0])
        walls = [
            np.array([sign * (length + _THICK) / 2, 0, height / 2, _THICK, width + 2 * _THICK, height, 0.0]) for sign in (-1, 1)
        ] + [np.array([0, sign * (width + _THICK) / 2, height / 2, length, _THICK, height, 0.0]) for sign in (-1, 1)]  # fmt: skip
        return [floor, *walls], ["floor", *["wall"] * 4], [0, 1, 2, 3, 4]

    def _placed(self, name: str, taken: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Parts of a piece of furniture in the room, [P, 7], and the ground that it takes, [1, 5]; None where there is no room."""
        random = self._random
        local = _furniture(name, random)
        reach = np.abs(local[:, :2]) + local[:, 3:5] / 2
        size = 2 * reach.max(0)
        for _ in range(_TRIES):
            if name in _AGAINST_WALLS:
                side = int(random.integers(4))
                yaw = side * np.pi / 2
                across = self._size[1] if side % 2 == 0 else self._size[0]
                along = self._size[0] if side % 2 == 0 else self._size[1]
                x, y = along / 2 - size[0] / 2 - 0.02, random.uniform(-1, 1) * max(across / 2 - size[1] / 2 - 0.05, 0)
                centre = np.array([np.cos(yaw) * x - np.sin(yaw) * y, np.sin(yaw) * x + np.cos(yaw) * y])
            else:
                yaw = random.uniform(-np.pi, np.pi)
                room = self._size / 2 - np.linalg.norm(size) / 2 - 0.05
                centre = random.uniform(-1, 1, 2) * room.clip(0)
            footprint = np.array([[*centre, *size, yaw]])
            if not len(taken) or not overlapping(footprint, taken, 0.05).any():
                cos, sin = np.cos(yaw), np.sin(yaw)
                moved = local.copy()
                moved[:, 0] = cos * local[:, 0] - sin * local[:, 1] + centre[0]
                moved[:, 1] = sin * local[:, 0] + cos * local[:, 1] + centre[1]
                moved[:, 6] += yaw
                return moved, footprint
        return None

    def frame(self) -> Frame:
        """The scan: points with colours, classes and things, and the posed pictures with depth.

        ``meta["pixels"]`` is int64 [N, 3], which view, row and column saw each point that was kept.
        """
        seed = self.seed if isinstance(self.seed, tuple) else (self.seed,)
        random = np.random.default_rng((*seed, 1))
        clouds, labels, things, pixels, views = [], [], [], [], []
        for number in range(self.spec.views):
            intrinsics, cam2ego = self.camera(number)
            height, width = self.spec.image_size
            rays = pixel_rays(intrinsics, cam2ego, height, width)
            window = pinhole_window(intrinsics, np.linalg.inv(cam2ego), height, width)
            hits = cast(cam2ego[:3, 3], rays, self.boxes, window, ground=False)
            seen = hits.box >= 0
            depth = np.where(seen, hits.distance + random.normal(0, 0.005, hits.distance.shape), 0).astype(np.float32)
            image = self._picture(hits.box, hits.axis, hits.local, random)
            row, column = np.nonzero(seen)
            place = cam2ego[:3, 3] + rays[seen] * depth[seen][:, None]
            clouds.append(np.concatenate((place, image[seen] / 255), 1))
            labels.append(self.classes[hits.box[seen]])
            things.append(self.things[hits.box[seen]])
            pixels.append(np.stack((np.full(len(row), number), row, column), 1))
            ids = np.where(seen, self.things[hits.box.clip(0)], -1)
            views.append(View(f"view {number}", image, intrinsics, cam2ego, depth=depth, ids=ids))
        points = np.concatenate(clouds).astype(np.float32)
        kept = thinned(points[:, :3], self.spec.grid, random)
        return Frame(
            points=points[kept],
            columns=COLUMNS,
            point_labels=np.concatenate(labels)[kept],
            instances=np.concatenate(things)[kept],
            views=tuple(views),
            ego2global=np.eye(4),
            name=f"room {self.seed}",
            sequence=f"room {self.seed}",
            meta={"pixels": np.concatenate(pixels)[kept]},
        )

    def camera(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Intrinsics [3, 3] and cam2ego [4, 4] of a view: it stands on an ellipse and looks across the room, a little downwards."""
        height, width = self.spec.image_size
        focal = width / 2 / np.tan(np.deg2rad(self.spec.field_of_view) / 2)
        intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
        angle = 2 * np.pi * number / self.spec.views + 0.3
        place = np.array([0.38 * self._size[0] * np.cos(angle), 0.38 * self._size[1] * np.sin(angle), 1.6])
        ahead = np.array([0.0, 0.0, 0.75]) - place
        ahead /= np.linalg.norm(ahead)
        right = np.cross(ahead, [0, 0, 1.0])
        right /= np.linalg.norm(right)
        cam2ego = np.eye(4)
        cam2ego[:3, :3], cam2ego[:3, 3] = np.stack((right, np.cross(ahead, right), ahead), 1), place
        return intrinsics, cam2ego

    def _picture(self, box: np.ndarray, axis: np.ndarray, local: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """What the pixels show, uint8 [H, W, 3]; black where they look past the walls."""
        on = box >= 0
        side = np.sign(np.take_along_axis(local[on], axis[on][:, None], 1))[:, 0]
        yaw = self.boxes[box[on], 6]
        x, y, z = (np.where(axis[on] == k, side, 0) for k in range(3))
        normals = np.stack((np.cos(yaw) * x - np.sin(yaw) * y, np.sin(yaw) * x + np.cos(yaw) * y, z), 1)
        bright = 0.55 + 0.45 * np.abs(normals @ self._light)
        grain = 1 + 0.08 * np.sin(14 * local[on][:, 0] * self.boxes[box[on], 3]) * (self.classes[box[on]] == CLASSES.index("floor"))
        image = np.zeros((*box.shape, 3))
        image[on] = self._colours[box[on]] * (bright * grain)[:, None]
        image[on] += random.normal(0, 0.02, (int(on.sum()), 3))
        return np.asarray((image.clip(0, 1) * 255).round(), np.uint8)


def thinned(points: np.ndarray, grid: float, random: np.random.Generator) -> np.ndarray:
    """Which of the points [N, 3] are kept when each cell of a grid keeps one, drawn at random: int64, sorted."""
    order = random.permutation(len(points))
    cells = np.floor(points[order] / grid).astype(np.int64)
    cells -= cells.min(0, initial=0)
    extent = cells.max(0, initial=0) + 1
    key = (cells[:, 0] * extent[1] + cells[:, 1]) * extent[2] + cells[:, 2]
    _, first = np.unique(key, return_index=True)
    return np.sort(order[first])


def _furniture(name: str, random: np.random.Generator) -> np.ndarray:
    """Parts of a piece, [P, 7], on the ground, its back towards +x."""

    def size(*metres: float) -> list[float]:
        return [metre * float(random.uniform(0.85, 1.15)) for metre in metres]

    if name == "table":
        length, width, height = size(1.3, 0.8, 0.74)
        top = [[0, 0, height - 0.02, length, width, 0.04, 0]]
        return np.array(top + _legs(length, width, height - 0.04, 0.05))
    if name == "chair":
        length, width, seat = size(0.45, 0.45, 0.46)
        back = size(0.45)[0]
        parts = [[0, 0, seat - 0.025, length, width, 0.05, 0], [length / 2 - 0.02, 0, seat + back / 2, 0.04, width, back, 0]]
        return np.array(parts + _legs(length, width, seat - 0.05, 0.04))
    if name == "cabinet":
        depth, width, height = size(0.45, 0.95, 1.6)
        return np.array([[0, 0, height / 2, depth, width, height, 0]])
    if name == "bed":
        length, width, height = size(1.95, 1.3, 0.45)
        pillow = [length / 2 - 0.3, 0, height + 0.05, 0.4, 0.8 * width, 0.1, 0]
        return np.array([[0, 0, height / 2, length, width, height, 0], pillow, [length / 2 - 0.03, 0, 0.45, 0.06, width, 0.9, 0]])
    if name == "lamp":
        height, shade = size(1.5, 0.4)
        foot = [0, 0, 0.02, 0.3, 0.3, 0.04, 0]
        return np.array([foot, [0, 0, height / 2, 0.05, 0.05, height, 0], [0, 0, height, shade, shade, 0.28, 0]])
    length, width, height = size(0.3, 0.3, 0.4)
    return np.array([[0, 0, height / 2, length, width, height, 0]])


def _legs(length: float, width: float, height: float, thick: float) -> list[list[float]]:
    x, y = (length - thick) / 2, (width - thick) / 2
    return [[sx * x, sy * y, height / 2, thick, thick, height, 0] for sx in (-1, 1) for sy in (-1, 1)]
