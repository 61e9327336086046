"""Tables as they lie on disk, brought to cells: CSV with any delimiter, JSON lines or a JSON array, "path label" lines."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import InputError

USUAL = {  # names of columns in small letters, "_" for spaces and "-"; the likeliest first
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
TRIED = 50  # rows that a table's form is told by


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
    known = {*USUAL["image"], *USUAL["label"], *map(plain_name, asked)}
    first = [cell.strip() for cell in numbered[0][1]]
    named = any(plain_name(cell) in known for cell in first)
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
        counts = Counter(len(cells) for _, cells in parsed(delimiter, TRIED))
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
    return plain and not {*USUAL["image"], *USUAL["label"]} & {plain_name(key) for key in whole}


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


def plain_name(name: str) -> str:
    """A column's name as those of `USUAL` are written."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())
