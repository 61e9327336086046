"""Where files lie: a directory, a zip or tars, read in place and one by one."""

from __future__ import annotations

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from stillroom.errors import InputError

_SYSTEM = {  # what systems and programs leave in people's folders, in small letters
    "__macosx", "__pycache__", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip


_LARGEST = 2**28  # bytes of a file that is read whole; of annotations of a whole set more
_LARGEST_LIST = 2**30


def refuse_larger(name: str, size: int) -> None:
    """Refuses to read a file whole that no image and no annotations can be: a zip makes gigabytes of a few bytes.

    Raises:
        OSError: it is larger.
    """
    most = _LARGEST_LIST if name.lower().endswith((".json", ".csv", ".xml", ".txt")) else _LARGEST
    if size > most:
        raise OSError(f"{size / 1e9:.1f} GB, more than the {most >> 20} MB that such a file may have")


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
        return _bytes(str(path)) if os.path.exists(path) else None  # which knows no error, of whatever name

    def read(self, name: str) -> bytes:
        """The content of one file."""
        path = self.root / name
        refuse_larger(name, path.stat().st_size)
        return path.read_bytes()

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
            names = [entry.filename.replace("\\", "/") if foreign else entry.filename for entry in entries]
            self._entries = {name.lstrip("/"): entry for name, entry in zip(names, entries, strict=True)}  # none lies outside
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
        self._archive()
        if count < 0:
            refuse_larger(name, self._entries[name].file_size)
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
        refuse_larger(name, self.members[name].size)
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


_MARK = 8  # bytes, enough for what a packed file begins with
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MARK)
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
