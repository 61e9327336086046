"""Tables that say what happens when: any CSV of segments, Something-Something-v2's JSON files, EPIC-KITCHENS-100's CSV files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.errors import InputError, near
from stillroom.tasks.images.annotations import content_of
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.labelled import plain_label, split_named
from stillroom.tasks.images.sources import is_number
from stillroom.tasks.images.tables import Table, read_table

_VIDEO = ("video", "video_id", "clip", "id", "file", "path", "name")  # usual names of columns
_START = ("start_frame", "start", "begin", "start_timestamp", "start_s")
_STOP = ("stop_frame", "end_frame", "stop", "end", "stop_timestamp", "stop_s")
_LENGTH = ("length", "frames", "num_frames")
_SPLIT = ("split", "set", "partition", "subset")
_KNOWN = {*_VIDEO, *_START, *_STOP, *_LENGTH, *_SPLIT, "narration", "narration_id", "narration_timestamp", "participant_id"}
_KNOWN |= {"all_nouns", "all_noun_classes"}


@dataclass(frozen=True)
class Row:
    """A labelled piece of a video.

    Args:
        video: its name, without an ending; empty where there is one alone.
        start, stop: numbers of its first and last frame, for frames in files; None for all of them.
        labels: class numbers, by head.
        split: train, val, or nothing.
        seconds: from when to when, for videos; None where that is not known.
    """

    video: str
    start: int | None
    stop: int | None
    labels: tuple[int, ...]
    split: str
    seconds: tuple[float, float] | None = None

    @property
    def told(self) -> str:
        """For people."""
        if self.start is None and self.seconds is None:
            return self.video
        when = f"{self.start}-{self.stop}" if self.start is not None else "{:.2f}-{:.2f} s".format(*self.seconds or (0, 0))
        return f"{self.video} {when}".strip()


@dataclass(frozen=True)
class Segments:
    """What a table says.

    Args:
        rows: of it.
        heads: names of classes by head.
        said: what is to be told of how it was read.
    """

    rows: list[Row]
    heads: dict[str, tuple[str, ...]]
    said: list[str]


def read_segments(name: str, content: bytes, heads: Sequence[str] | None, argument: str) -> Segments:
    """Any table with a row for each clip.

    Columns: of a video's name (left out where there is one video); of the first frame and the last one, or how many they are, as numbers or
    as times (``0:12.5``); of labels: those of `heads`, by default every other one with words in it. A column HEAD_class beside one of
    HEAD holds numbers, which then order the classes.

    Raises:
        InputError: a column is missing, or a cell cannot be read.
    """
    table = read_table(name, argument, asked=[*_KNOWN, *(heads or ())], content=content)
    columns = {column.strip().lower(): column for column in reversed(table.head)}
    video, start, stop, length, split = (_first(columns, usual) for usual in (_VIDEO, _START, _STOP, _LENGTH, _SPLIT))
    if heads is None:
        taken = {video, start, stop, length, split}
        heads = [column for column in table.head if column not in taken and column.lower() not in _KNOWN and _words(table, column)]
    if len(set(heads)) < len(heads):
        raise InputError("heads", "+".join(heads), "each column once")
    for head in heads:
        if head not in table.head:
            raise InputError("heads", head, f"a column of {name}: {near(head, table.head)}")
    if not heads:
        raise InputError(argument, f"{name} with the columns {', '.join(table.head)}", "a column of labels, heads=COLUMN+COLUMN")
    bare = [number + 1 for number in range(len(table.rows)) if not all(table.column(head)[number] for head in heads)]
    if bare:
        raise InputError(argument, f"{name} with {len(bare)} rows without a label, the first row {bare[0]}", "a label in each row")
    classes, labels = _labels(table, heads)
    rows = []
    for number, cells in enumerate(table.rows):
        cell = dict(zip(table.head, cells, strict=True))
        where = f"{name}, row {number + 1}"
        first, last, seconds = _span(cell, start, stop, length, where, argument)
        part = _split(cell[split], where, argument) if split else ""
        rows.append(Row(_stem(cell[video]) if video else "", first, last, labels[number], part, seconds))
    said = [*table.said, f"labels are in {' and '.join(heads)}"]
    return Segments(rows, classes, said)


def _first(columns: Mapping[str, str], usual: Sequence[str]) -> str | None:
    return next((columns[name] for name in usual if name in columns), None)


def _words(table: Table, column: str) -> bool:
    """Whether a column holds words and no numbers."""
    return any(cell and not is_number(cell) for cell in table.column(column))


def _labels(table: Table, heads: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[tuple[int, ...]]]:
    """The classes of each head, and each row's class numbers."""
    classes, columns = {}, []
    for head in heads:
        words = table.column(head)
        keys = table.column(f"{head}_class") if f"{head}_class" in table.head else words
        numbers = all(key.isdecimal() for key in keys)
        order = sorted(set(keys), key=lambda key: (int(key), "") if numbers else (0, key))
        names = {key: Counter(word for word, other in zip(words, keys, strict=True) if other == key).most_common(1)[0][0] for key in order}
        classes[head] = tuple(names[key] for key in order)
        columns.append([order.index(key) for key in keys])
    return classes, list(zip(*columns, strict=True))


