"""A finished label bank, to read from."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.engine.cache.sums import PREFIX, Sums
from stillroom.engine.report.results import StageResult
from stillroom.engine.run.written import write_atomic
from stillroom.errors import InputError
from stillroom.methods.ferkd.bank.folder import BankFolder, refuse_unsound
from stillroom.methods.ferkd.bank.labels import LabelFormat, SoftLabels

_BLOCK = 2**20  # crops that are looked at at a time


class LabelBank:
    """A finished bank, mapped into memory: what is read of it is read from the disk when it is needed.

    Args:
        path: the bank's folder.
        argument: what the user calls it, for messages.

    Attributes:
        path: the folder.
        format: of the labels.
        crops: M, stored crops of an image, those that were discarded included.
        classes: their names.
        names: of the N images.
        about: what is known of the teacher and the crops.
        key: what the labels depend on.

    Raises:
        InputError: no bank, one that is not finished or is damaged; a label that cannot be: its image and crop are named.
    """

    def __init__(self, path: str | Path, *, argument: str = "labels") -> None:
        self.path = Path(path)
        self._folder = BankFolder(self.path, argument)
        record = self._folder.read()
        if record is None:
            raise InputError(argument, f"{path}, which is no bank of labels", "a folder that `stillroom cache-labels` wrote")
        done = sum(lane.done for lane in self._folder.lanes(record))
        if done < record["images"]:
            got = f"{path}, of which {done} of {record['images']} images are labelled"
            raise InputError(argument, got, "a finished bank: the command that began it goes on with it")
        self._record = record
        self.format = LabelFormat.of(record["label_type"], len(record["classes"]), record["dtype"])
        self.crops = int(record["crops"])
        self.classes = tuple(record["classes"])
        self.about: dict[str, Any] = record["about"]
        self.key: dict[str, Any] = record["key"]
        self.names: tuple[str, ...] = tuple(self._folder.load_json("images.json", "names")["names"])
        self._mapped: dict[str, np.ndarray] | None = None
        self._sums: dict[str, Sums] = {}
        self._digest = self._checked()
        for name in ("targets", "sizes", "checksums"):  # of every image, and small
            self._refuse_altered(name)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"LabelBank({str(self.path)!r}, {len(self)} images x {self.crops} crops, {self.format.label_type})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None, "_sums": {}}  # mapped again where it is needed

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays [N, ...] by name."""
        if self._mapped is None:
            opened = self._folder.open(self._record)
            kept = {name[len(PREFIX) :]: opened.pop(name) for name in list(opened) if name.startswith(PREFIX)}
            self._sums = {name: Sums(sums, opened[name]) for name, sums in kept.items() if name in opened}
            self._mapped = opened
        return self._mapped

    @property
    def targets(self) -> np.ndarray:
        """The images' classes, int32 [N]."""
        return self.arrays["targets"]

    @property
    def result(self) -> StageResult | None:
        """What was measured of the teacher, if anything."""
        return self._folder.load_result() if (self.path / "teacher.json").exists() else None

    def soft(self, images_R: np.ndarray, crops_R: np.ndarray) -> SoftLabels:
        """The stored labels of crops, given by their images' and their own numbers, int [R] each."""
        return SoftLabels.of({name: self._rows(name, images_R, crops_R) for name in SoftLabels._fields if name in self.arrays})

    def boxes(self, images_R: np.ndarray, crops_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where crops are, float32 [R, 4], and whether they are mirrored, bool [R]."""
        return self._rows("coords", images_R, crops_R), self._rows("flips", images_R, crops_R)

    def kept(self, images_B: np.ndarray) -> np.ndarray:
        """Which crops of the images there are, bool [B, M]."""
        if "kept" in self.arrays:
            self._refuse_altered("kept", np.atleast_1d(images_B))
            return np.asarray(self.arrays["kept"][images_B])
        return np.ones((len(images_B), self.crops), bool)

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The rows of all images, or of a range, a block that fits into memory after the other; each with its first image's number."""
        for start, block in self._blocks(first, last):
            for name in block:
                self._refuse_altered(name, np.arange(start, start + len(block[name])))
            yield start, block

    def _blocks(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        last = len(self) if last is None else last
        step = max(1, _BLOCK // self.crops)
        for start in range(first, last, step):
            yield start, {name: np.asarray(array[start : min(last, start + step)]) for name, array in self.arrays.items()}

    def rows_of(self, names: Sequence[str]) -> np.ndarray:
        """The numbers of the images of these names, int64; -1 for those that there are not.

        Raises:
            InputError: a name that the bank has twice, unless the names are the bank's own in its order.
        """
        if tuple(names) == self.names:
            return np.arange(len(names))
        numbers = {name: number for number, name in enumerate(self.names)}
        if len(numbers) < len(self.names):
            got = f"{self.path}, in which several images have one name"
            raise InputError(self._folder.argument, got, "the very data that it was built from")
        return np.array([numbers.get(name, -1) for name in names], np.int64)

    def fingerprint(self) -> str:
        """A hash over what the bank says of itself and everything in its arrays."""
        said = {name: self._record[name] for name in ("key", "label_type", "dtype", "classes", "crops", "images")}
        return hashlib.blake2b(json.dumps([said, self._digest], sort_keys=True).encode(), digest_size=16).hexdigest()

    def _rows(self, name: str, images_R: np.ndarray, crops_R: np.ndarray) -> np.ndarray:
        array = self.arrays[name]
        self._refuse_altered(name, images_R)
        return np.asarray(array.reshape(-1, *array.shape[2:])[images_R * self.crops + crops_R])

    def _checked(self) -> dict[str, int]:
        """A checksum of each array; looks at every label, unless this was done since the files were last changed."""
        files = {name: self.path / "rows" / f"{name}.npy" for name in self.arrays}
        state = {name: [file.stat().st_size, file.stat().st_mtime_ns] for name, file in files.items()}
        with suppress(OSError, ValueError, KeyError, TypeError):
            memory = json.loads((self.path / "checked.json").read_text(encoding="utf-8"))
            if memory["state"] == state:
                return dict(memory["digest"])
        digest = dict.fromkeys(files, 0)
        for first, block in self._blocks():
            for name, rows in block.items():
                digest[name] = zlib.crc32(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data, digest[name])
            refuse_unsound(self.format, block, self._folder.argument, partial(self._unsound, first))
        for name in files:
            self._refuse_altered(name)
        with suppress(OSError):  # a bank that may only be read is looked at every time
            write_atomic(self.path / "checked.json", json.dumps({"state": state, "digest": digest}))
        return digest

    def _refuse_altered(self, name: str, images_B: np.ndarray | None = None) -> None:
        """Raises InputError when rows of an array, or any of it, are not as they were written; an old bank has no sums to tell."""
        if name in self._sums and len(altered := self._sums[name].altered(images_B)):
            got = f"{self.path}/rows/{name}.npy, altered since it was written, in the row of {self.names[int(altered[0])]}"
            raise InputError(self._folder.argument, got, "a bank that is not damaged: the command that built it, with --overwrite")

    def _unsound(self, first: int, image: int, crop: int) -> str:
        return f"{self.path} with a label or a box of {self.names[first + image]} (crop {crop}) that cannot be"
