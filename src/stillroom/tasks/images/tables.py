"""Labels by a table: CSV with any delimiter, JSON lines or a JSON array, each row an image and its label."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from stillroom.errors import InputError
from stillroom.tasks.images.folders import (
    Folder,
    Store,
    find_splits,
    list_classes,
    list_files,
    open_store,
    passed_over,
    printable,
    told_apart,
)
from stillroom.tasks.images.labelled import SPLITS, Item, items_source, plain_label, split_named
from stillroom.tasks.images.sources import LabelledSource, is_number

COLUMNS = ("image", "label", "split")  # options that name a column
_USUAL = {  # names of columns in small letters, "_" for spaces and "-"; the likeliest first
    "image": (
        "image", "image_path", "img_path", "imagepath", "path", "filepath", "file_path", "file_name", "filename", "file", "image_name",
        "imagename", "image_file", "img", "images", "paths", "image_id", "img_id", "imageid", "id", "name", "key",
    ),
    "label": (
        "label", "labels", "class", "class_name", "classname", "label_name", "category", "category_name", "target", "targets", "tag",
        "species", "y", "ground_truth", "gt", "class_id", "label_id", "category_id", "classes", "cls",
    ),
    "split": ("split", "set", "subset", "partition", "fold", "phase", "usage", "is_valid", "is_val", "is_test"),
}  # fmt: skip
_DELIMITERS = (",", "\t", ";", "|")
_TRIED = 50  # rows that a table's form is told by


def open_csv(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    """The images and labels of ``csv:FILE``.

    The form is told by the content: CSV with a comma, tab, semicolon or bar, "path label" lines, JSON lines, a JSON array of objects or an
    object of labels by files. Columns are looked for under their usual names, or named: ``,image=path,label=name,split=split``; those of a
    table without a head are numbered from 1. Files are relative to the table's folder, or to ``,root=FOLDER`` (or zip, or tar).

    Args:
        path: of the table.
        options: ``image``, ``label``, ``split``: columns; ``root``; ``val``: a share to hold out, or another table.
        argument: what errors call the data.

    Raises:
        InputError: it cannot be read, lacks a column, or names files that are missing; see also `labelled.items_source`.
    """
    root = options.get("root")
    if not Path(path).expanduser().is_file():
        raise InputError(argument, f"csv:{path}", "a table that exists")
    store = open_store(str(Path(path).expanduser().parent) if root is None else root, argument)
    said: list[str] = []
    val = options.get("val")
    if val is None or is_number(val):
        items, sizes = _items(path, store, options, argument, said)
    else:
        options = {name: value for name, value in options.items() if name not in ("val", "split")}
        items, sizes = _items(path, store, options, argument, said, split="train")
        others, more = _items(val, store, options, argument, said, split="val")
        items, sizes = [*items, *others], {**sizes, **more}
    if root is not None:
        said += _not_named(store, told_apart(store, store.listing()[0])[0], items)
    return items_source("csv", store, items, options, argument, where=path, sizes=sizes, notes=said)


def open_relabelled(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    """``imagefolder:PATH,labels=FILE``: images with the labels that a table gives them.

    Of a folder with train and val (or test) folders of classes, the training images are those that the table names; validation images that
    it does not name have their folder's label. Any other folder is what the table says alone.

    Raises:
        InputError: as `open_csv`.
    """
    store, files, folders = list_files(path, argument)
    images, others = told_apart(store, files)
    train, val = find_splits(images, folders)
    said = passed_over(others)
    items, sizes = _items(options["labels"], store, options, argument, said)
    if val is None:
        said += _not_named(store, images, items)
        return items_source("imagefolder", store, items, options, argument, where=options["labels"], sizes=sizes, notes=said)
    classes, train_names, _ = list_classes(images, folders, train, path, argument)
    _, val_names, val_labels = list_classes(images, folders, val, path, argument, known=classes)
    named = {item.name for item in items}
    training, listed = set(train_names), {*train_names, *val_names}
    items = [replace(item, split="train" if item.name in training else "val") for item in items if item.name in listed]
    items += [Item(name, classes[k], "val") for name, k in zip(val_names, val_labels.tolist(), strict=True) if name not in named]
    said += passed_over([name for name in train_names if name not in named], f"that {options['labels']} does not name", "training image")
    if not any(item.label in classes for item in items if item.split == "train"):
        items = [replace(item, label=_class_of_number(item.label, classes) if item.name in named else item.label) for item in items]
        said.append(f"labels that are numbers are places in the order of the folders: 0 is {classes[0]}")
    strange = Counter(item.label for item in items if item.label and item.label not in classes)
    if strange:
        got = f"{options['labels']} with the label {strange.most_common(1)[0][0]}"
        raise InputError(argument, got, f"names of the folders: {', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}")
    wrong = sum(item.split == "train" and item.name.split("/")[train.count("/") + bool(train)] != item.label for item in items)
    said.append(f"{options['labels']} gives {wrong} training images another label than their folder")
    return items_source("imagefolder", store, items, {}, argument, where=path, classes=classes, sizes=files, notes=said)


def _class_of_number(label: str, classes: Sequence[str]) -> str:
    return classes[int(label)] if label.isdecimal() and int(label) < len(classes) else label


def _not_named(store: Store, images: Sequence[str], items: Sequence[Item]) -> list[str]:
    named = {item.name for item in items}
    return passed_over([name for name in images if name not in named], "that the table does not name", "image")


# The rows of a table --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        head: names of the columns; their numbers from 1, where it has no head.
        named: whether it has one.
        rows: cells, as many in each as there are columns.
        said: what is to be said of how it was read.
    """

    head: list[str]
    named: bool
    rows: list[list[str]]
    said: list[str]

    def column(self, name: str) -> list[str]:
        """The cells of a column."""
        place = self.head.index(name)
        return [row[place] for row in self.rows]


