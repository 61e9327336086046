"""S3DIS: rooms as text, one file for each object: ``Area_1/office_2/Annotations/chair_1.txt`` with lines x y z r g b."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stillroom.errors import InputError
from stillroom.tasks.points.frames import Frame
from stillroom.tasks.points.grid import ClassList
from stillroom.tasks.points.place import Place, open_place
from stillroom.tasks.points.rooms import thinned
from stillroom.tasks.points.sources import FrameSource, ListedFrames, held_out, no_share

COLUMNS = ("x", "y", "z", "red", "green", "blue")
CLASSES = (
    "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board", "clutter",
)  # fmt: skip
_GRID = 0.01  # metres
_TEST = "Area_5"


def open_s3dis(path: str, options: dict[str, str], argument: str) -> FrameSource:
    """A folder or archive with areas; Area 5 is measured with where it is among others, else a share of the rooms (``val=0.2``).

    Raises:
        InputError: there is no room.
    """
    place = open_place(path, argument)
    rooms = sorted({name.rpartition("/Annotations/")[0] for name in place.files if "/Annotations/" in name and name.endswith(".txt")})
    if not rooms:
        raise InputError(argument, path, "rooms: Area_1/office_1/Annotations/*.txt")
    frames = ListedFrames(S3dis(place).frame, rooms, rooms)
    test_N = np.array([_TEST in room.split("/") for room in rooms])
    if test_N.any() and not test_N.all():
        no_share(options, argument, "Area 5")
        train, val = frames.take(np.flatnonzero(~test_N)), frames.take(np.flatnonzero(test_N))
    else:
        train, val = held_out(frames, options, argument)
    names = sorted(name for name in place.files if "/Annotations/" in name)
    return FrameSource(
        name="s3dis", classes=ClassList(CLASSES), train=train, val=val, columns=COLUMNS, pointwise=True,
        fingerprint=place.fingerprint("s3dis", tuple(val.names), names=names),
    )  # fmt: skip


@dataclass(frozen=True)
class S3dis:
    """Reads rooms.

    Args:
        place: where they lie.
        grid: metres; of all points in a cell one is kept.
    """

    place: Place
    grid: float = _GRID

    def frame(self, room: str) -> Frame:
        """A room, thinned out; objects of names that are not known are clutter.

        Raises:
            InputError: a file holds no points.
        """
        clouds, labels, instances = [], [], []
        for number, name in enumerate(self.place.inside(f"{room}/Annotations", ".txt")):
            kind = name.rpartition("/")[2].partition("_")[0].removesuffix(".txt")
            rows = self._rows(name)
            clouds.append(rows)
            labels.append(np.full(len(rows), CLASSES.index(kind) if kind in CLASSES else CLASSES.index("clutter"), np.int64))
            instances.append(np.full(len(rows), number, np.int64))
        points = np.concatenate(clouds)
        points[:, 3:] /= 255
        kept = thinned(points[:, :3], self.grid, np.random.default_rng(0))
        label, instance = np.concatenate(labels)[kept], np.concatenate(instances)[kept]
        cloud = points[kept].astype(np.float32)
        return Frame(cloud, COLUMNS, point_labels=label, instances=instance, ego2global=np.eye(4), name=room, sequence=room)

    def _rows(self, name: str) -> np.ndarray:
        """Lines of six numbers, [N, 6]; a byte that is none (there is one in Area 5) is a space."""
        text = self.place.bytes(name).decode("ascii", "replace").replace("�", " ").replace("\x10", " ")
        rows = [line.split() for line in text.splitlines()]
        # the broken line splits into seven words: a number was cut in two
        whole = [row for row in rows if len(row) == 6]
        try:
            found = np.array(whole, np.float64).reshape(-1, 6)
        except ValueError:
            raise self.place.fail(name, "with lines that are no numbers", "x y z r g b on each line") from None
        if not len(found) or len(whole) < len([row for row in rows if row]) - 1:
            raise self.place.fail(name, "with lines that are not of six numbers", "x y z r g b on each line")
        return found
