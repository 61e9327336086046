"""Images in folders, zips and tars: which files there are and which of them are images, which folders are splits and which are classes."""

from __future__ import annotations

import glob
import logging
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
from lightning.fabric.utilities.rank_zero import rank_zero_only

from stillroom.errors import InputError

logger = logging.getLogger(__name__)

EXTENSIONS = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "ppm", "pgm")  # of files that are images by their names alone
_TRAIN = ("train", "training")
_HELD_OUT = ("val", "valid", "validation", "test", "testing")
_SYSTEM = {  # what systems and programs leave in people's folders, in small letters
    "__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip
_MARKS = (  # what files of an image format begin with
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"qoif",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL \r\n\x87\n",
)  # fmt: skip
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_HEAD = 32  # bytes, enough for every mark


class Store(Protocol):
    """Files that are read one by one, by their names."""

    def listing(self) -> tuple[dict[str, int], set[str]]:
        """Relative path -> bytes of every file, and the relative paths of all folders; hidden ones and a system's own are left out."""

    def size(self, name: str) -> int | None:
        """Bytes of one file; None where there is no such file."""

    def read(self, name: str) -> bytes:
        """The content of one file."""

    def head(self, name: str, count: int) -> bytes:
        """The first `count` bytes of one file."""

    def ends(self, name: str, count: int) -> tuple[bytes, bytes]:
        """The first and the last `count` bytes of one file."""


class Folder:
    """A directory as a store of files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def listing(self) -> tuple[dict[str, int], set[str]]:
        """As `Store.listing`."""
        files: dict[str, int] = {}
        folders: set[str] = set()
        for folder, inner, names in os.walk(self.root, followlinks=True):
            real = os.path.realpath(folder)  # a link to a folder above would be followed for ever
            inner[:] = sorted(name for name in inner if _visible(name) and not _within(real, os.path.realpath(os.path.join(folder, name))))
            relative = Path(folder).relative_to(self.root)
            folders |= {(relative / name).as_posix() for name in inner}
            sizes = {(relative / name).as_posix(): _bytes(os.path.join(folder, name)) for name in names if _visible(name)}
            files |= {name: size for name, size in sizes.items() if size is not None}
        return files, folders

    def size(self, name: str) -> int | None:
        """As `Store.size`."""
        path = self.root / name
        return _bytes(str(path)) if path.exists() else None

    def read(self, name: str) -> bytes:
        """The content of one file."""
        return (self.root / name).read_bytes()

    def head(self, name: str, count: int) -> bytes:
        """As `Store.head`."""
        with (self.root / name).open("rb") as file:
            return file.read(count)

    def ends(self, name: str, count: int) -> tuple[bytes, bytes]:
        """As `Store.ends`."""
        with (self.root / name).open("rb") as file:
            head = file.read(count)
            file.seek(max(0, file.seek(0, os.SEEK_END) - count))
            return head, file.read()


class Zip:
    """A zip archive as a store of files, read in place. Every process opens its own handle: a shared one would share its position.

    Some programs of Windows write "\\" between folders, against the format: where no name has a "/", it is read as one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self._entries: dict[str, zipfile.ZipInfo] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None, "_entries": {}}

    def _archive(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), zipfile.ZipFile(self.path)
            entries = self._opened[1].infolist()
            foreign = not any("/" in entry.filename for entry in entries)
            self._entries = {entry.filename.replace("\\", "/") if foreign else entry.filename: entry for entry in entries}
        return self._opened[1]

    def listing(self) -> tuple[dict[str, int], set[str]]:
        """As `Store.listing`."""
        self._archive()
        entries = {name: entry for name, entry in self._entries.items() if all(map(_visible, PurePosixPath(name).parts))}
        files = {name: entry.file_size for name, entry in entries.items() if not name.endswith("/")}
        folders = {str(PurePosixPath(name)) for name in entries if name.endswith("/")}
        for parent in {PurePosixPath(name).parent for name in files}:
            folders |= {str(folder) for folder in (parent, *parent.parents)}
        return files, folders - {"."}

    def size(self, name: str) -> int | None:
        """As `Store.size`."""
        self._archive()
        entry = self._entries.get(name)
        return None if entry is None or name.endswith("/") else entry.file_size

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            BadZipFile: it is damaged, has a password, or was packed in a way that Python does not know.
        """
        return self.head(name, -1)

    def head(self, name: str, count: int) -> bytes:
        """As `Store.head`; all of it, if `count` is -1."""
        try:
            with self._archive().open(self._entries[name]) as file:
                return file.read(count)
        except (RuntimeError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise zipfile.BadZipFile(str(error)) from None

    def ends(self, name: str, count: int) -> tuple[bytes, bytes]:
        """As `Store.ends`."""
        content = self.read(name)
        return content[:count], content[-count:]


class Member(NamedTuple):
    """Where a file of a tar lies: in which archive, from which byte on, and how many."""

    archive: int
    start: int
    size: int


class Tar:
    """One tar archive, or several shards of a set, as a store of files that are read in place, in any order.

    Args:
        paths: of the archives, none of them compressed.
        argument: what error messages call them.
        prefixes: what the names of each archive's files begin with; nothing by default.

    Raises:
        InputError: an archive is compressed, damaged, or none at all.
    """

    def __init__(self, paths: Sequence[Path], argument: str, prefixes: Sequence[str] = ("",)) -> None:
        self.paths = list(paths)
        self.members: dict[str, Member] = {}
        self.folders: set[str] = set()
        for number, (path, prefix) in enumerate(zip(paths, prefixes, strict=True)):
            try:
                self._list(number, path, prefix)
            except (tarfile.TarError, OSError, EOFError, ValueError) as error:
                packed = [kind for mark, kind in _PACKED.items() if _first_bytes(path).startswith(mark)]
                expected = f"a tar that is not packed by {packed[0]}: unpack it" if packed else f"a tar that is whole ({error})"
                raise InputError(argument, str(path), expected) from None
        for parent in {PurePosixPath(name).parent for name in self.members}:
            self.folders |= {str(folder) for folder in (parent, *parent.parents)} - {"."}

    def _list(self, number: int, path: Path, prefix: str) -> None:
        links: dict[str, str] = {}
        with tarfile.open(path, "r:") as archive:
            while entry := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # ours is the index: theirs would hold every header
                name = str(PurePosixPath(entry.name))
                if not all(map(_visible, PurePosixPath(name).parts)):
                    continue
                if entry.isdir():
                    self.folders |= {f"{prefix}{name}"} - {prefix, f"{prefix}."}
                elif entry.isreg():
                    self.members[f"{prefix}{name}"] = Member(number, entry.offset_data, entry.size)
                elif entry.issym() or entry.islnk():  # a symbolic link is relative to its own folder
                    target = PurePosixPath(name).parent / entry.linkname if entry.issym() else PurePosixPath(entry.linkname)
                    links[f"{prefix}{name}"] = f"{prefix}{os.path.normpath(target)}"
        self.members |= {name: self.members[target] for name, target in links.items() if target in self.members}

    def listing(self) -> tuple[dict[str, int], set[str]]:
        """As `Store.listing`."""
        return {name: member.size for name, member in self.members.items()}, set(self.folders)

    def size(self, name: str) -> int | None:
        """As `Store.size`."""
        return self.members[name].size if name in self.members else None

    def read(self, name: str) -> bytes:
        """The content of one file."""
        return self._part(name, 0, self.members[name].size)

    def head(self, name: str, count: int) -> bytes:
        """As `Store.head`."""
        return self._part(name, 0, min(count, self.members[name].size))

    def ends(self, name: str, count: int) -> tuple[bytes, bytes]:
        """As `Store.ends`."""
        size = self.members[name].size
        return self.head(name, count), self._part(name, max(0, size - count), min(count, size))

    def _part(self, name: str, first: int, count: int) -> bytes:
        member = self.members[name]
        with self.paths[member.archive].open("rb") as file:  # each time anew: threads and processes share no position
            file.seek(member.start + first)
            return file.read(count)


_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def open_store(path: str, argument: str) -> Store:
    """The folder, zip or tar at a path.

    Raises:
        InputError: it is none of them.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return Folder(place)
    if not place.is_file():
        raise InputError(argument, path, "a folder or a zip file" if place.exists() else "a folder or a zip file that exists")
    if zipfile.is_zipfile(place):
        return Zip(place)
    if tarfile.is_tarfile(place):
        return Tar([place], argument)
    raise InputError(argument, path, "a folder or a zip file, or a tar")


