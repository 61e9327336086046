"""A label bank: many stored crops of every image, with the soft labels that a teacher gave them. A teacher cache whose views are crops.

    bank.json       schema, key (what the labels depend on), label type, classes, crops (M), images (N), arrays, lanes, about (teacher, its
                    input size and statistics, range of the crops, temperature)
    images.json     the images' names
    rows/*.npy      one array [N, ...] each: ``coords`` float32 [N, M, 4] (top, left, height, width as fractions of the image), ``flips``
                    bool [N, M], ``classes`` int [N, M, k] and ``values`` float [N, M, k] (see `labels`), ``targets`` int32 [N] (the
                    images' classes), ``sizes`` int32 [N, 2] (height, width) and ``checksums`` uint32 [N] of the images when
                    they were labelled (0: not known), and, where crops were discarded, ``kept`` bool [N, M]; of each array the
                    sums of its rows, ``sum.coords`` uint32 [N], ... (see `engine.cache.sums`)
    lanes/*.json    how many images of each lane are done
    teacher.json    what was measured of the teacher, if it was; details.npz: what it answered on the validation set
    checked.json    which state of the arrays was found to be sound

The images are divided into lanes. A process that writes takes a lane that nobody has, goes on behind the rows that are done in it, and
takes the next: any number of processes write one bank, each image is labelled once, and the lane of one that dies is taken over by
another. Nothing in the folder is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from stillroom.engine.cache.store import CacheFolder, Writer
from stillroom.engine.run.written import is_what_it_is_called, write_atomic
from stillroom.errors import InputError
from stillroom.methods.ferkd.bank.labels import LabelFormat, SoftLabels

SCHEMA = "stillroom.labels/1"
_SOUND = "classes that there are, probabilities with a sum of 1, boxes within the image"
Rows = Mapping[str, np.ndarray]


class BankFolder(CacheFolder):
    """The files of one bank; a row is an image."""

    schema, what, smaller = SCHEMA, "bank of labels", "fewer crops, or another label type, take less"
    files = ("bank.json", "images.json", "teacher.json", "details.npz", "checked.json")
    folders = ("rows", "lanes", "adapted")

    def leading(self, record: Mapping[str, Any]) -> tuple[int, ...]:
        """[N, ...]."""
        return (record["images"],)

    def present(self) -> list[Path]:
        """The files of the bank that are there, and those of the banks that were made of it."""
        record = self.read()
        if record is None:
            return []
        lanes = [lane.file for lane in self.lanes(record) if is_what_it_is_called(lane.file) and not lane.file.is_symlink()]
        made_of_it = [path for bank in self.path.glob("adapted/*/bank.json") for path in BankFolder(bank.parent, self.argument).present()]
        return [*super().present(), *lanes, *made_of_it]

    def lanes(self, record: Mapping[str, Any]) -> list[Lane]:
        """All lanes."""
        edges = np.linspace(0, record["images"], record["lanes"] + 1).astype(int).tolist()
        return [Lane(self, number, *edges[number : number + 2]) for number in range(record["lanes"])]


@dataclass(frozen=True)
class Lane:
    """A range of a bank's images that one process at a time writes.

    Args:
        folder: the bank's.
        number: of the lane.
        first, last: its images, the last excluded.
    """

    folder: BankFolder
    number: int
    first: int
    last: int

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def file(self) -> Path:
        """What says how many are done."""
        return self.folder.path / "lanes" / f"{self.number:03}.json"

    @property
    def done(self) -> int:
        """Images that are on the disk."""
        return int(self.folder.load_json(f"lanes/{self.file.name}", "done")["done"]) if self.file.exists() else 0

    @property
    def finished(self) -> bool:
        """Whether all of its images are."""
        return self.done == self.last - self.first

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes how many are done, whole or not at all."""
        write_atomic(self.file, json.dumps({"done": record["done"]}))

    @contextmanager
    def taken(self) -> Iterator[bool]:
        """Takes the lane, if nobody has it; a process that dies has none."""
        lock = FileLock(self.file.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @contextmanager
    def writer(self, record: Mapping[str, Any]) -> Iterator[Writer]:
        """Writes rows behind those that are done."""
        with self.folder.opened(record, fresh=False) as files:
            mine = {name: (file, start + self.first * row, row) for name, (file, start, row) in files.items()}
            yield Writer(self, {"done": self.done}, mine, first=self.first)


def refuse_unsound(form: LabelFormat, block: Rows, argument: str, said: Callable[[int, int], str]) -> None:
    """Refuses labels and boxes that cannot be.

    Args:
        form: of the labels.
        block: arrays [B, M, ...] by name.
        argument: what the user calls them.
        said: what is wrong, in words, given the numbers of an image and a crop in the block.

    Raises:
        InputError: with what is said of the first.
    """
    coords = block["coords"]
    wrong = form.unsound(SoftLabels.of(block)).numpy().reshape(coords.shape[:2])
    end = coords[..., :2] + coords[..., 2:]
    wrong |= ~((coords >= 0).all(-1) & (coords[..., 2:] > 0).all(-1) & (end <= 1 + 1e-3).all(-1))
    if "kept" in block:
        wrong &= block["kept"]
    if wrong.any():
        raise InputError(argument, said(*np.argwhere(wrong)[0].tolist()), _SOUND)
