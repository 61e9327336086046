"""Where the files of a data set of frames lie, and what of them is read: raw numbers, text, JSON, pictures."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from stillroom.errors import InputError
from stillroom.tasks.images.annotations import decoded
from stillroom.tasks.images.files import Store, open_store


@dataclass(frozen=True)
class Place:
    """A folder or an archive.

    Args:
        store: reads its files.
        files: their names and bytes.
        top: of a data set that lies deeper, the folders before its own names, with a "/" at the end.
        argument: what the user calls it.
        path: what the user typed.
    """

    store: Store
    files: dict[str, int]
    top: str
    argument: str
    path: str

    def within(self, marker: str) -> Place | None:
        """The place in it whose files begin with `marker` (a file, or a folder with "/"): the one least deep; None where there is none."""
        tops = {name[: name.index(f"/{marker}") + 1] for name in self.files if f"/{marker}" in name}
        if any(name.startswith(marker) for name in self.files):
            tops.add("")
        if not tops:
            return None
        top = min(tops, key=lambda found: (found.count("/"), found))
        return Place(self.store, {n.removeprefix(top): size for n, size in self.files.items() if n.startswith(top)}, self.top + top,
                     self.argument, self.path)  # fmt: skip

    @cached_property
    def _by_folder(self) -> dict[str, list[str]]:
        by_folder: dict[str, list[str]] = {}
        for name in sorted(self.files):
            by_folder.setdefault(str(PurePosixPath(name).parent), []).append(name)
        return by_folder

    def inside(self, folder: str, *endings: str) -> list[str]:
        """Names of the files that lie in a folder itself, sorted; with one of the endings, if some are given."""
        return [name for name in self._by_folder.get(folder, []) if not endings or name.lower().endswith(endings)]

    def folders(self) -> list[str]:
        """All folders that hold files."""
        return list(self._by_folder)

    def fail(self, name: str, what: str, expected: str) -> InputError:
        """What is raised of a file that is not as it should be."""
        return InputError(self.argument, f"{self.top}{name}, {what}", expected)

    def bytes(self, name: str) -> bytes:
        """A file's content.

        Raises:
            InputError: it is not there or cannot be read.
        """
        if name not in self.files:
            raise self.fail(name, "which is not there", "that file")
        try:
            return self.store.read(self.top + name)
        except (OSError, zipfile.BadZipFile) as error:
            raise self.fail(name, f"which cannot be read ({error})", "a file that is whole") from None

    def text(self, name: str) -> str:
        """A file of text, in UTF-8 or UTF-16, with a mark of byte order or without; else Latin-1."""
        return decoded(self.bytes(name))[0]

    def lines(self, name: str) -> list[str]:
        """Its lines that are not empty."""
        return [line.strip() for line in self.text(name).splitlines() if line.strip()]

    def json(self, name: str) -> Any:
        """A file of JSON."""
        try:
            return json.loads(self.text(name))
        except ValueError as error:
            raise self.fail(name, f"which is no JSON ({error})", "JSON") from None

    def numbers(self, name: str) -> np.ndarray:
        """Rows of numbers in a text, float64 [rows, columns]; names before a colon are left out.

        Raises:
            InputError: something in it is no number, or rows have different lengths.
        """
        try:
            rows = [[float(word) for word in line.partition(":")[2 if ":" in line else 0].split()] for line in self.lines(name)]
            return np.array(rows, np.float64)
        except ValueError:
            raise self.fail(name, "whose rows are not of the same number of numbers", "rows of numbers") from None

    def matrices(self, name: str) -> dict[str, np.ndarray]:
        """Lines "name: numbers" of a calibration, float64 each; lines without numbers are left out."""
        found = {}
        for line in self.lines(name):
            key, colon, rest = line.partition(":")
            try:
                values = [float(word) for word in rest.split()]
            except ValueError:
                continue
            if colon and values:
                found[key.strip()] = np.array(values)
        return found

    def check_width(self, name: str, width: int, kind: np.dtype[Any] | type = np.float32) -> None:
        """Whether a file's length is that of whole rows of `width` numbers, by the listing alone.

        Raises:
            InputError: it is not.
        """
        row = width * np.dtype(kind).itemsize
        if self.files.get(name, 0) % row:
            what = f"whose {self.files[name]} bytes are no multiple of {row}"
            raise self.fail(name, what, f"rows of {width} numbers of {np.dtype(kind).itemsize} bytes, little-endian")

    def rows(self, name: str, width: int, kind: str = "<f4") -> np.ndarray:
        """Raw numbers, [N, width].

        Raises:
            InputError: the length is no multiple of a row.
        """
        self.check_width(name, width, np.dtype(kind))
        return np.frombuffer(self.bytes(name), kind).reshape(-1, width)

    def image(self, name: str) -> np.ndarray:
        """A picture, uint8 [H, W, 3].

        Raises:
            InputError: it cannot be decoded.
        """
        return np.array(self._picture(name).convert("RGB"))

    def map(self, name: str) -> np.ndarray:
        """A picture of one number per pixel (depth, labels), [H, W] in its own type.

        Raises:
            InputError: it cannot be decoded, or has several channels.
        """
        found = np.array(self._picture(name))
        if found.ndim != 2:
            raise self.fail(name, f"a picture of {found.shape[-1]} channels", "one number per pixel")
        return found

    def _picture(self, name: str) -> Image.Image:
        try:
            picture = Image.open(BytesIO(self.bytes(name)))
            picture.load()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise self.fail(name, f"which cannot be decoded ({str(error).splitlines()[0][:80]})", "a picture") from None
        return picture

    def fingerprint(self, *parts: Any, names: Iterable[str]) -> str:
        """Hash of `parts`, and of names and bytes of files."""
        digest = hashlib.sha256(repr(parts).encode())
        for name in names:
            digest.update(f"{name} {self.files.get(name)}".encode())
        return digest.hexdigest()[:16]


def open_place(path: str, argument: str) -> Place:
    """The folder or archive at a path.

    Raises:
        InputError: there is none, or it is damaged.
    """
    store = open_store(path, argument)
    try:
        files, _ = store.listing()
    except zipfile.BadZipFile as error:
        raise InputError(argument, path, f"a zip file that is whole ({error})") from None
    return Place(store, files, "", argument, path)


def rigid(rows: Any, place: Place, name: str) -> np.ndarray:
    """A pose of 12 or 16 numbers as float64 [4, 4].

    Raises:
        InputError: it has other numbers, or they are not finite.
    """
    try:
        values = np.asarray(rows, np.float64).ravel()
    except (TypeError, ValueError):
        raise place.fail(name, f"with a pose {str(rows)[:40]!r}", "poses of 3x4 or 4x4 finite numbers") from None
    if len(values) not in (12, 16) or not np.isfinite(values).all():
        raise place.fail(name, f"with a pose of {len(values)} numbers" if len(values) not in (12, 16) else "with a pose that is not finite",
                         "poses of 3x4 or 4x4 finite numbers")  # fmt: skip
    pose = np.eye(4)
    pose[:3] = values.reshape(-1, 4)[:3]
    return pose
