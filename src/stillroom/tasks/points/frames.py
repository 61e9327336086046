"""Frames: what a lidar, its cameras or a depth camera saw at one time, and batches of them.

Conventions of everything in three dimensions here: right-handed frames, z up, metres, radians, yaw counter-clockwise about +z and 0 along
+x. A box is ``x, y, z, dx, dy, dz, yaw[, vx, vy]``, its position the geometric centre, dx along its own x axis. Transforms are 4x4, act on
column vectors and are called `a2b`. A camera looks along its z, x to the right and y down; pixel centres are whole numbers. A frame's own
coordinates are those of the vehicle (x ahead, y left), or of the room. Readers convert what files hold otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.tasks.points.cameras import Cameras

VELOCITY = slice(7, 9)  # columns of a box that not every box has


@dataclass(frozen=True)
class View:
    """A picture and the camera that took it.

    Attributes:
        name: of the camera.
        image: uint8 [H, W, 3].
        intrinsics: float64 [3, 3], of the pixels as they were taken.
        cam2ego: float64 [4, 4], camera to the frame's coordinates.
        post: float64 [3, 4], what was done to the picture since: pixel ``post[:, :3] @ (u, v, 1) + post[:, 3]`` of `image` shows (u, v) of
            the one that `intrinsics` are of (its last row and third column are the identity's).
        depth: float32 [H, W], metres along the camera's z and 0 where unknown; None without a depth camera.
        ids: int64 [H, W], of made-up scenes: which object each pixel shows, see `Frame.instances`.
    """

    name: str
    image: np.ndarray
    intrinsics: np.ndarray
    cam2ego: np.ndarray
    post: np.ndarray = field(default_factory=lambda: np.eye(3, 4))
    depth: np.ndarray | None = None
    ids: np.ndarray | None = None


@dataclass(frozen=True)
class Frame:
    """What was seen at one time, and what is known of it. N points, M boxes.

    Attributes:
        points: float32 [N, D]; the first three columns are x, y, z.
        columns: names of the D columns: x, y, z, then of intensity (in [0, 1]), ring, lag (seconds that a point is older than the frame),
            red, green, blue (in [0, 1]), ... those that there are.
        boxes: float32 [M, 9]; velocities that are not known are NaN.
        labels: int64 [M], 0 .. C-1.
        about: more of each box by name, [M, ...]: points (how many are in it), truncated, occluded, pixels (its height in the image),
            track, attribute, difficulty; those that the files tell.
        ignored: float32 [I, 9], boxes that are neither to be found nor wrong.
        ignored_labels: int64 [I], of which class each is neighbour; -1 for any.
        point_labels: int64 [N], -1 for none; None where points have no labels.
        instances: int64 [N], -1 for none; likewise.
        flow: float32 [N, 3], metres that each point moves until the next frame, without what the vehicle itself moves; None where unknown.
        views: the pictures.
        ego2global: float64 [4, 4], to coordinates that all frames of a sequence share; None for a frame without a pose.
        time: seconds.
        name: what reports call it.
        sequence: which one it belongs to; frames of a sequence stand one behind the other.
        meta: whatever else belongs to it, plain values.
    """

    points: np.ndarray
    columns: tuple[str, ...]
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 9), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    about: Mapping[str, np.ndarray] = field(default_factory=dict)
    ignored: np.ndarray = field(default_factory=lambda: np.zeros((0, 9), np.float32))
    ignored_labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    point_labels: np.ndarray | None = None
    instances: np.ndarray | None = None
    flow: np.ndarray | None = None
    views: tuple[View, ...] = ()
    ego2global: np.ndarray | None = None
    time: float = 0.0
    name: str = ""
    sequence: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def take_points(self, kept: np.ndarray) -> Frame:
        """The same with some of its points: a mask [N] or indices."""
        labels, instances, flow = (None if v is None else v[kept] for v in (self.point_labels, self.instances, self.flow))
        return replace(self, points=self.points[kept], point_labels=labels, instances=instances, flow=flow)

    def take_boxes(self, kept: np.ndarray) -> Frame:
        """The same with some of its boxes: a mask [M] or indices."""
        about = {name: values[kept] for name, values in self.about.items()}
        return replace(self, boxes=self.boxes[kept], labels=self.labels[kept], about=about)

    def column(self, name: str) -> np.ndarray:
        """A column of the points by its name, float32 [N].

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.columns:
            raise InputError("columns", name, f"one of {', '.join(self.columns)}")
        return np.asarray(self.points[:, self.columns.index(name)])

    def with_columns(self, names: Sequence[str]) -> Frame:
        """The same with these columns in this order; what it has not is zero."""
        if tuple(names) == self.columns:
            return self
        points = np.zeros((len(self.points), len(names)), np.float32)
        for at, name in enumerate(names):
            if name in self.columns:
                points[:, at] = self.column(name)
        return replace(self, points=points, columns=tuple(names))


def boxes_of(rows: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Boxes of 7 or 9 numbers as float32 [M, 9]; velocities that are not there are NaN."""
    boxes = np.full((len(rows), 9), np.nan, np.float32)
    if len(rows):
        given = np.asarray(rows, np.float32)
        boxes[:, : given.shape[1]] = given
    return boxes


class Cleaned(NamedTuple):
    """What `cleaned` left out of a frame."""

    frame: Frame
    points: int
    boxes: int


def cleaned(frame: Frame) -> Cleaned:
    """A frame without points that have a coordinate which is no number, and without boxes that have no size; and how many these were.

    Other columns of a point that are no number become 0.
    """
    finite_N = np.isfinite(frame.points[:, :3]).all(1)
    sound_M = np.isfinite(frame.boxes[:, :7]).all(1) & (frame.boxes[:, 3:6] > 0).all(1)
    points, boxes = int((~finite_N).sum()), int((~sound_M).sum())
    if points:
        frame = frame.take_points(finite_N)
    if boxes:
        frame = frame.take_boxes(sound_M)
    if not np.isfinite(frame.points).all():
        frame = replace(frame, points=np.nan_to_num(frame.points, nan=0.0, posinf=0.0, neginf=0.0))
    return Cleaned(frame, points, boxes)


# Batches --------------------------------------------------------------------------------------------------------------------------------


class FrameInputs(NamedTuple):
    """What networks read of B frames.

    Attributes:
        points: float32 [sum of N, D].
        batch_index: int64 [sum of N], sorted: the frame of each point.
        batch_size: B; the last frames may have no points.
        images: float32 [B, V, 3, H, W] in [0, 1]; None without cameras.
        cameras: of the images.
        ego2global: float64 [B, 4, 4]; None where a frame has none.
    """

    points: Tensor
    batch_index: Tensor
    batch_size: int
    images: Tensor | None = None
    cameras: Cameras | None = None
    ego2global: Tensor | None = None


class FrameBatch(NamedTuple):
    """Frames and what is known of them.

    Attributes:
        inputs: what networks read.
        boxes: of each frame float32 [M, 9]; unknown velocities are NaN.
        labels: of each frame int64 [M].
        ids: int64 [B], each frame's index in its data set.
        point_labels: int64 [sum of N], -1 for none; None where the data have none.
        instances: int64 [sum of N], likewise.
        flow: float32 [sum of N, 3], likewise.
        ignored: of each frame float32 [I, 9], with `ignored_labels` int64 [I].
        about: of each frame, see `Frame.about`; what is not a number is left out.
        previous: what networks read of the frame before each, for students that look back; None where the data show none.
    """

    inputs: FrameInputs
    boxes: list[Tensor]
    labels: list[Tensor]
    ids: Tensor
    point_labels: Tensor | None = None
    instances: Tensor | None = None
    flow: Tensor | None = None
    ignored: list[Tensor] = []  # noqa: RUF012 - a NamedTuple's default, never changed
    ignored_labels: list[Tensor] = []  # noqa: RUF012
    about: list[dict[str, Tensor]] = []  # noqa: RUF012
    previous: FrameInputs | None = None

    @property
    def points(self) -> Tensor:
        """[sum of N, D]."""
        return self.inputs.points

    @property
    def batch_index(self) -> Tensor:
        """[sum of N]."""
        return self.inputs.batch_index


def collate(frames: Sequence[Frame], ids: Sequence[int], previous: Sequence[Frame] = ()) -> FrameBatch:
    """One batch of frames.

    Args:
        frames: of the same columns and cameras; smaller images are padded.
        ids: their indices in the data set.
        previous: the frame before each, if a student looks back.

    Raises:
        InputError: frames of different columns or cameras.
    """
    return FrameBatch(
        inputs=_inputs(frames),
        boxes=[torch.from_numpy(np.ascontiguousarray(frame.boxes, np.float32)) for frame in frames],
        labels=[torch.from_numpy(np.asarray(frame.labels, np.int64)) for frame in frames],
        ids=torch.tensor(list(ids), dtype=torch.int64),
        point_labels=_joined([frame.point_labels for frame in frames]),
        instances=_joined([frame.instances for frame in frames]),
        flow=_joined([frame.flow for frame in frames]),
        ignored=[torch.from_numpy(np.asarray(frame.ignored, np.float32)) for frame in frames],
        ignored_labels=[torch.from_numpy(np.asarray(frame.ignored_labels, np.int64)) for frame in frames],
        about=[{k: torch.from_numpy(np.asarray(v)) for k, v in frame.about.items() if v.dtype.kind in "fiub"} for frame in frames],
        previous=_inputs(previous) if previous else None,
    )


def _inputs(frames: Sequence[Frame]) -> FrameInputs:
    first = frames[0]
    for frame in frames:
        if frame.columns != first.columns:
            raise InputError("data", f"{frame.name or 'a frame'} with points of {list(frame.columns)}", f"{list(first.columns)}")
        names = [view.name for view in frame.views]
        if names != [view.name for view in first.views]:
            raise InputError("data", f"{frame.name or 'a frame'} with cameras {names}", f"{[view.name for view in first.views]}")
    counts = [len(frame.points) for frame in frames]
    points = torch.from_numpy(np.concatenate([frame.points for frame in frames]).astype(np.float32, copy=False))
    images = cameras = None
    if first.views:
        every = [[view.image for view in frame.views] for frame in frames]
        height, width = np.array([image.shape[:2] for row in every for image in row]).max(0)
        # what is smaller gets black pixels on the right and below, where they move nothing: KITTI's pictures differ by some
        pixels = np.zeros((len(frames), len(first.views), height, width, 3), np.uint8)
        for sample, pictures in enumerate(every):
            for number, image in enumerate(pictures):
                pixels[sample, number, : image.shape[0], : image.shape[1]] = image
        images = torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).contiguous().float() / 255
        matrices = [np.array([[getattr(v, name) for v in f.views] for f in frames]) for name in ("intrinsics", "cam2ego", "post")]
        intrinsics, cam2ego, post = (torch.from_numpy(matrix).float() for matrix in matrices)
        cameras = Cameras(intrinsics, cam2ego, post[..., :3], post[..., 3])
    poses = [frame.ego2global for frame in frames]
    known = None if any(pose is None for pose in poses) else torch.from_numpy(np.array(poses, np.float64))
    index = torch.repeat_interleave(torch.arange(len(frames)), torch.tensor(counts))
    return FrameInputs(points, index, len(frames), images, cameras, known)


def _joined(columns: Sequence[np.ndarray | None]) -> Tensor | None:
    known = [column for column in columns if column is not None]
    return torch.from_numpy(np.concatenate(known)) if len(known) == len(columns) else None
