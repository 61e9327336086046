"""Labels by a table, each row an image and its label: ``csv:FILE`` and ``imagefolder:PATH,labels=FILE``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stillroom.errors import InputError
from stillroom.tasks.images.files import Store, open_store
from stillroom.tasks.images.folders import find_splits, list_classes, list_files, passed_over, told_apart
from stillroom.tasks.images.labelled import SPLITS, Item, items_source, plain_label, split_named
from stillroom.tasks.images.locating import Finder, locate
from stillroom.tasks.images.sources import LabelledSource, is_number
from stillroom.tasks.images.tables import TRIED, USUAL, Table, plain_name, read_table

COLUMNS = ("image", "label", "split")  # options that name a column


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
    """``imagefolder:PATH,labels=FILE``: images with the labels that a table gives them; ``labels=FILE:COLUMN`` names their column, as
    ``label=COLUMN`` does.

    Of a folder with train and val (or test) folders of classes, the training images are those that the table names; validation images that
    it does not name have their folder's label. Any other folder is what the table says alone.

    Raises:
        InputError: as `open_csv`, or the column is named in both ways.
    """
    options = _with_column(options, argument)
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


def _with_column(options: dict[str, str], argument: str) -> dict[str, str]:
    """The options, with the column that stands behind the table's name as one of its own."""
    table, colon, column = options["labels"].rpartition(":")
    if not colon or Path(options["labels"]).expanduser().exists() or not Path(table).expanduser().exists():
        return options
    if "label" in options:
        raise InputError(argument, f"labels={options['labels']},label={options['label']}", "the column named once")
    return {**options, "labels": table, "label": column}


def _class_of_number(label: str, classes: Sequence[str]) -> str:
    return classes[int(label)] if label.isdecimal() and int(label) < len(classes) else label


def _not_named(store: Store, images: Sequence[str], items: Sequence[Item]) -> list[str]:
    named = {item.name for item in items}
    return passed_over([name for name in images if name not in named], "that the table does not name", "image")


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


def named_column(table: Table, what: str, name: str, path: str, argument: str) -> str:
    """The column of that name, whatever its capitals."""
    found = [column for column in table.head if column == name] or [
        column for column in table.head if plain_name(column) == plain_name(name)
    ]
    if not found:
        raise InputError(argument, f"{what}={name}", f"a column of {path}: {', '.join(table.head)}")
    return found[0]


def _usual(table: Table, what: str, left: Sequence[str]) -> str | None:
    by_name = {plain_name(column): column for column in reversed(left)}
    return next((by_name[name] for name in USUAL[what] if name in by_name), None) if table.named else None


def image_column(table: Table, column: str | None, store: Store, path: str, argument: str) -> tuple[Table, str]:
    """The column with the files; of a table whose first row turns out to be a head, too."""
    if column is None:
        column = _usual(table, "image", table.head)
    if column is None:
        shown = table.rows[1 : 1 + TRIED] or table.rows
        finder = Finder(store)
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
    if plain_name(column).startswith("is_") and all(cell.lower() in flags for cell in words):
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