def list_files(path: str, argument: str) -> tuple[Store, dict[str, int], set[str]]:
    """The store at a path, its files (with their bytes) and its folders.

    Raises:
        InputError: it is no folder, zip or tar, or holds no image.
    """
    store = open_store(path, argument)
    try:
        files, folders = store.listing()
    except zipfile.BadZipFile as error:
        raise InputError(argument, path, f"a zip file that is whole ({error})") from None
    if not any(_named_as_image(name) for name in files) and not any(_begins_as_image(store, name) for name in files):
        raise InputError(argument, path, f"images in it ({', '.join(EXTENSIONS)}, ...); there are none")
    return store, files, folders


# Which files are images -----------------------------------------------------------------------------------------------------------------


def told_apart(store: Store, files: Iterable[str]) -> tuple[list[str], list[str]]:
    """The names of the files that are images, and of those that are not; both sorted.

    A file that is named as an image is one, whether or not it can be decoded; of every other one the first bytes tell.
    """
    images: list[str] = []
    others: list[str] = []
    for name in sorted(files):
        (images if _named_as_image(name) or _begins_as_image(store, name) else others).append(name)
    return images, others


def _named_as_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS


def _begins_as_image(store: Store, name: str) -> bool:
    try:
        return begins_as_image(store.head(name, _HEAD))
    except (OSError, zipfile.BadZipFile):
        return False