def read_table(path: str, argument: str, *, asked: Iterable[str] = (), content: bytes | None = None) -> Table:
    """A table of any of the forms that `open_csv` lists.

    Args:
        path: of the file; it may be packed by gzip.
        argument: what errors call it.
        asked: names of columns: a first row that has one of them is a head.
        content: of the file, where it lies in an archive.

    Raises:
        InputError: it cannot be read, is empty, or a row has another number of cells than the head.
    """
    try:
        content = Path(path).expanduser().read_bytes() if content is None else content
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError) as error:
        raise InputError(argument, path, f"a table that can be read ({getattr(error, 'strerror', None) or error})") from None
    text, said = _text(content)
    if "\0" in text:
        raise InputError(argument, path, "a table: CSV, JSON lines or a JSON array")
    found = _json_rows(text, path, argument) if text.lstrip()[:1] in ("{", "[") else None
    if found is not None:
        head = list(dict.fromkeys(key for row in found for key in row))
        return Table(head, True, [[row.get(key, "") for key in head] for row in found], said)
    numbered = _csv_rows(text, path, argument)
    if not numbered:
        raise InputError(argument, path, "a row for each image; there is none")
    known = {*_USUAL["image"], *_USUAL["label"], *map(_plain, asked)}
    first = [cell.strip() for cell in numbered[0][1]]
    named = any(_plain(cell) in known for cell in first)
    head = first if named else [str(number + 1) for number in range(len(first))]
    if len(set(head)) < len(head):
        raise InputError(argument, f"{path} with the column {Counter(head).most_common(1)[0][0]} twice", "a name of its own for each")
    rows = []
    for line, cells in numbered[named:]:
        if len(cells) > len(head) and any(cell.strip() for cell in cells[len(head) :]):
            got = f"{path}, line {line}: {len(cells)} cells where the first line has {len(head)}"
            raise InputError(argument, got, "as many in each (a cell with the delimiter in it in quotes)")
        rows.append([cell.strip() for cell in cells[: len(head)]] + [""] * (len(head) - len(cells)))
    if not rows:
        raise InputError(argument, path, "a row for each image below the head; there is none")
    return Table(head, named, rows, said)


def _text(content: bytes) -> tuple[str, list[str]]:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace"), []
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace"), ["the table is not in UTF-8: read as Windows-1252"]


def _csv_rows(text: str, path: str, argument: str) -> list[tuple[int, list[str]]]:
    """Rows that are not empty, with the numbers of their last lines."""

    def parsed(delimiter: str, most: int | None = None) -> list[tuple[int, list[str]]]:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        found: list[tuple[int, list[str]]] = []
        for cells in reader:
            if any(cell.strip() for cell in cells):
                found.append((reader.line_num, cells))
                if most is not None and len(found) == most:
                    break
        return found

    def fit(delimiter: str) -> tuple[float, int]:
        """How many of the first rows agree on a number of cells above one, and that number."""
        counts = Counter(len(cells) for _, cells in parsed(delimiter, _TRIED))
        (width, times) = counts.most_common(1)[0] if counts else (1, 0)
        return (times / sum(counts.values()), width) if width > 1 else (0.0, 1)

    try:
        best = max(_DELIMITERS, key=fit)
        if fit(best)[1] > 1:
            return parsed(best)
    except csv.Error as error:
        raise InputError(argument, path, f"a CSV file that can be read ({error})") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    return [(number, re.split(r"\s+(?=\S+$)", line)) for number, line in lines]  # "path label", as in lists of Caffe


