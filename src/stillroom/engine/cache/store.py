"""A cache's folder: rows of numbers in plain ``.npy`` files, and a record of whose they are and how many are done.

    cache.json      schema, key (what the answers depend on), views, the answer's form, outputs and their formats, arrays, batch_size,
                    about, rows, done
    rows/*.npy      one array [N, V, ...] each: ``logits.npy`` (or ``logits.top.npy``, ``.classes.npy``, ``.rest.npy``), or of an answer of
                    several tensors ``answer0.npy``, ``answer1.npy``, ... in the order of the outputs; ``tap0.npy``, ...; and what was drawn
                    for each view: ``view.crop.npy``, ``view.flip.npy``, ...;
                    and of each array the sums of its rows: ``sum.logits.npy``, ...
    example.npz     one input, and the answers to it
    teacher.json    what was measured of the teacher; details.npz: what it answered on the validation set

Rows are written in their order. They reach the disk before `done` counts them, so whenever a process is killed the first `done` rows are
whole, and the next one goes on behind them. Nothing in the folder is ever unpickled.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from filelock import FileLock, Timeout

from stillroom.engine.cache.sums import PREFIX, sums_of
from stillroom.engine.plain import plain_json
from stillroom.engine.report.results import StageResult
from stillroom.engine.run.written import Record, beginning, is_what_it_is_called, read_arrays, remove, write_atomic
from stillroom.errors import InputError, StillroomError

SCHEMA = "stillroom.cache/1"


class CacheFolder:
    """The files of one cache.

    Args:
        path: the folder; made when it is first written to.
        argument: what the user calls it, for messages.
    """

    schema, what, smaller = SCHEMA, "cache", "fewer views, or --top, take less"
    files: tuple[str, ...] = ("cache.json", "example.npz", "teacher.json", "details.npz")  # the record first
    folders: tuple[str, ...] = ("rows",)

    def __init__(self, path: Path, argument: str = "out") -> None:
        self.path, self.argument = path, argument
        self._record_file = path / self.files[0]

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> dict[str, Any] | None:
        """The record; None where no cache was begun.

        Raises:
            InputError: a record that is damaged, or of another version.
        """
        if not self._record_file.exists():
            return None
        record = self.load_json(self._record_file.name, "schema")
        if record["schema"] != self.schema:
            got = f"{self}, a {self.what} of the form {record['schema']}"
            raise InputError(self.argument, got, f"one of the form {self.schema}; build it anew")
        return record

    def clear(self) -> None:
        """Removes the cache, its record first, and nothing that it did not write.

        Raises:
            InputError: one of its files is not as it was written; nothing was removed then.
        """
        around = Record.around(self._record_file)
        written = None if around is None else Record.of(around.folder)
        if written is None or not written.lists(self._record_file):  # built without a run around it, or by a version without such a record
            files = self.present()
        else:
            mine = (*self.files, *self.folders)
            files = [path for path in written.present(below=self.path) if path.relative_to(self.path).parts[0] in mine]
        remove(sorted(files, key=lambda path: path != self._record_file), self.path)

    def present(self) -> list[Path]:
        """The files that are there, as the cache's own record tells of them; none without one.

        Raises:
            InputError: one that is something else.
        """
        record = self.read()
        if record is None:
            return []
        found = [path for name in self.files if is_what_it_is_called(path := self.path / name) and not path.is_symlink()]
        for name, (shape, dtype) in self.shapes(record).items():
            path = self._array_file(name)
            if os.path.lexists(path):
                self._refuse_foreign(path, _header(shape, dtype))
                found.append(path)
        return found

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes the record, whole or not at all."""
        write_atomic(self._record_file, json.dumps({"schema": self.schema, **record}, indent=1))

    @contextmanager
    def locked(self, *, wait: bool = False) -> Iterator[None]:
        """Nobody else builds here meanwhile; a process that dies holds no lock.

        Args:
            wait: until nobody does, however long that takes.

        Raises:
            InputError: somebody does, or the folder cannot be made.
        """
        lock = FileLock(self.path / ".lock")
        self._refuse_links()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            raise InputError(self.argument, f"{self}, which another process is building", "another folder, or a little patience") from None
        except OSError as error:
            raise InputError(self.argument, str(self), f"a folder that can be written ({error.strerror})") from None
        try:
            yield
        finally:
            lock.release()

    def check(self, key: Mapping[str, Any], record: Mapping[str, Any], expected: str) -> None:
        """Refuses a cache of something else.

        Args:
            key: what it should be of, as far as that is known.
            record: the cache's.
            expected: what to do instead, for the message.

        Raises:
            InputError: naming what differs.
        """
        kept = record["key"]
        differs = [f"{name} was {kept.get(name)!r}, now {key[name]!r}" for name in key if kept.get(name) != key[name]]
        if differs:
            got = f"{self}, a {self.what} of something else ({'; '.join(differs[:4])})"
            raise InputError(self.argument, got, expected)

    def leading(self, record: Mapping[str, Any]) -> tuple[int, ...]:
        """The dimensions that every array begins with, whose product is the number of rows: of a cache samples and views, [N, V, ...]."""
        return record["samples"], record["views"]["count"]

    def shapes(self, record: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and type of every array."""
        leading = self.leading(record)
        return {name: ((*leading, *shape), np.dtype(dtype)) for name, (shape, dtype) in record["arrays"].items()}

    def open(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """All arrays, mapped into memory: what is read of them is read from the disk when it is needed.

        They can be written to, which changes this process's own copy and never the files.

        Raises:
            InputError: an array is missing or damaged.
        """
        arrays = {}
        for name, (shape, dtype) in self.shapes(record).items():
            file = self._array_file(name)
            try:
                array = np.load(file, mmap_mode="c", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise self._damaged(file, error) from None
            if array.shape != shape or array.dtype != dtype:
                got = f"{file} with {array.dtype} {list(array.shape)}"
                raise InputError(self.argument, got, f"{dtype} {list(shape)}: {self._sound}")
            arrays[name] = array
        return arrays

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """A few named arrays in a file of their own."""
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes any name for allow_pickle
        write_atomic(self.path / name, buffer.getvalue())

    def load(self, name: str) -> dict[str, np.ndarray]:
        """What `save` wrote.

        Raises:
            InputError: it is missing or damaged.
        """
        return read_arrays(self.path / name, self.argument)

    def save_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Plain data in a file of its own."""
        write_atomic(self.path / name, json.dumps(data, indent=1))

    def load_json(self, name: str, *keys: str) -> dict[str, Any]:
        """What `save_json` wrote, with at least these keys.

        Raises:
            InputError: it is missing or damaged.
        """
        try:
            found: dict[str, Any] = plain_json((self.path / name).read_bytes())
            return {**found, **{key: found[key] for key in keys}}  # where one is lacking that is damage, too
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(self.path / name, error) from None

    def save_result(self, result: StageResult) -> None:
        """What was measured of the teacher."""
        self.save("details.npz", result.details)
        self.save_json("teacher.json", result.to_json())

    def load_result(self) -> StageResult:
        """What `save_result` wrote.

        Raises:
            InputError: it is missing or damaged.
        """
        said = self.load_json("teacher.json")
        try:
            return replace(StageResult.from_json(said), details=self.load("details.npz"))
        except (KeyError, TypeError) as error:
            raise self._damaged(self.path / "teacher.json", error) from None

    @contextmanager
    def writer(self, record: Mapping[str, Any]) -> Iterator[Writer]:
        """Opens the arrays of a locked folder for writing behind the rows that are done; makes them if there are none.

        Raises:
            InputError: they do not fit on the disk.
        """
        self.make_room(record)
        with self.opened(record, fresh=not record["done"]) as files:
            yield Writer(self, record, files)

    def make_room(self, record: Mapping[str, Any]) -> None:
        """Makes the folder of the arrays.

        Raises:
            InputError: they do not fit on the disk.
        """
        (self.path / "rows").mkdir(exist_ok=True)
        needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.shapes(record).values())
        free = shutil.disk_usage(self.path).free
        present = sum(file.stat().st_blocks * 512 for file in (self.path / "rows").iterdir()) if os.name == "posix" else 0
        if needed > free + present:
            got = f"{self} with {free / 1e9:.2f} GB free"
            raise InputError(self.argument, got, f"room for {needed / 1e9:.2f} GB; {self.smaller}")

    @contextmanager
    def opened(self, record: Mapping[str, Any], *, fresh: bool) -> Iterator[dict[str, tuple[IO[bytes], int, int]]]:
        """Every array's file, the place of its first row, and the bytes of a row.

        Args:
            record: the folder's.
            fresh: make the files anew.
        """
        with ExitStack() as stack:
            yield {
                name: stack.enter_context(self._opened(name, shape, dtype, math.prod(self.leading(record)), fresh=fresh))
                for name, (shape, dtype) in self.shapes(record).items()
            }

    @contextmanager
    def _opened(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], rows: int, *, fresh: bool
    ) -> Iterator[tuple[IO[bytes], int, int]]:
        """Written as a file, not through a memory map: there a full disk is an error, here it would be the end of the process."""
        path, whole = self._array_file(name), math.prod(shape) * dtype.itemsize
        header = _header(shape, dtype)
        size = len(header)
        self._refuse_links(path)
        if fresh:
            self._take(path, header)
        with open(path, "wb" if fresh else "r+b", buffering=0, opener=_no_link) as file:
            if fresh:
                file.write(header)
                file.truncate(size + whole)
            elif file.read(size) != header:
                raise InputError(self.argument, f"{path} with another header", self._sound)
            yield file, size, whole // rows

    def _take(self, path: Path, header: bytes) -> None:
        """Enters an array that is about to be made in the record around, if there is one.

        Raises:
            InputError: something lies there that Stillroom did not write.
        """
        around = Record.around(path)
        if os.path.lexists(path):
            written = None if around is None else Record.of(around.folder)
            if written is None or not written.ours(path):
                self._refuse_foreign(path, header)
        if around is not None:
            around.enter({path: beginning(header)})

    def _refuse_links(self, *files: Path) -> None:
        """Nothing is written through a link that somebody put into the folder."""
        for place in (*files, *map(self.path.__truediv__, self.folders), *self.path.glob("*/.lock"), self.path / ".lock"):
            if place.is_symlink():
                raise InputError(self.argument, f"{place}, a link, which Stillroom did not make", "another folder, or that link moved away")

    def _refuse_foreign(self, path: Path, header: bytes) -> None:
        if not path.is_symlink() and path.is_file():
            with path.open("rb") as file:
                if file.read(len(header)) == header:
                    return
        raise InputError(self.argument, f"{path}, which Stillroom did not write", "another folder, or that file moved away")

    def _damaged(self, file: Path, error: Exception) -> InputError:
        return InputError(self.argument, f"{file}, which cannot be read ({error})", self._sound)

    @property
    def _sound(self) -> str:
        return f"a {self.what} that is not damaged"

    def _array_file(self, name: str) -> Path:
        if Path(name).name != name:  # a record that somebody wrote by hand
            raise InputError(self.argument, f"{self._record_file} with an array called {name!r}", self._sound)
        return self.path / "rows" / f"{name}.npy"


