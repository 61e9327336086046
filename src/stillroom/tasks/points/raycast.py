"""What rays hit among boxes on a plane: the sensor of the made-up scenes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

GROUND, NOTHING = -1, -2  # in the place of a box's number
_OUTLINE = [0, 2, 6, 4]  # of the corners of `corners_of`, those of the bottom, around it
_NEAR = 1e-3  # metres in front of a camera from which a corner can be projected

# Which rays of a grid [rows, columns] can meet a box at all: from its corners [8, 3], as seen from the rays' origin.
Window = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Hits(NamedTuple):
    """What the rays of a grid hit first.

    Attributes:
        distance: float32 [rows, columns], in lengths of the ray's direction; infinite where it hits nothing.
        box: int64 [rows, columns], the number of a box, `GROUND` or `NOTHING`.
        local: float32 [rows, columns, 3], where a box was hit, in its own coordinates and of its half sides: -1 to 1.
        axis: int64 [rows, columns], the axis of the face that was hit, 0 to 2; its side is the sign of `local` there.
    """

    distance: np.ndarray
    box: np.ndarray
    local: np.ndarray
    axis: np.ndarray


def cast(origin: np.ndarray, directions: np.ndarray, boxes: np.ndarray, window: Window, *, ground: bool = True) -> Hits:
    """The nearest hit of every ray, by the slab test in the coordinates of each box.

    Args:
        origin: [3], where all rays begin. A box around it is not seen.
        directions: float32 [rows, columns, 3].
        boxes: [M, 7].
        window: rows and columns of the rays that a box can be met by; all others are not tested against it.
        ground: the plane z = 0 is seen from above.
    """
    shape = directions.shape[:2]
    distance = np.full(shape, np.inf, np.float32)
    box = np.full(shape, NOTHING, np.int64)
    local, axis = np.zeros((*shape, 3), np.float32), np.zeros(shape, np.int64)
    if ground:
        down = directions[..., 2] < -1e-6
        distance[down] = -origin[2] / directions[..., 2][down]
        box[down] = GROUND
    corners = corners_of(boxes) - origin
    for number in np.argsort(np.linalg.norm(boxes[:, :3] - origin, axis=1)):  # near ones first: what they hide needs no more than a test
        rows, columns = window(corners[number])
        if not len(rows) or not len(columns):
            continue
        at = np.ix_(rows, columns)
        turn = _turn(-float(boxes[number, 6]))
        half = (boxes[number, 3:6] / 2).astype(np.float32)
        start = (turn @ (origin - boxes[number, :3])).astype(np.float32)
        ways = np.moveaxis(directions[at], -1, 0)
        cos, sin = turn[0, 0].astype(np.float32), turn[1, 0].astype(np.float32)
        turned = cos * ways[0] - sin * ways[1], sin * ways[0] + cos * ways[1], ways[2]
        enters, leaves = [], []  # of each axis apart: sums over a short last axis are what costs
        for way, begin, reach in zip(turned, start, half, strict=True):
            inverse = 1 / np.where(np.abs(way) < 1e-9, np.float32(1e-9), way)
            middle, span = -begin * inverse, np.abs(reach * inverse)
            enters.append(middle - span)
            leaves.append(middle + span)
        into = np.maximum(np.maximum(enters[0], enters[1]), enters[2])
        out = np.minimum(np.minimum(leaves[0], leaves[1]), leaves[2])
        nearer = (into <= out) & (into > 0) & (into < distance[at])
        hit_row, hit_column = np.nonzero(nearer)
        if not len(hit_row):
            continue
        hit = rows[hit_row], columns[hit_column]
        lengths = into[nearer]
        distance[hit], box[hit], axis[hit] = lengths, number, np.stack([enter[nearer] for enter in enters]).argmax(0)
        places = [(begin + lengths * way[nearer]) / reach for way, begin, reach in zip(turned, start, half, strict=True)]
        local[hit] = np.stack(places, 1).clip(-1, 1)
    return Hits(distance, box, local, axis)


def whole(rows: int, columns: int) -> Window:
    """A window that leaves no ray out."""
    return lambda corners: (np.arange(rows), np.arange(columns))


def spinning_window(elevations: np.ndarray, azimuths: int) -> Window:
    """Of a lidar whose rows are elevations (rising, radians) and whose columns are azimuths all around, from 0 counter-clockwise."""
    step = 2 * np.pi / azimuths

    def window(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flat, nearest = np.hypot(corners[:, 0], corners[:, 1]), _distance(corners[_OUTLINE, :2])
        angles = np.arctan2(corners[:, 1], corners[:, 0])
        middle = np.arctan2(np.sin(angles).sum(), np.cos(angles).sum())
        off = (angles - middle + np.pi) % (2 * np.pi) - np.pi
        first, last = np.floor((middle + off.min()) / step), np.ceil((middle + off.max()) / step)
        around = off.max() - off.min() > np.pi  # the sensor stands over the box, or beside a long one
        columns = np.arange(azimuths) if around else np.arange(first, last + 1).astype(np.int64) % azimuths
        low, high = corners[:, 2].min(), corners[:, 2].max()
        least = np.arctan2(low, nearest if low < 0 else flat.max())
        most = np.arctan2(high, nearest if high > 0 else flat.max())
        return np.arange(np.searchsorted(elevations, least - 0.01), np.searchsorted(elevations, most + 0.01)), columns

    return window


def pinhole_window(intrinsics: np.ndarray, ego2cam: np.ndarray, height: int, width: int) -> Window:
    """Of a camera; its rays are those of its pixels."""

    def window(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seen = corners @ ego2cam[:3, :3].T
        if (seen[:, 2] <= _NEAR).all():
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        if (seen[:, 2] <= _NEAR).any():
            return np.arange(height), np.arange(width)
        pixels = seen @ intrinsics.T
        u, v = pixels[:, 0] / pixels[:, 2], pixels[:, 1] / pixels[:, 2]
        first_row, last_row = max(0, int(v.min())), min(height - 1, int(v.max()) + 1)
        first_column, last_column = max(0, int(u.min())), min(width - 1, int(u.max()) + 1)
        return np.arange(first_row, last_row + 1), np.arange(first_column, last_column + 1)

    return window


def pixel_rays(intrinsics: np.ndarray, cam2ego: np.ndarray, height: int, width: int) -> np.ndarray:
    """Directions of a camera's pixels in the coordinates of its vehicle, float32 [H, W, 3]; of length 1 along the camera's z."""
    v, u = np.mgrid[:height, :width]
    rays = np.stack((u, v, np.ones_like(u)), -1) @ np.linalg.inv(intrinsics).T
    return np.asarray(rays @ cam2ego[:3, :3].T, np.float32)


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Corners of boxes [M, 7], [M, 8, 3]."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
    local = signs[None] * boxes[:, None, 3:6]
    cos, sin = np.cos(boxes[:, 6])[:, None], np.sin(boxes[:, 6])[:, None]
    x, y = cos * local[..., 0] - sin * local[..., 1], sin * local[..., 0] + cos * local[..., 1]
    return np.asarray(np.stack((x, y, local[..., 2]), -1) + boxes[:, None, :3])


def overlapping(rectangles: np.ndarray, others: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Which rectangles seen from above share ground with which others, bool [N, M], by separating axes.

    Args:
        rectangles: [N, 5] of x, y, dx, dy, yaw.
        others: [M, 5].
        margin: metres around each of the first.
    """
    a, b = rectangles[:, None], others[None]
    apart = np.zeros((len(rectangles), len(others)), bool)
    sides_a, sides_b = (a[..., 2:4] + 2 * margin) / 2, b[..., 2:4] / 2
    for yaw in (a[..., 4], b[..., 4]):
        for turned in (0.0, np.pi / 2):
            x, y = np.cos(yaw + turned), np.sin(yaw + turned)
            gap = np.abs((b[..., 0] - a[..., 0]) * x + (b[..., 1] - a[..., 1]) * y)
            reach = np.zeros_like(gap)
            for sides, angle in ((sides_a, a[..., 4]), (sides_b, b[..., 4])):
                along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
                reach = reach + sides[..., 0] * np.abs(along) + sides[..., 1] * np.abs(across)
            apart |= gap >= reach
    return ~apart


def _distance(outline: np.ndarray) -> float:
    """Of the origin from the edges of a polygon [P, 2]."""
    edges = np.roll(outline, -1, 0) - outline
    along = np.clip(-(outline * edges).sum(1) / np.maximum((edges**2).sum(1), 1e-12), 0, 1)
    return float(np.linalg.norm(outline + along[:, None] * edges, axis=1).min())


def _turn(yaw: float) -> np.ndarray:
    """A turn about z, [3, 3]."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
