"""What ``--data`` may be in segmentation of scans."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stillroom.tasks.images.sources import Kind, open_spec, whole_numbers
from stillroom.tasks.points.frames import Frame
from stillroom.tasks.points.grid import ClassList
from stillroom.tasks.points.rgbd import open_rgbd
from stillroom.tasks.points.rooms import CLASSES, COLUMNS, RoomSpec, RoomWorld
from stillroom.tasks.points.s3dis import open_s3dis
from stillroom.tasks.points.scannet import open_scannet
from stillroom.tasks.points.sources import FrameSource

_ROOMS = {"train": 24, "val": 12, "views": 6, "seed": 0}
VOXEL = {"rooms": 0.08, "scannet": 0.02, "s3dis": 0.05, "rgbd": 0.04}  # metres, by default


@dataclass(frozen=True)
class Rooms:
    """Made-up rooms.

    Args:
        seed: of them all, and a number that no other split has.
        numbers: which rooms.
        spec: what they are like.
    """

    seed: tuple[int, int]
    numbers: tuple[int, ...]
    spec: RoomSpec

    def __len__(self) -> int:
        return len(self.numbers)

    def frame(self, index: int) -> Frame:
        """One scan, made now."""
        return replace(RoomWorld((*self.seed, self.numbers[index]), self.spec).frame(), name=self.name(index), sequence=self.name(index))

    def name(self, index: int) -> str:
        """What a report calls it."""
        return f"room {self.numbers[index]}"

    def sequence(self, index: int) -> str:
        """Every room stands alone."""
        return self.name(index)

    def take(self, indices: np.ndarray) -> Rooms:
        """Some of them."""
        return replace(self, numbers=tuple(self.numbers[i] for i in indices))


def open_rooms(path: str, options: dict[str, str], argument: str) -> FrameSource:
    """Rooms made up from a seed, see `points.rooms`: ``train=24``, ``val=12``, of ``views=6`` posed pictures each; ``seed=0``."""
    numbers = _ROOMS | whole_numbers(options, argument)
    spec = RoomSpec(views=numbers["views"])
    train, val = (Rooms((numbers["seed"], k), tuple(range(numbers[split])), spec) for k, split in enumerate(("train", "val")))
    return FrameSource(
        name="rooms", classes=ClassList(CLASSES), train=train, val=val, columns=COLUMNS, pointwise=True,
        fingerprint=f"rooms 1 {sorted(numbers.items())}",
    )  # fmt: skip


KINDS: tuple[Kind[FrameSource], ...] = (
    Kind("rooms", open_rooms, tuple(_ROOMS), needs_path=None),
    Kind("scannet", open_scannet, ("every", "val_scenes", "val"), needs_path="ROOT"),
    Kind("s3dis", open_s3dis, ("val",), needs_path="ROOT"),
    Kind("rgbd", open_rgbd, ("val",), needs_path="FOLDER"),
)


def open_source(spec: str, argument: str = "data") -> FrameSource:
    """Find and list the scans that a specification names: ``rooms``, ``scannet:ROOT``, ``s3dis:ROOT`` or ``rgbd:FOLDER``.

    Raises:
        InputError: anything about it that cannot be used.
    """
    return open_spec(spec, KINDS, argument, others=", followed by where the scans are, e.g. scannet:data/scannet")