def _json_rows(text: str, path: str, argument: str) -> list[dict[str, str]]:
    """Objects of a JSON array, of JSON lines, or of one object that gives files their labels; nested ones under keys with dots."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        whole = list(_json_lines(text, path, argument))
    if isinstance(whole, dict):
        whole = [{"image": name, "label": label} for name, label in whole.items()] if _gives_labels(whole) else [whole]
    if not whole or not all(isinstance(row, dict) for row in whole):
        raise InputError(argument, path, "JSON objects, one for each image")
    return [dict(_flat(row)) for row in whole]


def _gives_labels(whole: Mapping[str, Any]) -> bool:
    """Whether an object gives files their labels: `{"a.jpg": "cat"}`, and not one row."""
    plain = all(isinstance(label, str | int) for label in whole.values())
    return plain and not {*_USUAL["image"], *_USUAL["label"]} & {_plain(key) for key in whole}


def _json_lines(text: str, path: str, argument: str) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(argument, f"{path}, line {number}", f"a JSON object ({error})") from None


def _flat(row: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in row.items():
        if isinstance(value, list) and len(value) == 1:
            (value,) = value
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", "" if value is None else value.strip() if isinstance(value, str) else json.dumps(value)


# Which column is what -------------------------------------------------------------------------------------------------------------------


def _items(
    path: str, store: Store, options: Mapping[str, str], argument: str, said: list[str], *, split: str | None = None
) -> tuple[list[Item], dict[str, int]]:
    """The images that a table names, and the bytes of each.

    Args:
        split: that all are of; by default what the table or the folders say.
        said: what is to be said is put there.
    """
    asked = {what: options[what] for what in COLUMNS if what in options}
    table = read_table(path, argument, asked=asked.values())
    columns = {what: named_column(table, what, name, path, argument) for what, name in asked.items()}
    table, image = image_column(table, columns.get("image"), store, path, argument)
    names, sizes = locate(table.column(image), store, path, argument)
    left = [name for name in table.head if name not in (image, *columns.values())]
    part = columns.get("split") or (None if split else _usual(table, "split", left))
    splits = [split or ""] * len(names) if part is None else _split_cells(table.column(part), part, "split" in asked, path, argument)
    if part is not None and not any(splits):
        part = None
    left = [name for name in left if name != part]
    label = columns.get("label") or _usual(table, "label", left) or (left[0] if len(left) == 1 else None)
    labels = table.column(label) if label is not None else _one_of_many(table, left, path, argument)
    if not any(splits):
        splits = _splits_by_folder(names)
        said += ["splits are told by the folders of the images"] if any(splits) else []
    of = f" of {path}" if split == "val" else ""
    kinds = {"images": image, "labels": label or f"{left[0]} to {left[-1]}", "splits": part}
    kind = "column" if table.named else "column no."
    said += [*table.said, "; ".join(f"{what} are in {kind} {name}" for what, name in kinds.items() if name is not None) + of]
    return [Item(*row) for row in zip(names, map(plain_label, labels), splits, strict=True)], sizes


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def named_column(table: Table, what: str, name: str, path: str, argument: str) -> str:
    """The column of that name, whatever its capitals."""
    found = [column for column in table.head if column == name] or [column for column in table.head if _plain(column) == _plain(name)]
    if not found:
        raise InputError(argument, f"{what}={name}", f"a column of {path}: {', '.join(table.head)}")
    return found[0]


def _usual(table: Table, what: str, left: Sequence[str]) -> str | None:
    by_name = {_plain(column): column for column in reversed(left)}
    return next((by_name[name] for name in _USUAL[what] if name in by_name), None) if table.named else None


def image_column(table: Table, column: str | None, store: Store, path: str, argument: str) -> tuple[Table, str]:
    """The column with the files; of a table whose first row turns out to be a head, too."""
    if column is None:
        column = _usual(table, "image", table.head)
    if column is None:
        shown = table.rows[1 : 1 + _TRIED] or table.rows
        finder = _Finder(store)
        column = next((name for i, name in enumerate(table.head) if all(finder.find(row[i]) for row in shown)), None)
        if column is None:
            got = f"{path} with the columns {', '.join(table.head)}" if table.named else f"{path}, which begins {','.join(table.rows[0])}"
            raise InputError(argument, got, "a column of files that are there, or image=COLUMN")
        if not table.named and len(table.rows) > 1 and not finder.find(table.rows[0][table.head.index(column)]):
            place, head = table.head.index(column), table.rows[0]
            return replace(table, head=head, named=True, rows=table.rows[1:]), head[place]
    return table, column


def _split_cells(cells: Sequence[str], column: str, asked: bool, path: str, argument: str) -> list[str]:
    """The split of each row; none where nobody asked for the column and it holds something else."""
    words: dict[str, str | None] = {cell: split_named(cell) for cell in dict.fromkeys(cells) if cell}
    flags = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}
    if _plain(column).startswith("is_") and all(cell.lower() in flags for cell in words):
        words = {cell: ("test" if "test" in column.lower() else "val") if flags[cell.lower()] else "train" for cell in words}
    if None in words.values():
        if asked:
            strange = next(cell for cell, split in words.items() if split is None)
            raise InputError(argument, f"{path} with the split {strange}", f"one of {', '.join(SPLITS)}")
        return [""] * len(cells)
    return [words.get(cell) or "" for cell in cells]


def _splits_by_folder(names: Sequence[str]) -> list[str]:
    """What the first folder of each path says, or the second; nothing unless they say it of every image, and there are two splits."""
    for depth in (0, 1):
        parts = [name.split("/") for name in names]
        found = [split_named(part[depth]) if len(part) > depth + 1 else None for part in parts]
        if None not in found and len(set(found)) > 1:
            return [split or "" for split in found]
    return [""] * len(names)


def _one_of_many(table: Table, left: Sequence[str], path: str, argument: str) -> list[str]:
    """Labels of a table with a column for each class, of which one holds a 1 and all others 0."""
    places = [table.head.index(name) for name in left]
    labels = []
    for row in table.rows:
        ones = [name for name, place in zip(left, places, strict=True) if row[place] in ("1", "1.0")]
        if len(ones) != 1 or any(row[place] not in ("0", "0.0", "1", "1.0") for place in places):
            raise InputError(argument, f"{path} with the columns {', '.join(table.head)}", "label=COLUMN, one of them")
        labels += ones
    return labels


# Files --------------------------------------------------------------------------------------------------------------------------------


def locate(names: Sequence[str], store: Store, source: str, argument: str) -> tuple[list[str], dict[str, int]]:
    """The names of files in their store, and their bytes.

    A name may be absolute, or begin with folders above the store or lack those in it; have "\\" for "/" or be encoded as in a URL; and
    leave out its extension.

    Raises:
        InputError: files that are missing, or two names of one file.
    """
    finder = _Finder(store)
    found = {name: finder.find(name) for name in dict.fromkeys(names)}
    if missing := [name for name, file in found.items() if file is None]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        got = f"{source} with files that are missing: {', '.join(printable(name) or 'an empty name' for name in missing[:5])}{more}"
        raise InputError(argument, got, "files that are there (root=FOLDER says where)")
    files = {name: file for name, file in found.items() if file is not None}
    if len(set(files.values())) < len(files):
        twice = Counter(files.values()).most_common(1)[0][0]
        named = [name for name, file in files.items() if file == twice]
        raise InputError(argument, f"{source} with {named[0]} and {named[1]}, which are one file ({twice})", "a file for each name")
    return [files[name] for name in names], {file: finder.sizes[file] for file in files.values()}


class _Finder:
    """Finds files by names as tables write them; the store is listed when a name is not there as it stands."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sizes: dict[str, int] = {}
        self._whole: dict[str, str | None] = {}
        self._tails: dict[str, str | None] = {}

    def find(self, name: str) -> str | None:
        """The name in the store."""
        plain = name.strip().replace("\\", "/").removeprefix("./")
        if not plain or plain.endswith("/"):
            return None
        if plain.startswith("/") and isinstance(self.store, Folder) and Path(plain).is_file():
            root = self.store.root.resolve()
            plain = Path(plain).relative_to(root).as_posix() if Path(plain).is_relative_to(root) else plain
            self.sizes[plain] = self.store.size(plain) or 0
        elif not plain.startswith("/") and plain not in self.sizes and (size := self.store.size(plain)) is not None:
            self.sizes[plain] = size
        return plain if plain in self.sizes else self._searched(plain) or self._searched(unquote(plain))

    def _searched(self, name: str) -> str | None:
        """A file that is the only one to end as the name, or as a part of it that has a folder; whatever the capitals."""
        if not self._whole:
            with contextlib.suppress(OSError, zipfile.BadZipFile):
                self.sizes |= self.store.listing()[0]
            self._list()
        parts = _normal(name).split("/")
        for first in range(len(parts)):
            tail = "/".join(parts[first:])
            if tail in self._whole:
                return self._whole[tail]
            loose = "/" not in tail and first and not name.startswith("/")  # another folder's file may have that name
            if tail in self._tails and not loose:
                return self._tails[tail]
        return None

    def _list(self) -> None:
        """Every file by its path and all ends of it, with and without its extension; None where several end so."""
        for file in self.sizes:
            plain = _normal(file)
            for path in {plain, plain.rpartition(".")[0] if "." in plain.rpartition("/")[2] else plain}:
                self._whole[path] = None if self._whole.get(path, file) != file else file
                parts = path.split("/")
                for first in range(1, len(parts)):
                    tail = "/".join(parts[first:])
                    self._tails[tail] = None if self._tails.get(tail, file) != file else file


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower()
