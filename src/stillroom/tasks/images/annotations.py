"""Annotated images as they lie on disk, brought to one form: by `coco`, `voc`, `yolo`, and by a table of tags, which is read here."""

from __future__ import annotations

import codecs
import csv
import io
import logging
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from posixpath import basename, dirname, splitext
from typing import Any
from urllib.parse import unquote

from lightning.fabric.utilities.rank_zero import rank_zero_only

from stillroom.errors import InputError
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.folders import EXTENSIONS, list_files

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]

_HEADS = ("file", "filename", "image", "path")  # of a table's first column, where it has a head
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
ELSEWHERE = "paths that lead elsewhere, found by their last part"
SWAPPED = "boxes whose corners were swapped, put right"
_ABOUT = 1e-3  # what rounding may do to a number in parts of an image
# What lies beside images and is none; whatever else does is taken for one, and looked at.
_NO_IMAGES = frozenset(
    ["txt", "xml", "json", "jsonl", "yaml", "yml", "csv", "tsv", "md", "html", "cache", "npy", "npz", "names", "ini", "db", "py", "zip"]
)


@dataclass(frozen=True)
class Thing:
    """One annotated object, or a tag of the whole image.

    Attributes:
        name: of its class.
        box: (x1, y1, x2, y2) from the image's left upper corner, see `Annotated.relative`; None where the annotation has none.
        crowd: it stands for many (COCO's iscrowd), or is too hard to be asked for (Pascal VOC's difficult).
        mask: where there is no box, what COCO's annotation has instead.
    """

    name: str
    box: Box | None = None
    crowd: bool = False
    mask: Any = None


class Notes:
    """What was met in files and passed over or put right.

    Attributes:
        counts: how often, by what it is.
        first: the file it was met in first.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, what: str, where: str = "", count: int = 1) -> None:
        """Once more, or `count` times, in a file."""
        if count:
            self.counts[what] += count
            self.first.setdefault(what, where)

    def update(self, others: Notes) -> None:
        """All that others hold, behind what is here."""
        for what, count in others.counts.items():
            self.add(what, others.first[what], count)

    def lines(self) -> list[str]:
        """One for each: what, how often, and where first."""
        return [f"{what}: {count}{f' (first {self.first[what]})' if self.first[what] else ''}" for what, count in self.counts.items()]

    def warn(self, argument: str) -> None:
        """A line for each in the terminal, from one process of several."""
        if int(getattr(rank_zero_only, "rank", 0)) == 0:
            for line in self.lines():
                logger.warning("%s: %s", argument, line)


@dataclass(frozen=True)
class Annotated:
    """The images of one split, and the objects that each of them shows.

    Attributes:
        store: where the files are.
        names: their paths in it.
        things: of each image.
        sizes: bytes of each file.
        shapes: (height, width) of each image as its annotation says; None where it does not.
        relative: whether an image's boxes are in parts of its width and height; else they are in pixels.
        notes: what was met on the way.
        keys: what the annotation knows each image by: COCO's id, or the path of Pascal VOC's XML; empty for other formats.
    """

    store: Store
    names: list[str]
    things: list[list[Thing]]
    sizes: Mapping[str, int]
    shapes: list[tuple[int, int] | None]
    relative: list[bool]
    notes: Notes = field(default_factory=Notes)
    keys: list[Any] = field(default_factory=list)

    @property
    def objects(self) -> list[Counter[str]]:
        """How many objects of which class each image shows."""
        return [Counter(thing.name for thing in things) for things in self.things]


def check_apart(train: Annotated, val: Annotated, said: str, argument: str) -> None:
    """Raises InputError if two splits, of files in one place, share images."""
    if both := set(train.names) & set(val.names):
        raise InputError(argument, f"{said}, which share {len(both)} images, such as {min(both)}", "splits that share none")


def note_others(parts: Sequence[Annotated], annotated: Container[str] = ()) -> None:
    """Notes how many images lie beside those of the splits, which are in one place, and have no annotation.

    Args:
        parts: the splits.
        annotated: names, without folder and ending, of images that have one and are in neither.
    """
    listed = {name for part in parts for name in part.names}
    folders = {dirname(name) for name in listed}
    beside = (name for name in parts[0].sizes if name not in listed and dirname(name) in folders and extension(name) in EXTENSIONS)
    others = sorted(name for name in beside if splitext(basename(name))[0] not in annotated)
    parts[0].notes.add("images without an annotation, left out", others[0] if others else "", len(others))


def all_relative(parts: Sequence[Annotated]) -> bool:
    """Whether no box reaches beyond 1, where all would be less than a pixel: boxes are in parts of their image. If so, it is noted."""
    count = 0
    for box in (thing.box for part in parts for things in part.things for thing in things if thing.box is not None):
        if not (min(box) >= -_ABOUT and max(box) <= 1 + _ABOUT):
            return False
        count += 1
    first = next((name for part in parts for name, things in zip(part.names, part.things, strict=True) if things), "")
    parts[0].notes.add("boxes in parts of their image, not in pixels, read so", first, count)
    return count > 0


def flag(said: Any) -> bool:
    """Whether a number, a truth value or a text means yes: 1, true, "1", "true", "yes"."""
    text = str(said).strip().lower()
    try:
        return float(text) != 0
    except ValueError:
        return text in ("true", "yes")


def content_of(store: Store, name: str, argument: str) -> bytes:
    """What is in a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return store.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(argument, name, f"a file that can be read ({getattr(error, 'strerror', None) or error})") from None


