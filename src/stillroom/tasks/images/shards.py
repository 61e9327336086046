"""WebDataset shards: tar files in which the files of a sample share a name, ``0001.jpg`` and ``0001.cls``. Read in place, in any order.

The library webdataset reads them as streams, one after the other: no sample can be asked for by its number, and a process has as many steps
as its shards happen to hold. So they are indexed here; a test holds the samples against the library's.
"""

from __future__ import annotations

import glob
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stillroom.errors import InputError
from stillroom.tasks.images.files import Tar
from stillroom.tasks.images.folders import EXTENSIONS, begins_as_image, passed_over, printable
from stillroom.tasks.images.labelled import Item, items_source, plain_label, split_of_path
from stillroom.tasks.images.sources import LabelledSource, is_number

_LABELS = ("cls", "cls.txt", "label", "class", "txt", "json")  # extensions that hold a label, the likeliest first
_KEYS = ("label", "cls", "class", "class_name", "category", "target")  # of a sample's JSON
_OTHERS = (*_LABELS, "text", "caption", "npy", "npz", "pth", "pkl", "pyd", "key", "xml", "id")  # that are no image


def open_webdataset(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    """The images and labels of ``webdataset:SHARDS``.

    SHARDS is a tar, a folder with tars at any depth, or a pattern: ``shards/{000..012}.tar``, ``{train,val}-*.tar``. A shard whose path has
    the word train, val or test in it is of that split. A sample's label is in its ``.cls``, ``.cls.txt``, ``.label``, ``.class``, ``.txt``
    or ``.json`` file (there under ``label``, ``cls``, ``class``, ``class_name``, ``category`` or ``target``), or what ``,label=`` names:
    an extension, or ``json.KEY``; its image is the first of its files that is one, or what ``,image=EXTENSION`` names.

    Args:
        path: SHARDS.
        options: ``image``, ``label``; ``val``: a share to hold out, or further shards.
        argument: what errors call the data.

    Raises:
        InputError: no such shards, one that is damaged or compressed, samples without images; see also `labelled.items_source`.
    """
    shards, options = open_shards(path, options, argument)
    store, samples = shards.store, shards.samples()
    items, without = [], []
    known = options.get("label") or _label_field(samples, store)
    for key, fields in samples.items():
        image = image_of(fields, options.get("image"), store)
        if image is None:
            without.append(key)
        else:
            label = _label(fields, known, store, argument)
            items.append(Item(image, plain_label(label), shards.split_of(image)))
    said = [f"{shards.said} of {len(items)} images; labels are in .{known}" if known else ""]
    said = [*filter(None, said), *passed_over(without, "without an image", "sample")]
    if not items:
        raise InputError(argument, path, f"samples with an image ({', '.join(EXTENSIONS[:4])}, ... or image=EXTENSION); there are none")
    if known is None:
        raise InputError(
            argument, f"{path} with the files {', '.join(next(iter(samples.values())))}", "a label file of each sample, or label=EXTENSION"
        )
    return items_source("webdataset", store, items, options, argument, where=path, notes=said)


@dataclass(frozen=True)
class Shards:
    """The tars of a set.

    Attributes:
        store: their files; each name begins with its shard's.
        splits: of each shard: ``train``, ``val``, ``test``, or "" for none.
    """

    store: Tar
    splits: list[str]

    @property
    def said(self) -> str:
        """How many there are."""
        return f"{len(self.splits)} shard{'' if len(self.splits) == 1 else 's'}"

    def samples(self) -> dict[str, dict[str, str]]:
        """The files of each sample, by their extensions: all behind the first dot of a file's name, in small letters.

        What is before that dot, with shard and folder, is the sample's key. The files of one need not lie side by side in their shard, as
        they do where streams are read, and what has no extension is a file of the extension "".
        """
        found: dict[str, dict[str, str]] = {}
        for name in self.store.members:
            folder, _, base = name.rpartition("/")
            stem, _, extension = base.partition(".")
            found.setdefault(f"{folder}/{stem}", {})[extension.lower()] = name
        return found

    def split_of(self, name: str) -> str:
        """That of the shard of a file."""
        return self.splits[self.store.members[name].archive]


def open_shards(path: str, options: Mapping[str, str], argument: str) -> tuple[Shards, dict[str, str]]:
    """The shards of a set, and the options that are left.

    Args:
        path: see `open_webdataset`.
        options: ``val``: further shards, which are taken here, or a share to hold out, which is left.
        argument: what errors call the data.

    Raises:
        InputError: no such shards, or one that is damaged or compressed.
    """
    left, val, places = dict(options), options.get("val"), _find(path, argument)
    train = len(places)
    if val is not None and not is_number(val):
        del left["val"]
        places += _find(val, argument)
    called = Counter(place.name for place in places)
    names = [place.name if called[place.name] == 1 else place.as_posix().lstrip("/") for place in places]
    if len(left) < len(options):
        splits = ["train"] * train + ["val"] * (len(places) - train)
    else:
        splits = [split_of_path(name) for name in names]
        splits = splits if len(set(splits)) > 1 else [""] * len(splits)
    return Shards(Tar(places, argument, [f"{name}/" for name in names]), splits), left


def _find(path: str, argument: str) -> list[Path]:
    """The tars that a path or pattern names, in its order."""
    found: list[Path] = []
    for one in _braces(path):
        place = Path(one).expanduser()
        if place.is_dir():
            found += sorted(file for file in place.rglob("*.tar") if not file.name.startswith("."))
        elif place.is_file():
            found.append(place)
        else:
            matches = sorted(Path(match) for match in glob.glob(str(place), recursive=True)) if glob.has_magic(one) else []
            if not matches:
                raise InputError(argument, one, "shards that exist: a tar, a folder of tars, or a pattern such as shards/{000..012}.tar")
            found += [match for match in matches if match.is_file()]
    if not found:
        raise InputError(argument, path, "tar files in it; there are none")
    return list(dict.fromkeys(found))


def _braces(pattern: str) -> list[str]:
    """``a{0..2}.tar`` and ``{a,b}.tar`` as a shell expands them; ``000`` before ``..`` keeps its zeros."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        first, last = numbers.groups()
        inner = [str(number).zfill(len(first) if first.startswith("0") else 0) for number in range(int(first), int(last) + 1)]
    else:
        inner = match[1].split(",")
    return list(itertools.chain.from_iterable(_braces(f"{pattern[: match.start()]}{one}{pattern[match.end() :]}") for one in inner))


def image_of(fields: dict[str, str], asked: str | None, store: Tar) -> str | None:
    """The file of a sample that is its image."""
    if asked is not None:
        return fields.get(asked.lower().lstrip("."))
    by_name = next((name for extension, name in fields.items() if extension in EXTENSIONS), None)
    return by_name or next(
        (name for extension, name in fields.items() if extension not in _OTHERS and begins_as_image(store.head(name, 32))), None
    )


def _label_field(samples: dict[str, dict[str, str]], store: Tar) -> str | None:
    """Where the labels are: the likeliest of the extensions that the first samples have."""
    shown = list(itertools.islice(samples.values(), 50))
    counts = Counter(extension for fields in shown for extension in fields)
    for extension in _LABELS:
        if counts[extension] and extension != "json":
            return extension
        if counts[extension] and (key := next(filter(None, (_json_key(fields, store) for fields in shown)), None)):
            return f"json.{key}"
    return None


def _json_key(fields: dict[str, str], store: Tar) -> str | None:
    try:
        content = json.loads(store.read(fields["json"]))
    except (KeyError, ValueError):
        return None
    return next((key for key in _KEYS if isinstance(content, dict) and isinstance(content.get(key), str | int)), None)


def _label(fields: dict[str, str], known: str | None, store: Tar, argument: str) -> str:
    """A sample's label as text; "" where it has none."""
    extension, _, key = (known or "").lstrip(".").partition(".") if (known or "").lstrip(".").startswith("json.") else (known or "", "", "")
    name = fields.get(extension.lower().lstrip("."))
    if name is None:
        return ""
    content = store.read(name).decode("utf-8", "replace").strip()
    if not key:
        return content
    try:
        value = json.loads(content)
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
    except ValueError:
        raise InputError(argument, printable(name), "JSON") from None
    return "" if value is None else str(value)
