"""Writing a label bank, by any number of processes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import dtype_to_descr

from stillroom.engine.cache.sums import with_sums
from stillroom.engine.report.results import StageResult
from stillroom.errors import at_least
from stillroom.methods.ferkd.bank.folder import BankFolder, Lane, Rows, refuse_unsound
from stillroom.methods.ferkd.bank.labels import LabelFormat
from stillroom.methods.ferkd.bank.reader import LabelBank

_LANES = 256  # at most; fewer where there are few images, since each takes a moment to begin and to end


@dataclass(frozen=True)
class BankPlan:
    """What a bank is to be.

    Args:
        key: what its labels depend on: plain values by names that a user knows.
        form: of the labels.
        crops: M.
        classes: their names.
        names: of the N images.
        about: kept with the bank, plain data.
        kept: whether crops may be missing.
        result: what was measured of the teacher.
    """

    key: Mapping[str, Any]
    form: LabelFormat
    crops: int
    classes: Sequence[str]
    names: Sequence[str]
    about: Mapping[str, Any] = field(default_factory=dict)
    kept: bool = False
    result: StageResult | None = None

    def record(self) -> dict[str, Any]:
        """The bank's record."""
        at_least("crops", self.crops, 1)
        arrays: dict[str, tuple[tuple[int, ...], Any]] = {
            "coords": ((self.crops, 4), np.float32),
            "flips": ((self.crops,), np.bool_),
            **{name: ((self.crops, *shape), dtype) for name, (shape, dtype) in self.form.arrays.items()},
            "targets": ((), np.int32),
            "sizes": ((2,), np.int32),
            "checksums": ((), np.uint32),
            **({"kept": ((self.crops,), np.bool_)} if self.kept else {}),
        }
        return {
            "key": json.loads(json.dumps({**self.key, "crops": self.crops, "label_type": self.form.label_type, "dtype": self.form.dtype})),
            "label_type": self.form.label_type,
            "dtype": self.form.dtype,
            "classes": list(self.classes),
            "crops": self.crops,
            "images": len(self.names),
            "arrays": {name: [list(shape), dtype_to_descr(np.dtype(dtype))] for name, (shape, dtype) in with_sums(arrays).items()},
            "lanes": max(1, min(_LANES, math.isqrt(len(self.names)) // 2)),
            "about": dict(self.about),
        }


def write_bank(
    folder: str | Path,
    plan: BankPlan,
    rows: Callable[[int, int], Iterable[Rows]],
    *,
    argument: str = "out",
    progress: Callable[[int, int], None] = lambda done, images: None,
    mark_seconds: float = 5.0,
    poll_seconds: float = 0.5,
) -> LabelBank:
    """Writes a bank, or helps to: goes on with one that was begun, beside whoever else does, and ends when it is finished.

    Args:
        folder: of the bank; made when missing.
        plan: what it is to be.
        rows: called with a range of images (the last excluded), answers with the arrays' rows of one or more of them after the other. Must
            answer the same whoever asks.
        argument: what the user calls the folder.
        progress: called with the images that are done and those that there are.
        mark_seconds: a process that is killed loses at most this much work.
        poll_seconds: how often others are looked at, when they have all that is left.

    Returns:
        The finished bank.

    Raises:
        InputError: the folder holds a bank of something else, or is too small; a row is not sound.
        StillroomError: the disk is full.
    """
    bank = BankFolder(Path(folder), argument)
    planned = plan.record()
    with bank.locked(wait=True):
        record = bank.read()
        if record is None:
            record = _begin(bank, planned, plan)
        else:
            kept = {"key": {**record["key"], "images": record["images"], "classes": record["classes"]}}
            bank.check(
                {**planned["key"], "images": planned["images"], "classes": planned["classes"]}, kept, "another folder, or --overwrite"
            )
    lanes = bank.lanes(record)
    while left := [lane for lane in lanes if not lane.finished]:
        worked = False
        for lane in left:
            with lane.taken() as mine:
                if mine and not lane.finished:
                    _fill(lane, record, rows, lanes, progress, mark_seconds)
                    worked = True
        if not worked:
            time.sleep(poll_seconds)
        progress(sum(lane.done for lane in lanes), record["images"])
    return LabelBank(folder, argument=argument)


def _begin(bank: BankFolder, record: dict[str, Any], plan: BankPlan) -> dict[str, Any]:
    """Everything but the rows, with the record last."""
    bank.make_room(record)
    with bank.opened(record, fresh=True):
        pass
    (bank.path / "lanes").mkdir(exist_ok=True)
    for lane in bank.lanes(record):
        if lane.done:  # of a bank whose record was lost
            lane.write({"done": 0})
    bank.save_json("images.json", {"names": list(plan.names)})
    if plan.result is not None:
        bank.save_result(plan.result)
    bank.write(record)
    return record


def _fill(
    lane: Lane,
    record: Mapping[str, Any],
    rows: Callable[[int, int], Iterable[Rows]],
    lanes: Sequence[Lane],
    progress: Callable[[int, int], None],
    mark_seconds: float,
) -> None:
    """The images that are missing in a lane."""
    form = LabelFormat.of(record["label_type"], len(record["classes"]), record["dtype"])
    others = sum(other.done for other in lanes if other is not lane)
    marked = time.monotonic()
    with lane.writer(record) as writer:
        for block in rows(lane.first + writer.done, lane.last):
            refuse_unsound(form, block, "labels", partial(_unsound, lane.first + writer.done))
            writer.write(block)
            if time.monotonic() - marked >= mark_seconds:
                writer.mark()
                marked = time.monotonic()
            progress(others + writer.done, record["images"])
        writer.mark()


def _unsound(first: int, image: int, crop: int) -> str:
    return f"a label or a box of image number {first + image} (crop {crop}) that cannot be"