def _span(
    cell: Mapping[str, str], start: str | None, stop: str | None, length: str | None, where: str, argument: str
) -> tuple[int | None, int | None, tuple[float, float] | None]:
    """First and last frame, or seconds."""
    if start is None:
        return None, None, None
    if stop is None and length is None:
        raise InputError(argument, f"{where} with {start} alone", "a column of the last frame (stop_frame) or of their number (length)")
    begin, end = cell[start], cell[stop] if stop else ""
    if "frame" in start.lower():  # numbers, which programs that know of holes write as 12.0
        begin, end = plain_label(begin), plain_label(end)
    if ":" in begin or "." in begin or start.lower().endswith(("_s", "timestamp")):
        return None, None, _times(begin, end, where, argument)
    count = plain_label(cell[length]) if not stop and length else ""
    if not begin.isdecimal() or not (count or end).isdecimal():
        raise InputError(argument, f"{where}: {begin} to {end}", "numbers of frames, or times such as 0:12.5")
    last = int(begin) + int(count) - 1 if count else int(end)
    if last < int(begin):
        raise InputError(argument, f"{where}: frames {begin} to {last}", "a last frame that is not before the first")
    return int(begin), last, None


def _times(begin: str, end: str, where: str, argument: str) -> tuple[float, float]:
    """Seconds from when to when."""
    found = seconds_of(begin, where, argument), seconds_of(end, where, argument)
    if not 0 <= found[0] < found[1] < float("inf"):
        raise InputError(argument, f"{where}: {begin} to {end}", "an end that is later than the beginning")
    return found


def seconds_of(text: str, where: str, argument: str) -> float:
    """Seconds of a time such as ``00:01:12.50``, ``1:12`` or ``72.5``.

    Raises:
        InputError: it is none.
    """
    try:
        found = 0.0
        for part in text.split(":"):
            found = 60 * found + float(part)
        return found
    except ValueError:
        raise InputError(argument, f"{where}: {text}", "a time such as 00:01:12.50") from None


def _split(cell: str, where: str, argument: str) -> str:
    found = split_named(cell) if cell else ""
    if found is None:
        raise InputError(argument, f"{where}: the split {cell}", "train or val")
    return found


def _stem(name: str) -> str:
    head, dot, ending = name.rpartition(".")
    return head if dot and ending.isalnum() and not ending.isdecimal() and len(ending) <= 4 else name


# Something-Something-v2 -----------------------------------------------------------------------------------------------------------------


def read_something(store: Store, path: str, argument: str) -> Segments:
    """The annotations ``*train.json``, ``*validation.json`` and ``*labels.json`` of Something-Something-v2 at the top of a folder or in
    ``labels/``: a list with ``id`` and ``template`` of each video, and class numbers by template.

    Raises:
        InputError: one is missing or cannot be read.
    """
    files = sorted(store.listing()[0]) if not hasattr(store, "root") else _tops(store)
    train, val, labels = (_named(files, ending, path, argument) for ending in ("train.json", "validation.json", "labels.json"))
    told = _json(store, labels, argument)
    if not isinstance(told, dict) or not all(str(number).isdecimal() for number in told.values()):
        raise InputError(argument, labels, "a JSON object with the number of each template")
    numbers = {_template(text): int(number) for text, number in told.items()}
    classes = sorted(numbers, key=lambda text: numbers[text])
    places = {text: number for number, text in enumerate(classes)}
    rows = []
    for split, file in (("train", train), ("val", val)):
        for one in _json(store, file, argument):
            try:
                rows.append(Row(str(one["id"]), None, None, (places[_template(one["template"])],), split))
            except (KeyError, TypeError) as error:
                raise InputError(argument, f"{file}: {one} ({error})", f"an id and a template of {labels}") from None
    return Segments(rows, {"action": tuple(classes)}, [])


