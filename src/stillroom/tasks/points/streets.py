"""Made-up streets as a data set: ``--data streets``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from stillroom.errors import InputError
from stillroom.tasks.images.sources import whole_numbers
from stillroom.tasks.points.frames import Frame
from stillroom.tasks.points.grid import ClassList
from stillroom.tasks.points.sources import FrameSource
from stillroom.tasks.points.worlds import COLUMNS, DrivingWorld, WorldSpec

_NUMBERS = {"train": 300, "val": 100, "teacher": 0, "beams": 16, "azimuths": 180, "cameras": 0, "frames": 1, "reach": 24, "seed": 0}
OPTIONS = tuple(_NUMBERS)
_MARGIN = 1.6  # metres beyond the farthest object


@dataclass(frozen=True)
class Streets:
    """Made-up frames: of each world its sequence.

    Args:
        seed: of them all, and a number that no other split has.
        worlds: which.
        spec: what streets are like.
        taken: the frames that these are, of all; None for all.
    """

    seed: tuple[int, int]
    worlds: int
    spec: WorldSpec
    taken: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self.worlds * self.spec.frames if self.taken is None else len(self.taken)

    def _place(self, index: int) -> tuple[int, int]:
        return divmod(index if self.taken is None else self.taken[index], self.spec.frames)

    def frame(self, index: int) -> Frame:
        """One frame, made now."""
        world, number = self._place(index)
        return replace(self.world(world).frame(number), name=self.name(index), sequence=self.sequence(index))

    def world(self, number: int) -> DrivingWorld:
        """A whole world, with what is true of it."""
        return _world((*self.seed, number), _Hashed(self.spec))

    def name(self, index: int) -> str:
        """What a report calls a frame."""
        world, number = self._place(index)
        return f"street {world}" + (f", frame {number}" if self.spec.frames > 1 else "")

    def sequence(self, index: int) -> str:
        """A world is a sequence."""
        return f"street {self._place(index)[0]}"

    def take(self, indices: np.ndarray) -> Streets:
        """Some of them."""
        all_of = range(len(self)) if self.taken is None else self.taken
        return replace(self, taken=tuple(all_of[i] for i in indices))


class _Hashed:
    """A spec as the key of a cache: known by what it says."""

    def __init__(self, spec: WorldSpec) -> None:
        self.spec = spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(repr(self.spec))


@lru_cache(maxsize=4)  # frames of one sequence are mostly asked for behind each other
def _world(seed: tuple[int, ...], spec: _Hashed) -> DrivingWorld:
    return DrivingWorld(seed, spec.spec)


def open_streets(path: str, options: dict[str, str], argument: str) -> FrameSource:
    """Streets made up from a seed; see `worlds`.

    Options: ``train=300`` and ``val=100`` worlds (``teacher=N`` for a teacher that sees more than its students; they are others, and the
    students' are not among them), of ``frames=1`` each; a lidar of ``beams=16`` and ``azimuths=180``; ``cameras=0``; ``reach=24`` metres
    to every side in which objects stand; ``seed=0``.
    """
    numbers = _NUMBERS | whole_numbers(options, argument, zero=("seed", "cameras", "teacher"))
    if numbers["reach"] < 8:
        raise InputError(argument, f"reach={numbers['reach']}", "at least 8 metres")
    spec = WorldSpec(
        beams=numbers["beams"],
        azimuths=numbers["azimuths"],
        cameras=numbers["cameras"],
        frames=numbers["frames"],
        reach=float(numbers["reach"]),
    )
    far = numbers["reach"] + _MARGIN
    train, val, teacher = (Streets((numbers["seed"], k), numbers[split], spec) for k, split in enumerate(("train", "val", "teacher")))
    return FrameSource(
        name="streets",
        classes=ClassList(tuple(spec.classes)),
        train=train,
        val=val,
        teacher=teacher if numbers["teacher"] else None,
        columns=COLUMNS,
        fingerprint=f"streets 1 {sorted(numbers.items())}",
        reach=(-far, -far, -1.0, far, far, 5.0),
    )
