"""Data sets of frames that were found and listed: what readers give and what the base of all data on points takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stillroom.engine.run.written import write_atomic
from stillroom.errors import InputError
from stillroom.tasks.images.files import Folder, Store
from stillroom.tasks.images.sources import held_out_samples, held_out_share
from stillroom.tasks.points.frames import Frame
from stillroom.tasks.points.grid import ClassList

INDEX = "stillroom_index.jsonl"


class Frames(Protocol):
    """Frames that are read one at a time."""

    def __len__(self) -> int:
        """How many."""

    def frame(self, index: int) -> Frame:
        """One frame, read now."""

    def name(self, index: int) -> str:
        """What a report calls it."""

    def sequence(self, index: int) -> str:
        """Which sequence it belongs to; frames of a sequence stand one behind the other, in the order of their time."""

    def take(self, indices: np.ndarray) -> Frames:
        """Some of them, renumbered from 0."""


@dataclass(frozen=True)
class ListedFrames:
    """Frames of which a reader knows the keys.

    Args:
        read: makes the frame of a key.
        keys: what the reader knows each by.
        names: what reports call them.
        sequences: which each belongs to; empty where every frame stands alone.
    """

    read: Callable[[Any], Frame]
    keys: Sequence[Any]
    names: Sequence[str]
    sequences: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def frame(self, index: int) -> Frame:
        """One frame, read now."""
        return self.read(self.keys[index])

    def name(self, index: int) -> str:
        """What a report calls it."""
        return self.names[index]

    def sequence(self, index: int) -> str:
        """Which sequence it belongs to."""
        return self.sequences[index] if self.sequences else self.names[index]

    def take(self, indices: np.ndarray) -> ListedFrames:
        """Some of them, renumbered from 0."""
        keys, names = [self.keys[i] for i in indices], [self.names[i] for i in indices]
        return ListedFrames(self.read, keys, names, [self.sequences[i] for i in indices] if self.sequences else ())


@dataclass(frozen=True, kw_only=True)
class FrameSource:
    """A data set that was found and listed.

    Attributes:
        name: its kind, e.g. "kitti".
        classes: of boxes or of points, with their groups and how far each is measured.
        train, val: the frames.
        columns: of their points.
        fingerprint: hash of what was listed: names, sizes, labels; not of where the files lie.
        reach: metres that detectors look at by default: least x, y, z, then most x, y, z.
        measure: how detections are scored: "nuscenes", "kitti" or "distance".
        teacher: frames that a teacher is trained on, where they are others.
        said: what a user must know of how they were found: sentences without a full stop.
        pointwise: points have labels, of `classes`.
        attributes: names by the numbers in `Frame.about["attribute"]`.
    """

    name: str
    classes: ClassList
    train: Frames
    val: Frames
    columns: tuple[str, ...]
    fingerprint: str
    reach: tuple[float, float, float, float, float, float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    measure: str = "distance"
    teacher: Frames | None = None
    said: tuple[str, ...] = ()
    pointwise: bool = False
    attributes: tuple[str, ...] = ()


def held_out(frames: ListedFrames, options: Mapping[str, str], argument: str) -> tuple[ListedFrames, ListedFrames]:
    """Frames to train on, and the share that the option `val` holds out to measure with: whole sequences, so that no scene is in both.

    Raises:
        InputError: one of the two is left without a frame.
    """
    share = held_out_share(dict(options), argument)
    sequences = [frames.sequence(index) for index in range(len(frames))]
    distinct = list(dict.fromkeys(sequences))
    held = {distinct[k] for k in np.flatnonzero(held_out_samples(len(distinct), share))}
    if len(distinct) < 2:  # one drive: its end, since neighbours in time are almost the same picture
        cut = len(frames) - max(1, round(share * len(frames)))
        val_N = np.arange(len(frames)) >= cut
    else:
        val_N = np.array([sequence in held for sequence in sequences])
    if val_N.all() or not val_N.any():
        raise InputError(
            argument, f"{len(frames)} frame{'' if len(frames) == 1 else 's'}", "at least one to train on and one to measure with"
        )
    return frames.take(np.flatnonzero(~val_N)), frames.take(np.flatnonzero(val_N))


@dataclass
class Notes:
    """What was met in files and passed over or put right, with how often and where first."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, where: str, count: int = 1) -> None:
        """Counts it."""
        if count:
            self.counts[what] = self.counts.get(what, 0) + count
            self.first.setdefault(what, where)

    def lines(self) -> tuple[str, ...]:
        """A sentence for each, without a full stop."""
        return tuple(f"{count} {what}, first in {self.first[what]}" for what, count in self.counts.items())


def indexed(store: Store, files: Mapping[str, int], build: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows that `build` makes of a data set's tables, kept in a file beside them (JSON lines), and read from it the next time.

    The first line of the file says what it was made of: bytes and date of every file in `files`. Data in archives, or in a folder that
    cannot be written, are read anew each time.

    Args:
        store: where the files lie.
        files: names and bytes of the files that `build` reads.
        build: reads them; rows of plain values.
    """
    if not isinstance(store, Folder):
        return build()
    made_of = {name: [size, (store.root / name).stat().st_mtime_ns] for name, size in sorted(files.items())}
    path = Path(store.root) / INDEX
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        if json.loads(head) == made_of:
            return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        pass
    rows = build()
    with suppress(OSError):  # a folder that cannot be written
        write_atomic(path, "\n".join(json.dumps(row) for row in (made_of, *rows)) + "\n")
    return rows