def decoded(content: bytes) -> tuple[str, bool]:
    """A text, and whether its encoding is known: UTF-8, or UTF-16 by its mark; other bytes are read as Latin-1."""
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig"), True
    except UnicodeDecodeError:
        return content.decode("latin-1"), False


def split_of(path: str) -> str | None:
    """The split that a folder on the way to a file is called after: train, val, test; or none."""
    return next((_SPLITS[part] for part in path.lower().split("/")[:-1] if part in _SPLITS), None)


def may_be_image(name: str) -> bool:
    """Whether a file is taken for an image until it is read: told by its content, not by its name."""
    return extension(name) not in _NO_IMAGES


def extension(name: str) -> str:
    """Of a file, in small letters, without its dot."""
    return name.rpartition(".")[2].lower()


class Places:
    """Where files that an annotation names lie in a store.

    A name is a path in the store, or one beside the annotation; all may lie in one top folder that the names leave out. Else it is that
    file whose path ends most alike: names come from other machines (absolute, with backslashes, in URLs, in other case or Unicode form).

    Args:
        sizes: the store's files.
        source: the annotation's name, for messages.
        near: folder of the annotation in the store, "" or with a slash at its end.
    """

    def __init__(self, sizes: Mapping[str, int], source: str, argument: str, *, near: str = "") -> None:
        self.sizes, self.source, self.argument = sizes, source, argument
        tops = {name.partition("/")[0] for name in sizes}
        self.starts = dict.fromkeys((near, "", f"{tops.pop()}/" if len(tops) == 1 else ""))
        self._by_last: dict[str, list[str]] = {}

    def find(self, names: Iterable[str], notes: Notes) -> list[str]:
        """The path of each.

        Raises:
            InputError: some are missing, or cannot be told from others; two are one file.
        """
        found: dict[str, str] = {}
        missing = []
        for name in names:
            plain = name.replace("\\", "/").removeprefix("./")
            place = next((f"{start}{plain}" for start in self.starts if f"{start}{plain}" in self.sizes), None)
            if place is None and (place := self._nearest(plain)) is not None:
                notes.add(ELSEWHERE, name)
            if place is None:
                missing.append(plain)
            elif place in found:
                raise InputError(self.argument, f"{self.source} with {found[place]} and {name}, which are one file", "each image once")
            else:
                found[place] = name
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            got = f"{self.source} with files that are missing: {', '.join(missing[:5])}{more}"
            raise InputError(self.argument, got, "images that are there")
        return list(found)

    def _nearest(self, name: str) -> str | None:
        if not self._by_last:
            by_last = defaultdict(list)
            for path in self.sizes:
                by_last[_plain(path).rpartition("/")[2]].append(path)
            self._by_last = by_last
        for spelling in dict.fromkeys((name, unquote(name))):
            # Label Studio's local files stand behind "?d="; behind any other "?" stands what a server was asked.
            words = _plain(spelling.rpartition("?d=")[2].partition("?")[0]).split("/")
            alike = {path: _common(words, _plain(path).split("/")) for path in self._by_last.get(words[-1], ())}
            best = [path for path, count in alike.items() if count == max(alike.values())]
            if len(best) == 1:
                return best[0]
            if best:
                raise InputError(self.argument, f"{self.source} with {name}, which {' and '.join(best[:2])} are called", "a path")
        return None


def read_tags(table: str, images: str | None, argument: str) -> Annotated:
    """The images of a CSV file with a file and its tags in each row: ``photos/1.jpg,beach;sea``; a row without tags has none.

    Args:
        table: the file, see `decoded`; a first row whose first cell is ``file`` is a head.
        images: the folder or zip that files are relative to; None for the table's own folder.
        argument: what error messages call it.

    Raises:
        InputError: it is no such table, or names a file twice or one that is missing.
    """
    path = Path(table).expanduser()
    try:
        rows = list(csv.reader(io.StringIO(decoded(path.read_bytes())[0])))
    except (OSError, csv.Error) as error:
        raise InputError(argument, table, f"a CSV file that can be read ({getattr(error, 'strerror', None) or error})") from None
    numbered = [(number, row) for number, row in enumerate(rows, 1) if row]
    if numbered and numbered[0][1][0].strip().lower() in _HEADS:
        numbered = numbered[1:]
    if not numbered:
        raise InputError(argument, table, "a row for each image: file,tag;tag")
    tags: dict[str, list[Thing]] = {}
    for number, row in numbered:
        name = row[0].strip()
        if not name or len(row) > 2:
            raise InputError(argument, f"{table}, row {number}: {','.join(row)}", "file,tag;tag (a name with a comma in quotes)")
        if name in tags:
            raise InputError(argument, f"{table}, row {number}: {name}", "each file once")
        words = (tag.strip() for cell in row[1:] for tag in cell.split(";"))
        tags[name] = [Thing(tag) for tag in dict.fromkeys(words) if tag]
    store, sizes, _ = list_files(str(path.parent) if images is None else images, argument)
    notes = Notes()
    found = Places(sizes, table, argument).find(tags, notes)
    return Annotated(store, found, list(tags.values()), sizes, [None] * len(found), [False] * len(found), notes)


def _plain(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """How many of their last parts two paths have in common."""
    alike = (a == b for a, b in zip(reversed(first), reversed(second), strict=False))
    return sum(1 for _ in takewhile(bool, alike))
