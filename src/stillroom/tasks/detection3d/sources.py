"""What ``--data`` may be in detection in three dimensions."""

from __future__ import annotations

from stillroom.tasks.images.sources import Kind, open_spec
from stillroom.tasks.points.folder import open_points
from stillroom.tasks.points.kitti import open_kitti
from stillroom.tasks.points.nuscenes import open_nuscenes
from stillroom.tasks.points.sources import FrameSource
from stillroom.tasks.points.streets import OPTIONS, open_streets

KINDS: tuple[Kind[FrameSource], ...] = (
    Kind("streets", open_streets, OPTIONS, needs_path=None),
    Kind("nuscenes", open_nuscenes, ("sweeps", "cameras", "version", "val_scenes", "val"), needs_path="ROOT"),
    Kind("kitti", open_kitti, ("cameras", "val"), needs_path="ROOT"),
    Kind("points", open_points, ("val",), needs_path="FOLDER"),
)


def open_source(spec: str, argument: str = "data") -> FrameSource:
    """Find and list the frames that a specification names: ``streets``, ``nuscenes:ROOT``, ``kitti:ROOT`` or ``points:FOLDER``.

    Raises:
        InputError: anything about it that cannot be used.
    """
    return open_spec(spec, KINDS, argument, others=", followed by where the frames are, e.g. kitti:data/kitti")