def begins_as_image(head: bytes) -> bool:
    """Whether a file that begins with these bytes (32 suffice) is of an image format."""
    return (
        head.startswith(_MARKS)
        or (head[:4], head[8:12]) == (b"RIFF", b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in _BRANDS)
        or (head[:2] == b"BM" and head[6:10] == bytes(4) and head[15:18] == bytes(3))  # reserved, and a short header's length
        or re.match(rb"P[1-6]\s+[#\d]", head) is not None
    )


def passed_over(names: Sequence[str], what: str = "other than images", kind: str = "file") -> list[str]:
    """What is said of files that a set is read without: a sentence, or none."""
    if not names:
        return []
    return [f"passed over {len(names)} {kind}{'' if len(names) == 1 else 's'} {what}, the first {printable(names[0])}"]


def printable(name: str) -> str:
    """A file's name as it can be written: one in no known encoding has its bytes escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


# Splits and classes ---------------------------------------------------------------------------------------------------------------------


def single_top(files: Iterable[str], folders: Iterable[str]) -> str:
    """ "name/" if everything lies in one top folder that only wraps the set, else ""."""
    tops = {name.split("/")[0] for name in folders}
    wraps = len(tops) == 1 and not any("/" not in name and _named_as_image(name) for name in files)
    inner = {name for name in folders if name.count("/") == 1}
    return f"{tops.pop()}/" if wraps and inner else ""


def find_splits(files: Iterable[str], folders: set[str]) -> tuple[str, str | None]:
    """The folder of the training classes ("" is the top) and that of the validation classes, if there is one."""
    wrapped = single_top(files, folders)
    parents = {name.rpartition("/")[0] for name in folders}  # a class may be called "train": a split has folders in it
    for top in ("", wrapped):
        inside = {name[len(top) :].lower(): name for name in folders & parents if name.startswith(top)}
        if train := next((inside[name] for name in _TRAIN if name in inside), None):
            return train, next((inside[name] for name in _HELD_OUT if name in inside), None)
    return wrapped.rstrip("/"), None


class ClassFolders(NamedTuple):
    """Images in a folder for each class.

    Attributes:
        classes: names of the folders, in the order of text.
        names: paths of the images, sorted.
        labels: of each, int64 [N].
    """

    classes: tuple[str, ...]
    names: list[str]
    labels: np.ndarray


def list_classes(
    images: Iterable[str], folders: set[str], root: str, path: str, argument: str, *, known: Sequence[str] | None = None
) -> ClassFolders:
    """The class folders in `root`. Images may lie at any depth in their class's folder.

    Args:
        images: the names of a store's images.
        folders: its folders.
        root: the folder of the classes, "" for the top.
        path: of the store, for messages.
        argument: what they call it.
        known: the classes, where another split says them: then a class may have no image here.

    Raises:
        InputError: there are fewer than two class folders, one holds no image, or one is not among those that are known.
    """
    start = f"{root}/" if root else ""
    there = tuple(sorted(name[len(start) :] for name in folders if name.startswith(start) and "/" not in name[len(start) :]))
    classes = there if known is None else tuple(known)
    number = {name: i for i, name in enumerate(there)}
    inside = [name for name in sorted(images) if name.startswith(start)]
    listed = [(name, number[name[len(start) :].split("/")[0]]) for name in inside if "/" in name[len(start) :]]
    names, labels = [name for name, _ in listed], np.array([label for _, label in listed], np.int64)
    where = f"{path}/{root}" if root else path
    counts = np.bincount(labels, minlength=len(there))
    empty = [name for name, count in zip(there, counts, strict=True) if not count]
    if known is not None:
        if set(there) - set(empty) - set(classes):
            check_same(classes, there, argument)
        if not names:
            raise InputError(argument, where, f"images in it, of {', '.join(classes[:5])}")
        place = np.array([classes.index(name) if name in classes else -1 for name in there])
        return ClassFolders(classes, names, place[labels])
    if len(classes) == 0:
        raise InputError(argument, where, "one folder per class (or labels=FILE, a table)")
    if empty:
        raise InputError(argument, where, f"images in every class folder; empty: {', '.join(map(printable, empty[:5]))}")
    if len(classes) < 2:
        raise InputError(argument, where, f"at least two class folders; there is only {classes[0]}")
    if strange := [name for name in classes if printable(name) != name]:
        raise InputError(argument, f"{where} with a folder {printable(strange[0])}", "names of folders in UTF-8")
    return ClassFolders(classes, names, labels)


def check_same(train: Sequence[str], val: Sequence[str], argument: str) -> None:
    """Raises InputError unless both lists hold the same classes in the same order."""
    if tuple(train) == tuple(val):
        return
    only = [(f"only in {split}: ", sorted(set(a) - set(b))) for split, a, b in (("train", train, val), ("val", val, train))]
    differences = "; ".join(start + ", ".join(names[:5]) for start, names in only if names) or "their order differs"
    raise InputError(argument, differences, "the same classes for training and validation")


def warn_left_out(names: Sequence[str], what: str = "image file{s} that cannot be decoded") -> None:
    """One warning for all images that a set goes without, from one process of several; `what` they are, see `counted`."""
    if int(getattr(rank_zero_only, "rank", 0)) == 0:
        logger.warning("left out %s", counted(names, what))


def counted(names: Sequence[str], what: str = "image file{s} that cannot be decoded") -> str:
    """How many images cannot be used, and the first five of them; `{s}` in what they are stands where one and many differ."""
    which, first = what.format(s="" if len(names) == 1 else "s"), map(printable, names[:5])
    return f"{len(names)} {which}: {', '.join(first)}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"


def _bytes(path: str) -> int | None:
    """The size of a file; 0 for a link that leads nowhere, which cannot be read any more than an empty file can; None for a pipe etc."""
    try:
        found = os.stat(path)
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _within(path: str, folder: str) -> bool:
    """Whether a real path is `folder` or lies below it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _SYSTEM