def _template(text: str) -> str:
    """The labels' file writes "Holding something" where annotations write "Holding [something]"."""
    return text.replace("[", "").replace("]", "")


def _tops(store: Any) -> list[str]:
    """Files at the top and in ``labels/``, without a walk through hundreds of thousands of videos."""
    found = [*store.root.glob("*"), *store.root.glob("labels/*"), *store.root.glob("annotations/*")]
    return sorted(one.relative_to(store.root).as_posix() for one in found if one.is_file())


def _named(files: Sequence[str], ending: str, path: str, argument: str) -> str:
    found = [name for name in files if name.lower().endswith(ending)]
    if not found:
        raise InputError(argument, f"{path} without a file *{ending}", "the annotations of the set beside its videos")
    return found[0]


def _json(store: Store, name: str, argument: str) -> Any:
    try:
        return json.loads(content_of(store, name, argument))
    except ValueError as error:
        raise InputError(argument, f"{name} ({error})", "JSON") from None


# EPIC-KITCHENS-100 ----------------------------------------------------------------------------------------------------------------------


def read_epic(store: Store, path: str, argument: str) -> Segments:
    """``EPIC_100_train.csv`` and ``EPIC_100_validation.csv``, with ``EPIC_100_verb_classes.csv`` and ``EPIC_100_noun_classes.csv`` where
    they are there. Frame numbers belong to the set's own frames; videos are cut by the times, for originals have other frame rates.

    Raises:
        InputError: one is missing or cannot be read.
    """
    files = sorted(store.listing()[0]) if not hasattr(store, "root") else _tops(store)
    tables = {
        split: _named(files, f"{ending}.csv", path, argument) for split, ending in (("train", "100_train"), ("val", "100_validation"))
    }
    read = {
        split: read_table(file, argument, asked=["video_id"], content=content_of(store, file, argument)) for split, file in tables.items()
    }
    heads, order = {}, []
    for head in ("verb", "noun"):
        listed = next((name for name in files if name.endswith(f"{head}_classes.csv")), None)
        pairs = [
            pair for table in read.values() for pair in zip(table.column(f"{head}_class"), table.column(head), strict=True)
        ]  # the first word seen for a class
        if listed is not None:
            table = read_table(listed, argument, asked=["id", "key"], content=content_of(store, listed, argument))
            pairs = list(zip(table.column("id"), table.column("key"), strict=True))
        names = dict(reversed(pairs))
        if strange := [number for number in names if not number.isdecimal()]:
            raise InputError(
                argument, f"the {head} class {strange[0]!r} of {names[strange[0]]}", "numbers of classes, as in EPIC-KITCHENS-100"
            )
        numbers = sorted(map(int, names))
        heads[head] = tuple(names[str(number)] for number in numbers)
        order.append({str(number): place for place, number in enumerate(numbers)})
    rows = []
    for split, table in read.items():
        for number, cells in enumerate(table.rows):
            cell = dict(zip(table.head, cells, strict=True))
            where = f"{tables[split]}, row {number + 1}"
            try:
                labels = order[0][cell["verb_class"]], order[1][cell["noun_class"]]
                first, last = int(cell["start_frame"]), int(cell["stop_frame"])
                times = _times(cell["start_timestamp"], cell["stop_timestamp"], where, argument)
                if not 0 <= first <= last:
                    raise InputError(argument, f"{where}: frames {first} to {last}", "a last frame that is not before the first")
                rows.append(Row(cell["video_id"], first, last, labels, split, times))
            except (KeyError, ValueError) as error:
                raise InputError(argument, f"{where} ({error})", "the columns and classes of EPIC-KITCHENS-100") from None
    return Segments(rows, heads, [])
