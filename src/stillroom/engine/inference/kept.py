"""Files that take time to make, kept for every run that would make the same again: each under a digest of all that it depends on."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from stillroom.engine.run.written import put
from stillroom.errors import InputError


def kept_files() -> Path:
    """The folder: ``$XDG_CACHE_HOME/stillroom/engines``, by default ``~/.cache/stillroom/engines``. Whatever lies there can be deleted."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "stillroom" / "engines"


def address(*parts: object) -> str:
    """The digest of what a file depends on, each part of which has a `repr` that says it."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


@contextmanager
def alone_with(name: str) -> Iterator[Path]:
    """Inside, no other process makes the file of that name; several that want it at once so make it once.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = kept_files()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock")
        lock.acquire()
    except OSError as error:
        expected = f"a folder that can be written ({error.strerror}); XDG_CACHE_HOME names another"
        raise InputError("teacher_engine", str(folder), expected) from error
    try:
        yield folder / name
    finally:
        lock.release()


def write_whole(path: Path, make: Callable[[Path], None]) -> None:
    """Lets `make` write a file of another name in the same folder, which then takes the place of `path`: nobody reads half of it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        made = Path(folder) / path.name
        make(made)
        with made.open("rb") as written:
            os.fsync(written.fileno())
        put(made, path)