def _no_link(name: str, flags: int) -> int:
    """Opens a file, unless it is a link."""
    return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What an array's file begins with."""
    start = io.BytesIO()
    np.lib.format.write_array_header_1_0(start, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return start.getvalue()


class Recorded(Protocol):
    """What keeps the count of the rows that are done."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes the record, whole or not at all."""


class Writer:
    """Writes rows in their order, and their sums where the folder has arrays for them.

    Args:
        folder: keeps the count.
        record: of the folder; its rows that are done are not written again.
        files: of `CacheFolder.opened`.
        first: the number of the first row that is this writer's.
    """

    def __init__(
        self, folder: Recorded, record: Mapping[str, Any], files: Mapping[str, tuple[IO[bytes], int, int]], *, first: int = 0
    ) -> None:
        self.folder, self.record, self.files, self.first = folder, dict(record), files, first
        self.done: int = record["done"]
        for file, start, row in files.values():
            file.seek(start + self.done * row)

    def write(self, rows: Mapping[str, np.ndarray]) -> None:
        """The next rows of every array.

        Raises:
            StillroomError: the disk is full, or gone.
        """
        summed = {name: name.removeprefix(PREFIX) for name in self.files if name.startswith(PREFIX)}
        counts = {len(rows[name]) for name in self.files if name not in summed}
        if len(counts) != 1:
            raise ValueError(f"arrays of {counts} rows")
        numbers = self.first + self.done + np.arange(*counts)
        rows = {**rows, **{name: sums_of(rows[of], numbers) for name, of in summed.items()}}
        try:
            for name, (file, _, _) in self.files.items():
                left = np.ascontiguousarray(rows[name]).reshape(-1).view(np.uint8).data
                while left:
                    left = left[file.write(left) :]
        except OSError as error:
            raise self._failed(error) from error
        self.done += counts.pop()

    def mark(self) -> None:
        """Counts what was written as done, once it is on the disk.

        Raises:
            StillroomError: the disk is full, or gone.
        """
        try:
            for file, _, _ in self.files.values():
                os.fsync(file.fileno())
            self.record["done"] = self.done
            self.folder.write(self.record)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> StillroomError:
        return StillroomError(f"{self.folder}: cannot be written ({error.strerror}); the same command goes on from what is done")
