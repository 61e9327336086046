"""Images on disk or in a zip: which files there are, which folders are splits and which are classes."""

from __future__ import annotations

import glob
import logging
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from lightning.fabric.utilities.rank_zero import rank_zero_only

from stillroom.errors import InputError

logger = logging.getLogger(__name__)

EXTENSIONS = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "ppm", "pgm")
_HELD_OUT = ("val", "valid", "validation", "test")


class Folder:
    """A directory as a store of files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def listing(self) -> tuple[dict[str, int], set[str]]:
        """Relative path -> bytes of every file, and the relative paths of all folders; hidden ones are left out."""
        files: dict[str, int] = {}
        folders: set[str] = set()
        for folder, inner, names in os.walk(self.root, followlinks=True):
            real = os.path.realpath(folder)  # a link to a folder above would be followed for ever
            inner[:] = sorted(name for name in inner if _visible(name) and not _within(real, os.path.realpath(os.path.join(folder, name))))
            relative = Path(folder).relative_to(self.root)
            folders |= {(relative / name).as_posix() for name in inner}
            files |= {(relative / name).as_posix(): _bytes(os.path.join(folder, name)) for name in names if _visible(name)}
        return files, folders

    def read(self, name: str) -> bytes:
        """The content of one file."""
        return (self.root / name).read_bytes()

    def ends(self, name: str, count: int) -> tuple[bytes, bytes]:
        """The first and the last `count` bytes of one file."""
        with (self.root / name).open("rb") as file:
            head = file.read(count)
            file.seek(max(0, file.seek(0, os.SEEK_END) - count))
            return head, file.read()


class Zip:
    """A zip archive as a store of files, read in place. Every process opens its own handle: a shared one would share its position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None}

    def _archive(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), zipfile.ZipFile(self.path)
        return self._opened[1]

    def listing(self) -> tuple[dict[str, int], set[str]]:
        """As `Folder.listing`."""
        entries = [entry for entry in self._archive().infolist() if all(map(_visible, PurePosixPath(entry.filename).parts))]
        files = {entry.filename: entry.file_size for entry in entries if not entry.is_dir()}
        folders = {str(PurePosixPath(entry.filename)) for entry in entries if entry.is_dir()}
        for parent in {PurePosixPath(name).parent for name in files}:
            folders |= {str(folder) for folder in (parent, *parent.parents)}
        return files, folders - {"."}

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            BadZipFile: it is damaged, has a password, or was packed in a way that Python does not know.
        """
        try:
            return self._archive().read(name)
        except (RuntimeError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise zipfile.BadZipFile(str(error)) from None

    def ends(self, name: str, count: int) -> tuple[bytes, bytes]:
        """As `Folder.ends`."""
        content = self.read(name)
        return content[:count], content[-count:]


def list_files(path: str, argument: str) -> tuple[Folder | Zip, dict[str, int], set[str]]:
    """The store at a path, its files (with their bytes) and its folders.

    Raises:
        InputError: it is neither a folder nor a zip file, or holds no image.
    """
    place = Path(path).expanduser()
    store: Folder | Zip
    if place.is_dir():
        store = Folder(place)
    elif place.is_file() and zipfile.is_zipfile(place):
        store = Zip(place)
    else:
        raise InputError(argument, path, "a folder or a zip file" if place.exists() else "a folder or a zip file that exists")
    try:
        files, folders = store.listing()
    except zipfile.BadZipFile as error:
        raise InputError(argument, path, f"a zip file that is whole ({error})") from None
    if not any(map(_is_image, files)):
        raise InputError(argument, path, f"images in it ({', '.join(EXTENSIONS)}); there are none")
    return store, files, folders


def single_top(files: Iterable[str], folders: Iterable[str]) -> str:
    """ "name/" if everything lies in one top folder that only wraps the set, else ""."""
    tops = {name.split("/")[0] for name in folders}
    wraps = len(tops) == 1 and not any("/" not in name and _is_image(name) for name in files)
    inner = {name for name in folders if name.count("/") == 1}
    return f"{tops.pop()}/" if wraps and inner else ""


def find_splits(files: Iterable[str], folders: set[str]) -> tuple[str, str | None]:
    """The folder of the training classes ("" is the top) and that of the validation classes, if there is one."""
    wrapped = single_top(files, folders)
    parents = {name.rpartition("/")[0] for name in folders}  # a class may be called "train": a split has folders in it
    for top in ("", wrapped):
        inside = {name[len(top) :].lower(): name for name in folders & parents if name.startswith(top)}
        if "train" in inside:
            return inside["train"], next((inside[name] for name in _HELD_OUT if name in inside), None)
    return wrapped.rstrip("/"), None


def list_classes(
    files: dict[str, int], folders: set[str], root: str, path: str, argument: str
) -> tuple[tuple[str, ...], list[str], np.ndarray]:
    """Class names, image paths and labels of the class folders in `root`. Images may lie at any depth in their class's folder.

    Raises:
        InputError: there are fewer than two class folders, or one holds no image.
    """
    start = f"{root}/" if root else ""
    classes = tuple(sorted(name[len(start) :] for name in folders if name.startswith(start) and "/" not in name[len(start) :]))
    number = {name: i for i, name in enumerate(classes)}
    inside = [name for name in sorted(files) if name.startswith(start) and _is_image(name)]
    listed = [(name, number[name[len(start) :].split("/")[0]]) for name in inside if "/" in name[len(start) :]]
    names, labels = [name for name, _ in listed], np.array([label for _, label in listed], np.int64)
    where = f"{path}/{root}" if root else path
    counts = np.bincount(labels, minlength=len(classes))
    if len(classes) == 0:
        raise InputError(argument, where, "one folder per class")
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise InputError(argument, where, f"images in every class folder; empty: {', '.join(empty[:5])}")
    if len(classes) < 2:
        raise InputError(argument, where, f"at least two class folders; there is only {classes[0]}")
    return classes, names, labels


def check_same(train: Sequence[str], val: Sequence[str], argument: str) -> None:
    """Raises InputError unless both lists hold the same classes in the same order."""
    if tuple(train) == tuple(val):
        return
    only = [(f"only in {split}: ", sorted(set(a) - set(b))) for split, a, b in (("train", train, val), ("val", val, train))]
    differences = "; ".join(start + ", ".join(names[:5]) for start, names in only if names) or "their order differs"
    raise InputError(argument, differences, "the same classes for training and validation")


def warn_left_out(names: Sequence[str]) -> None:
    """One warning for all images that a set goes without, from one process of several."""
    if int(getattr(rank_zero_only, "rank", 0)) == 0:
        logger.warning("left out %s", counted(names))


def counted(names: Sequence[str]) -> str:
    """How many image files cannot be decoded, and the first five of them."""
    files = "1 image file" if len(names) == 1 else f"{len(names)} image files"
    return f"{files} that cannot be decoded: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"


def _bytes(path: str) -> int:
    """The size of a file; 0 for a link that leads nowhere, which cannot be read any more than an empty file can."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _within(path: str, folder: str) -> bool:
    """Whether a real path is `folder` or lies below it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def find_images(places: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that places name, each once, and the places that name none.

    Args:
        places: files, which are taken whatever they are called and whether or not they exist; folders, of which every image below
            counts that is not hidden; and patterns such as ``photos/**/*.jpg``.
    """
    files: dict[Path, None] = {}
    empty: list[str] = []
    for place in places:
        path = Path(place).expanduser()
        if path.exists() or not glob.has_magic(place):
            found = _below(path)
        else:
            found = [file for match in sorted(glob.glob(str(path), recursive=True)) for file in _below(Path(match))]
        files |= dict.fromkeys(found)
        if not found:
            empty.append(place)
    return list(files), empty


def _below(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    inside = (file for file in path.rglob("*") if file.suffix[1:].lower() in EXTENSIONS and file.is_file())
    return sorted(file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts))
