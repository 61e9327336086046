"""Images among files: which of them are images, which folders are splits and which are classes."""

from __future__ import annotations

import glob
import logging
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning.fabric.utilities.rank_zero import rank_zero_only

from stillroom.errors import InputError
from stillroom.errors import printable as printable  # of whoever asks here
from stillroom.tasks.images.files import Folder, Store, open_store

logger = logging.getLogger(__name__)

EXTENSIONS = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "ppm", "pgm")  # of files that are images by their names alone
_TRAIN = ("train", "training")
_HELD_OUT = ("val", "valid", "validation", "test", "testing")
_MARKS = (  # what files of an image format begin with
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"qoif",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL \r\n\x87\n",
)  # fmt: skip
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_HEAD = 32  # bytes, enough for every mark


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
    if strange := [name for name in classes if name.encode("utf-8", "replace").decode() != name]:
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


def find_images(
    places: Sequence[str], told_apart: Callable[[Store, Iterable[str]], tuple[list[str], list[str]]] = told_apart
) -> FoundImages:
    """The files that places name.

    Args:
        places: files, which are taken whatever they are called and whether or not they exist; folders, of which every image below
            counts that is not hidden; and patterns such as ``photos/**/*.jpg``.
        told_apart: which files in folders are meant and which are not; by default images.
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