# Images to predict on -------------------------------------------------------------------------------------------------------------------


class FoundImages(NamedTuple):
    """What places name.

    Attributes:
        files: each once.
        empty: the places that name none.
        others: files in folders that are no images.
    """

    files: list[Path]
    empty: list[str]
    others: list[Path]


def find_images(places: Sequence[str]) -> FoundImages:
    """The files that places name.

    Args:
        places: files, which are taken whatever they are called and whether or not they exist; folders, of which every image below
            counts that is not hidden; and patterns such as ``photos/**/*.jpg``.
    """
    files: dict[Path, None] = {}
    others: dict[Path, None] = {}
    empty: list[str] = []
    for place in places:
        path = Path(place).expanduser()
        named = [path] if path.exists() or not glob.has_magic(place) else map(Path, sorted(glob.glob(str(path), recursive=True)))
        found: list[Path] = []
        for match in named:
            if match.is_dir():
                store = Folder(match)
                inside = [[match / name for name in names] for names in told_apart(store, store.listing()[0])]
                found += sorted(inside[0])
                others |= dict.fromkeys(inside[1])
            else:
                found.append(match)
        files |= dict.fromkeys(found)
        if not found:
            empty.append(place)
    return FoundImages(list(files), empty, [file for file in others if file not in files])
