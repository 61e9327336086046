"""YOLO's format: a text file for each image, with a line for each object, and one YAML file that says where the images are."""

from __future__ import annotations

import fnmatch
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from posixpath import basename, dirname, join, normpath, relpath, splitext
from typing import Any

import yaml  # type: ignore[import-untyped]

from stillroom.engine.plain import plain_yaml
from stillroom.errors import InputError
from stillroom.tasks.images.annotations import (
    ELSEWHERE,
    Annotated,
    Box,
    Notes,
    Thing,
    check_apart,
    content_of,
    decoded,
    may_be_image,
    split_of,
)
from stillroom.tasks.images.files import Folder, Store
from stillroom.tasks.images.folders import list_files
from stillroom.tasks.images.sources import is_number

_HELD_OUT = ("val", "valid", "validation", "test")
_NO_SPLITS = ("path", "names", "nc", "download", "kpt_shape", "flip_idx", "roboflow")
_NAMES = ("classes.txt", "obj.names")  # files of class names, one in a line
_MOST = 100_000  # classes that are called by their numbers
_BEYOND = 1.5  # a number above it is no part of an image
_UP = 3  # folders above an image's own in which a folder of labels may be


def open_yolo(path: str, options: dict[str, str], argument: str) -> tuple[tuple[str, ...], list[Annotated]]:
    """The classes and the images of ``yolo:data.yaml``, or ``yolo:ROOT``: a folder or zip with such a file, or with images and labels.

    The file names the classes (``names``, a list or by numbers; or ``nc``, how many) and for each split a folder, a list of images, a
    pattern, or several of these, relative to its ``path`` or to itself; paths of another machine are found by their last parts. Without
    such a file the splits are the folders called so, and classes.txt names the classes. The options ``train`` and ``val`` name splits: by
    default train, and val or test. There is one split alone where no other is known, or ``val`` is a share.

    The labels of ``images/a/1.jpg`` are in ``labels/a/1.txt``, beside it, or in a folder ``labels`` above: lines ``class x y width
    height``, centre and size in parts of the image, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon. A file whose numbers are mostly above 1
    is in pixels. An image without such a file has no object.

    Raises:
        InputError: not that format, no such split, two that share images, or files that are missing or damaged.
    """
    place = Path(path).expanduser()
    where = _Packed(path, argument) if place.is_file() and zipfile.is_zipfile(place) else _Disk()
    found = _Set(where, "/" if isinstance(where, _Packed) else place.absolute().as_posix(), argument)
    train, val = found.chosen(options)
    images = [found.images(split) for split in ((train,) if val is None else (train, val))]
    store, sizes, start = where.stored([image for part in images for image in part])
    parts = []
    for part in images:
        things, relative = found.things(part)
        names = [relpath(image, start) for image in part]
        parts.append(Annotated(store, names, things, sizes, [None] * len(names), relative))
    parts[0].notes.update(found.notes)
    if len(parts) == 2:
        check_apart(parts[0], parts[1], f"train={train}, val={val}", argument)
    return tuple(found.classes.values()), parts


class _Disk:
    """Files by their absolute paths; a folder is listed when it is first asked for."""

    def __init__(self) -> None:
        self._inside: dict[str, set[str]] = {}

    def inside(self, folder: str) -> set[str]:
        """Names of what lies in a folder; none, if it is none."""
        if folder not in self._inside:
            self._inside[folder] = {name for name in (os.listdir(folder) if os.path.isdir(folder) else ()) if not name.startswith(".")}
        return self._inside[folder]

    def is_file(self, path: str) -> bool:
        """Whether there is a file of that path."""
        return basename(path) in self.inside(dirname(path)) and not os.path.isdir(path)

    def below(self, folder: str) -> list[str]:
        """Every file in a folder and its folders."""
        return [join(folder, name) for name in Folder(Path(folder)).listing()[0]]

    def content(self, path: str, argument: str) -> str:
        """The text in a file."""
        return decoded(content_of(Folder(Path("/")), path, argument))[0]

    def stored(self, paths: Sequence[str]) -> tuple[Store, dict[str, int], str]:
        """A store of files, their bytes by their names in it, and where it begins."""
        start = os.path.commonpath({dirname(path) for path in paths})
        return Folder(Path(start)), {relpath(path, start): os.path.exists(path) and os.path.getsize(path) for path in paths}, start


