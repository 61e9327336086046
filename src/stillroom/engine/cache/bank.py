"""A label bank: many stored crops of every image, with the soft labels that a teacher gave them. A teacher cache whose views are crops.

    bank.json       schema, key (what the labels depend on), label type, classes, crops (M), images (N), arrays, lanes, about (teacher, its
                    input size and statistics, range of the crops, temperature)
    images.json     the images' names
    rows/*.npy      one array [N, ...] each: ``coords`` float32 [N, M, 4] (top, left, height, width as fractions of the image), ``flips``
                    bool [N, M], ``classes`` int [N, M, k] and ``values`` float [N, M, k] (see `labels`), ``targets`` int32 [N] (the
                    images' classes), ``sizes`` int32 [N, 2] (height, width) and ``checksums`` uint32 [N] of the images when
                    they were labelled (0: not known), and, where crops were discarded, ``kept`` bool [N, M]
    lanes/*.json    how many images of each lane are done
    teacher.json    what was measured of the teacher, if it was; details.npz: what it answered on the validation set
    checked.json    which state of the arrays was found to be sound

The images are divided into lanes. A process that writes takes a lane that nobody has, goes on behind the rows that are done in it, and
takes the next: any number of processes write one bank, each image is labelled once, and the lane of one that dies is taken over by
another. Nothing in the folder is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from stillroom.engine.cache.labels import LabelFormat, SoftLabels
from stillroom.engine.cache.store import CacheFolder, Writer
from stillroom.engine.report import StageResult
from stillroom.engine.stage import write_atomic
from stillroom.errors import InputError

SCHEMA = "stillroom.labels/1"
Rows = Mapping[str, np.ndarray]

_LANES, _LEAST = 256, 16  # at most so many lanes, of at least so many images
_BLOCK = 2**20  # crops that are looked at at a time


class BankFolder(CacheFolder):
    """The files of one bank; a row is an image."""

    schema, what, smaller = SCHEMA, "bank of labels", "fewer crops, or another label type, take less"
    files = ("bank.json", "images.json", "teacher.json", "details.npz", "checked.json")
    folders = ("rows", "lanes", "adapted")

    def rows(self, record: Mapping[str, Any]) -> int:
        """N."""
        return int(record["images"])

    def shapes(self, record: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """[N, ...]."""
        return {name: ((record["images"], *shape), np.dtype(dtype)) for name, (shape, dtype) in record["arrays"].items()}

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
    def _file(self) -> Path:
        return self.folder.path / "lanes" / f"{self.number:03}.json"

    @property
    def done(self) -> int:
        """Images that are on the disk."""
        try:
            return int(json.loads(self._file.read_text(encoding="utf-8"))["done"])
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(self.folder.argument, f"{self._file}, which cannot be read ({error})", "a bank that is not damaged") from None

    @property
    def finished(self) -> bool:
        """Whether all of its images are."""
        return self.done == self.last - self.first

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes how many are done, whole or not at all."""
        write_atomic(self._file, json.dumps({"done": record["done"]}))

    @contextmanager
    def taken(self) -> Iterator[bool]:
        """Takes the lane, if nobody has it; a process that dies has none."""
        lock = FileLock(self._file.with_suffix(".lock"))
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
            yield Writer(self, {"done": self.done}, mine)


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
        if self.crops < 1:
            raise InputError("crops", self.crops, "a whole number of at least 1")
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
            "arrays": {name: [list(shape), np.lib.format.dtype_to_descr(np.dtype(dtype))] for name, (shape, dtype) in arrays.items()},
            "lanes": max(1, min(_LANES, len(self.names) // _LEAST)),
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
    for file in (bank.path / "lanes").glob("*.json"):
        file.unlink()  # of a bank whose record was lost
    bank.save_json("images.json", {"names": list(plan.names)})
    if plan.result is not None:
        bank.save("details.npz", plan.result.details)
        bank.save_json("teacher.json", plan.result.to_json())
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
            _refuse_unsound(form, block, lane.first + writer.done)
            writer.write(block)
            if time.monotonic() - marked >= mark_seconds:
                writer.mark()
                marked = time.monotonic()
            progress(others + writer.done, record["images"])
        writer.mark()


def _refuse_unsound(form: LabelFormat, block: Rows, first: int) -> None:
    wrong = unsound_rows(form, block)
    if len(wrong):
        got = f"labels of image number {first + int(wrong[0, 0])} that are no probabilities (crop {int(wrong[0, 1])})"
        raise InputError("labels", got, "finite numbers from 0 with a sum of 1, of classes that there are")


def unsound_rows(form: LabelFormat, block: Rows) -> np.ndarray:
    """Image and crop numbers, int64 [R, 2], of labels and boxes in arrays [B, M, ...] that cannot be."""
    coords = block["coords"]
    images, crops = coords.shape[:2]
    arrays = (
        torch.from_numpy(np.ascontiguousarray(block[name])).flatten(0, 1) if name in block else None for name in ("classes", "values")
    )
    wrong = form.unsound(SoftLabels(*arrays)).numpy().reshape(images, crops)
    end = coords[..., :2] + coords[..., 2:]
    wrong |= ~((coords >= 0).all(-1) & (coords[..., 2:] > 0).all(-1) & (end <= 1 + 1e-3).all(-1))
    if "kept" in block:
        wrong &= block["kept"]
    return np.argwhere(wrong)


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
        self.names: tuple[str, ...] = tuple(self._json("images.json")["names"])
        self._mapped: dict[str, np.ndarray] | None = None
        self._digest = self._checked()

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"LabelBank({str(self.path)!r}, {len(self)} images x {self.crops} crops, {self.format.label_type})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}  # mapped again where it is needed

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays [N, ...] by name."""
        if self._mapped is None:
            self._mapped = self._folder.open(self._record)
        return self._mapped

    @property
    def targets(self) -> np.ndarray:
        """The images' classes, int32 [N]."""
        return self.arrays["targets"]

    @property
    def result(self) -> StageResult | None:
        """What was measured of the teacher, if anything."""
        if not (self.path / "teacher.json").exists():
            return None
        try:
            result = StageResult.from_json(self._json("teacher.json"))
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged("teacher.json", error) from None
        result.details = self._folder.load("details.npz")
        return result

    def soft(self, images_R: np.ndarray, crops_R: np.ndarray) -> SoftLabels:
        """The stored labels of crops, given by their images' and their own numbers, int [R] each."""
        found = (self._rows(name, images_R, crops_R) if name in self.arrays else None for name in ("classes", "values"))
        return SoftLabels(*(None if rows is None else torch.from_numpy(rows) for rows in found))

    def boxes(self, images_R: np.ndarray, crops_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where crops are, float32 [R, 4], and whether they are mirrored, bool [R]."""
        return self._rows("coords", images_R, crops_R), self._rows("flips", images_R, crops_R)

    def kept(self, images_B: np.ndarray) -> np.ndarray:
        """Which crops of the images there are, bool [B, M]."""
        if "kept" in self.arrays:
            return np.asarray(self.arrays["kept"][images_B])
        return np.ones((len(images_B), self.crops), bool)

    def block(self, first: int, last: int) -> dict[str, np.ndarray]:
        """The rows of a range of images, the last excluded, of every array."""
        return {name: np.asarray(array[first:last]) for name, array in self.arrays.items()}

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The rows of all images, or of a range, a block that fits into memory after the other; each with its first image's number."""
        last = len(self) if last is None else last
        step = max(1, _BLOCK // self.crops)
        for start in range(first, last, step):
            yield start, self.block(start, min(last, start + step))

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
        for first, block in self.blocks():
            for name, rows in block.items():
                digest[name] = zlib.crc32(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data, digest[name])
            wrong = unsound_rows(self.format, block)
            if len(wrong):
                image, crop = self.names[first + int(wrong[0, 0])], int(wrong[0, 1])
                got = f"{self.path} with a label or a box of {image} (crop {crop}) that cannot be"
                raise InputError(
                    self._folder.argument, got, "classes that there are, probabilities with a sum of 1, boxes within the image"
                )
        with suppress(OSError):  # a bank that may only be read is looked at every time
            write_atomic(self.path / "checked.json", json.dumps({"state": state, "digest": digest}))
        return digest

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(name, error) from None
        return found

    def _damaged(self, name: str, error: Exception) -> InputError:
        got = f"{self.path / name}, which cannot be read ({error})"
        return InputError(self._folder.argument, got, "a bank that is not damaged")