class _Packed(_Disk):
    """Files of a zip, whose top is "/"."""

    def __init__(self, path: str, argument: str) -> None:
        super().__init__()
        self.zip, self.sizes, _ = list_files(path, argument)
        for name in self.sizes:
            while name:
                self._inside.setdefault(f"/{dirname(name)}", set()).add(basename(name))
                name = dirname(name)

    def inside(self, folder: str) -> set[str]:
        return self._inside.get(folder, set())

    def is_file(self, path: str) -> bool:
        return path[1:] in self.sizes

    def below(self, folder: str) -> list[str]:
        return [f"/{name}" for name in self.sizes if f"/{name}".startswith(f"{folder.rstrip('/')}/")]

    def content(self, path: str, argument: str) -> str:
        return decoded(content_of(self.zip, path[1:], argument))[0]

    def stored(self, paths: Sequence[str]) -> tuple[Store, dict[str, int], str]:
        return self.zip, self.sizes, "/"


class _Set:
    """What a data.yaml says, or else what lies in the folders of a set.

    Args:
        where: its files.
        root: the file, or the folder that it is in.
        argument: what error messages call it.

    Attributes:
        classes: names by their numbers.
        splits: places of the images of each.
        bases: folders that places are relative to, the likeliest first.
        keypoints: whether points stand behind each box.
        notes: what was met on the way.
    """

    def __init__(self, where: _Disk, root: str, argument: str) -> None:
        self.where, self.argument, self.notes = where, argument, Notes()
        self.classes: dict[int, str] = {}
        self.splits: dict[str, list[str]] = {}
        self.keypoints = False
        file = root if where.is_file(root) else ""
        while not file and len(inside := where.inside(root)) == 1 and where.inside(only := join(root, *inside)):
            root = only  # a folder that only wraps the set
        if not file and (files := sorted(name for name in where.inside(root) if name.endswith((".yaml", ".yml")))):
            likely = [name for name in files if name in ("data.yaml", "dataset.yaml")] or files
            if len(likely) > 1:
                raise InputError(argument, f"{root} with {', '.join(likely[:5])}", "the path of one of them")
            file = join(root, likely[0])
        self.bases = [dirname(file) if file else root]
        if file:
            self._describe(file)
        elif where.inside(root):
            self._look(root)
        else:
            raise InputError(argument, root, "a data.yaml, or a folder or zip with images and labels, that exists")
        if len(set(self.classes.values())) < max(1, len(self.classes)):
            got = f"{file or root} with {'two classes of one name' if self.classes else 'no classes'}"
            raise InputError(argument, got, "the classes' names (names: [cat, dog], or classes.txt), or how many there are (nc: 2)")

    def _describe(self, file: str) -> None:
        """Reads a data.yaml."""
        try:
            # Scalars are read as they are written: a class may be called "no".
            said = plain_yaml(self.where.content(file, self.argument), yaml.BaseLoader)
        except ValueError as error:
            raise InputError(self.argument, file, f"YAML ({' '.join(str(error).split())[:200]})") from None
        if not isinstance(said, dict):
            raise InputError(self.argument, file, "YAML with train, val and names")
        if root := said.get("path"):
            folders = [normpath(join(base, str(root))) for base in (*self.bases, os.getcwd())]
            there = [folder for folder in folders if self.where.inside(folder)]
            self.bases = [*there, *self.bases]
            self.notes.add("a path of data.yaml that is not here, its own folder taken instead", str(root), not there)
        self.keypoints = "kpt_shape" in said
        self._name(said.get("names"), said.get("nc"), file)
        for key, places in said.items():
            listed = [place for place in (places if isinstance(places, list) else [places]) if place]
            if key not in _NO_SPLITS and listed and all(isinstance(place, str) for place in listed):
                self.splits[str(key)] = listed

    def _look(self, root: str) -> None:
        """Takes the images below a folder without a data.yaml."""
        for image in sorted(filter(may_be_image, self.where.below(root))):
            self.splits.setdefault(split_of(relpath(image, root)) or "", []).append(image)
        names = [name for name in _NAMES if name in self.where.inside(root)]
        self._name(names[0] if names else None, None, root)

    def _name(self, names: Any, count: Any, source: str) -> None:
        """Takes the classes: a list, names by their numbers, or a file of names; or as many as are counted."""
        if isinstance(names, str) and names:
            file = self._place(names)
            lines = self.where.content(file, self.argument).splitlines() if file else []
            names = [line.strip() for line in lines if line.strip()] or names
        if isinstance(names, list):
            names = {str(number): name for number, name in enumerate(names)}
        names = names or {}
        if not isinstance(names, dict) or not all(str(k).isdecimal() and isinstance(name, str) for k, name in names.items()):
            raise InputError(self.argument, f"{source} with names: {names}"[:300], "a list of names, or names by their numbers from 0")
        named = {int(number): name.strip() for number, name in names.items()}
        unnamed = {k: str(k) for k in range(min(int(count), _MOST) if str(count).isdecimal() else 0) if k not in named}
        self.notes.add("classes without a name, called by their numbers", source, len(unnamed))
        self.classes = dict(sorted((named | unnamed).items()))

    # Images --------------------------------------------------------------------------------------------------------------------------

    def chosen(self, options: dict[str, str]) -> tuple[str, str | None]:
        """The splits to train on and to validate on; None for a share of the first."""
        likely = "" if "" in self.splits and "train" not in self.splits else "train"
        train = options.get("train", next(iter(self.splits)) if len(self.splits) == 1 else likely)
        others = [name for name in _HELD_OUT if name in self.splits and name != train]
        val = options.get("val", others[0] if others else None)
        if val is not None and is_number(val):
            val = None
        for split in (train, val):
            if split is not None and split not in self.splits:
                raise InputError(self.argument, split or "no images", f"a split of the set: {', '.join(self.splits) or 'there is none'}")
        return train, val

    def images(self, split: str) -> list[str]:
        """Paths of its images, as they are listed."""
        found: list[str] = []
        missing: list[str] = []
        for said in self.splits[split]:
            place = self._place(said)
            if place is None and any(sign in said for sign in "*?["):
                found += self._matching(said)
            elif place is None:
                missing.append(said)
            elif not self.where.is_file(place):
                found += sorted(filter(may_be_image, self.where.below(place)))
            elif not place.endswith(".txt"):
                found.append(place)
            else:
                for line in filter(None, map(str.strip, self.where.content(place, self.argument).splitlines())):
                    image = self._place(line, dirname(place))
                    (missing if image is None else found).append(image or line)
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            got = f"{split} with what is missing: {', '.join(missing[:5])}{more}"
            raise InputError(self.argument, got, "folders, lists or images that are there")
        if not found:
            raise InputError(self.argument, f"{split}: {', '.join(self.splits[split][:5])}", "images in it")
        times = Counter(found)
        for image in (image for image, count in times.items() if count > 1):
            self.notes.add("images that are listed twice, taken once", self._short(image))
        return list(times)

    def _place(self, said: str, near: str | None = None) -> str | None:
        """Where a path leads: from a folder near it, or from the bases; or the longest end of it that leads somewhere from these."""
        plain = said.strip().replace("\\", "/")
        bases = [*([] if near is None else [near]), *self.bases]
        parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
        for start, end in enumerate([plain, *("/".join(parts[i:]) for i in range(len(parts)))]):
            for base in bases:
                place = normpath(join(base, end))
                if self.where.is_file(place) or self.where.inside(place):
                    self.notes.add(ELSEWHERE, said, start > 0)
                    return place
        return None

    def _matching(self, pattern: str) -> list[str]:
        """Images that a pattern such as ``images/*.jpg`` names."""
        fixed = pattern[: min(pattern.index(sign) for sign in "*?[" if sign in pattern)].rpartition("/")[0]
        for base in self.bases:
            folder = normpath(join(base, fixed))
            if found := fnmatch.filter(self.where.below(folder), normpath(join(base, pattern))):
                return sorted(filter(may_be_image, found))
        return []

    # Labels --------------------------------------------------------------------------------------------------------------------------

    def things(self, images: Sequence[str]) -> tuple[list[list[Thing]], list[bool]]:
        """The objects of each image, and whether their boxes are in parts of it."""
        labels = [next(filter(self.where.is_file, _labels(image)), None) for image in images]
        if not any(labels):
            got = f"{len(images)} images without a file of labels, such as {self._short(images[0])}"
            raise InputError(self.argument, got, f"one for each image: {next(_labels(images[0]))}")
        for image, label in zip(images, labels, strict=True):
            self.notes.add("images without a file of labels, taken for images without an object", self._short(image), label is None)
        read = [([], True) if label is None else self._read(label) for label in labels]
        return [things for things, _ in read], [relative for _, relative in read]

    def _read(self, label: str) -> tuple[list[Thing], bool]:
        """The objects in a file of labels, and whether their boxes are in parts of the image."""
        things: list[Thing] = []
        beyond = 0
        for number, line in enumerate(self.where.content(label, self.argument).splitlines(), 1):
            words = line.replace(",", " ").split()
            if not words:
                continue
            try:
                box = self._box([float(word) for word in words[1:]], label)
                things.append(Thing(self._class(words[0]), box))
            except ValueError as error:
                got = f"{self._short(label)}, line {number}: {' '.join(line.split())[:80]} ({error})"
                expected = f"class (0 to {max(self.classes)}) x y width height, or a polygon, numbers in parts of the image"
                raise InputError(self.argument, got, expected) from None
            beyond += max(map(abs, box)) > _BEYOND
        pixels = 2 * beyond > len(things)
        self.notes.add("files of labels in pixels, not in parts of their image, read so", self._short(label), pixels)
        return things, not pixels

    def _short(self, path: str) -> str:
        """A path as it is said: from the set's own folder."""
        return relpath(path, self.bases[-1])

    def _class(self, said: str) -> str:
        """The class of a number, or of a name."""
        if said in self.classes.values():
            return said
        number = float(said)
        if number not in self.classes:
            raise ValueError(f"no class {said}")
        return self.classes[int(number)]

    def _box(self, numbers: list[float], label: str) -> Box:
        if len(numbers) >= 6 and len(numbers) % 2 == 0 and not self.keypoints:
            return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
        if len(numbers) not in (4, 5) and not (self.keypoints and len(numbers) > 5):
            raise ValueError(f"{len(numbers)} numbers")
        self.notes.add("confidences behind boxes, not read", self._short(label), len(numbers) == 5)
        x, y, width, height = numbers[:4]
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _labels(image: str) -> Iterator[str]:
    """Where an image's labels may be, the likeliest first."""
    folder, stem = dirname(image), basename(splitext(image)[0])
    parts = folder.split("/")
    for k in reversed([k for k, part in enumerate(parts) if part.lower() in ("images", "jpegimages")]):
        yield "/".join([*parts[:k], "labels", *parts[k + 1 :], f"{stem}.txt"])
    yield join(folder, f"{stem}.txt")
    above = folder
    for _ in range(_UP + 1):
        yield from (join(above, "labels", relpath(folder, above), f"{stem}.txt"), join(above, "labels", f"{stem}.txt"))
        above = dirname(above)
