"""Where clips come from: ``actions`` (drawn), ``clips:FOLDER``, ``something:ROOT``, ``epic:ROOT``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from stillroom.errors import InputError
from stillroom.tasks.images.annotations import content_of
from stillroom.tasks.images.files import Folder, open_store
from stillroom.tasks.images.folders import counted, find_splits
from stillroom.tasks.images.sources import IMAGENET_STATISTICS, Kind, Source, held_out_samples, held_out_share, open_spec, whole_numbers
from stillroom.tasks.images.stores import hold_out
from stillroom.tasks.video import actions
from stillroom.tasks.video.finding import Finder, is_frame, is_video
from stillroom.tasks.video.segments import Row, read_epic, read_segments, read_something
from stillroom.tasks.video.tracks import MODALITIES, Clip, Clips

_HEAD = re.compile(r"[A-Za-z]\w*")
_TAKEN = {"keys", "values", "items", "pop", "clear", "update", "forward", "training", "type"}  # what modules call other things
_BLOCKS = 10  # stretches of time, at most, that are held out of each video whose clips overlap; of every ten clips one at most
_FRAMES = 16


@dataclass(frozen=True, kw_only=True)
class VideoSource(Source):
    """Clips with labels; `train` and `val` are `tracks.Clips`.

    Attributes:
        heads: names of the classes, by head.
        frames: of a clip that networks read, by default.
        sampling: uniform or dense, by default.
        frame_stride: of dense sampling.
        image_size: of frames in pixels, by default.
        augment: name of the default augmentation.
        drawn: whether nothing of it is real.
    """

    heads: Mapping[str, tuple[str, ...]]
    frames: int = _FRAMES
    sampling: str = "uniform"
    frame_stride: int = 2
    image_size: int = 112
    augment: str = "jitter"
    drawn: bool = False

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that some training clip has."""
        return tuple(name for name in MODALITIES if self.train.having(name).any())


def open_source(spec: str) -> VideoSource:
    """Find and list the clips that a specification names; see `VideoData`.

    Raises:
        InputError: anything about it that cannot be used.
    """
    return open_spec(spec, KINDS, "data")


def _source(
    name: str, heads: Mapping[str, Sequence[str]], train: Clips, val: Clips, content: str, said: Sequence[str], **options: object
) -> VideoSource:
    """A source of these clips.

    Raises:
        InputError: a split without clips, a head that cannot be called so, or one of a single class.
    """
    for split, clips in (("training", train), ("validation", val)):
        if not len(clips):
            raise InputError("data", f"{name} without a {split} clip ({'; '.join(said)})" if said else f"no {split} clip", "at least one")
    for head, classes in heads.items():
        if not _HEAD.fullmatch(head) or head in _TAKEN:
            raise InputError("heads", head, "a name of letters, digits and underscores that begins with a letter, such as verb")
        if len(classes) < 2:
            raise InputError("data", f"the head {head} with the class {', '.join(classes)} alone", "at least two classes")
    named = {head: tuple(classes) for head, classes in heads.items()}
    flat = tuple(f"{head}: {one}" if len(named) > 1 else one for head, classes in named.items() for one in classes)
    mean, std = IMAGENET_STATISTICS
    digest = hashlib.sha256(f"{name}/1 {named} {content}".encode(errors="surrogateescape")).hexdigest()[:16]
    made = {"name": name, "classes": flat, "train": train, "val": val, "fingerprint": digest, "heads": named, "said": tuple(said)}
    return VideoSource(**{"mean": mean, "std": std, **made, **options})  # type: ignore[arg-type]


def _open_actions(path: str, options: dict[str, str], argument: str) -> VideoSource:
    counts = {"train": 480, "val": 240, "seed": 0, **whole_numbers(options, argument)}
    train, val = (actions.drawn_actions(counts[split], 2 * counts["seed"] + number) for number, split in enumerate(("train", "val")))
    shape = {"frames": actions.FRAMES, "sampling": "dense", "frame_stride": 1, "image_size": actions.SIDE, "augment": "none"}
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    return _source("actions", actions.HEADS, train, val, str(counts), (), drawn=True, **shape, **half)


# Folders --------------------------------------------------------------------------------------------------------------------------------


def _open_clips(path: str, options: dict[str, str], argument: str) -> VideoSource:
    store = open_store(path, argument)
    if "table" not in options and not (isinstance(store, Folder) and not list(store.root.glob("*.csv"))):
        tables = [name for name in store.listing()[0] if "/" not in name and name.lower().endswith(".csv")]
        if len(tables) > 1:
            raise InputError(argument, f"{path} with {', '.join(sorted(tables))}", "table=FILE, one of them")
        options = {**options, **({"table": tables[0]} if tables else {})}
    if "table" not in options:
        return _open_class_folders(path, options, argument)
    content = content_of(store, options["table"], argument)
    asked = options["heads"].split("+") if "heads" in options else None
    found = read_segments(options["table"], content, asked, argument)
    return _from_rows("clips", Finder(store), found.rows, found.heads, options, argument, found.said, hashlib.sha256(content).hexdigest())


def _open_class_folders(path: str, options: dict[str, str], argument: str) -> VideoSource:
    """Videos, or folders of frames, in a folder for each class."""
    store = open_store(path, argument)
    files, folders = store.listing()
    finder = Finder(store)
    places = sorted({name if is_video(name) else _clip_folder(name, finder) for name in files if is_video(name) or is_frame(name)})
    train_top, val_top = find_splits(files, folders)
    found: dict[str, dict[str, list[str]]] = {"train": {}, "val": {}}
    for split, top in (("train", train_top), ("val", val_top)):
        start = f"{top}/" if top else ""
        for place in places if top is not None else ():
            if place.startswith(start) and "/" in (below := place[len(start) :]):
                found[split].setdefault(below.partition("/")[0], []).append(place)
    classes = sorted({*found["train"], *found["val"]})
    if not classes:
        raise InputError(argument, path, "a folder for each class with videos, or folders of frames, in it; or a table (table=FILE)")
    rows = [
        Row(place.removesuffix(Path(place).suffix) if is_video(place) else place, None, None, (classes.index(one),), split)
        for split, by_class in found.items()
        for one, inside in by_class.items()
        for place in inside
    ]
    if val_top is None:
        rows = [Row(row.video, None, None, row.labels, "") for row in rows]
    content = "\n".join(f"{name} {size}" for name, size in sorted(files.items()))
    return _from_rows("clips", finder, rows, {"action": classes}, options, argument, [], content)


def _clip_folder(name: str, finder: Finder) -> str:
    """The clip that a frame belongs to: its folder, or the one above it, where that is of a modality."""
    folder = name.rpartition("/")[0]
    return folder.rpartition("/")[0] if finder.of_modality(folder.rpartition("/")[2]) else folder


# Published sets -------------------------------------------------------------------------------------------------------------------------


def _open_something(path: str, options: dict[str, str], argument: str) -> VideoSource:
    store = open_store(path, argument)
    found = read_something(store, path, argument)
    content = repr([(row.video, row.labels) for row in found.rows])
    shape = {"image_size": 224, "frames": 16}
    return _from_rows("something", Finder(store), found.rows, found.heads, options, argument, found.said, content, **shape)


def _open_epic(path: str, options: dict[str, str], argument: str) -> VideoSource:
    store = open_store(path, argument)
    found = read_epic(store, path, argument)
    content = repr([(row.video, row.start, row.stop, row.labels) for row in found.rows])
    shape = {"image_size": 224, "frames": 32, "sampling": "dense", "frame_stride": 2}
    return _from_rows("epic", Finder(store), found.rows, found.heads, options, argument, found.said, content, **shape)


# Rows to clips --------------------------------------------------------------------------------------------------------------------------


def _from_rows(
    name: str,
    finder: Finder,
    rows: Sequence[Row],
    heads: Mapping[str, Sequence[str]],
    options: Mapping[str, str],
    argument: str,
    said: Sequence[str],
    content: str,
    **shape: object,
) -> VideoSource:
    """The clips of which there is something to see, in two splits."""
    lines, clips, kept = list(said), [], []
    missing: list[str] = []
    beyond: list[str] = []
    for row in rows:
        tracks = finder.tracks(row)
        if tracks is None:
            missing.append(row.told)
        elif not tracks:
            beyond.append(row.told)
        else:
            clips.append(Clip(row.told, tracks, row.labels))
            kept.append(row)
    if missing:
        lines.append(f"left out {counted(missing, 'clip{s} without frames or a video')}")
    if beyond:
        lines.append(f"left out {counted(beyond, 'clip{s} beginning behind the end of the video')}")
    if finder.shortened:
        lines.append(f"cut short {counted(finder.shortened, 'clip{s} ending behind the end of the video')}")
    if not clips:
        raise InputError(argument, f"{name}: {'; '.join(lines)}" if lines else name, "clips that are there")
    listed = Clips(clips, tuple(heads))
    if any(row.split for row in kept):
        val_N = np.array([row.split == "val" for row in kept])
        train_N = ~val_N
    else:
        share = held_out_share(dict(options), argument)
        train_N, val_N, how = _held_out(kept, listed.labels[:, 0], [str(one) for one in next(iter(heads.values()))], share, argument)
        lines.append(how)
    train, val = (listed.take(np.flatnonzero(part)) for part in (train_N, val_N))
    return _source(name, heads, train, val, content, lines, **shape)


def _held_out(
    rows: Sequence[Row], labels: np.ndarray, classes: Sequence[str], share: float, argument: str
) -> tuple[np.ndarray, np.ndarray, str]:
    """Which clips train and which validate, bool [N] both, and in words.

    Where clips of a video overlap, whole stretches of time are held out, and clips that reach into them train nobody.
    """
    by_video: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        if isinstance(row.start, int) and isinstance(row.stop, int):
            by_video.setdefault(row.video, []).append(number)
    orders = [sorted(inside, key=lambda number: rows[number].start or 0) for inside in by_video.values()]
    if not any(_reaches(rows[a], rows[b]) for order in orders for a, b in pairwise(order)):
        sizes = np.bincount(labels, minlength=len(classes))
        held = held_out_samples(len(rows), share) if (sizes == 1).any() else hold_out(labels, classes, share, argument)
        return ~held, held, f"held out {held.sum()} of {len(rows)} clips to measure with, always the same"
    train, held = np.ones(len(rows), bool), np.zeros(len(rows), bool)
    for order in orders:
        blocks = min(_BLOCKS, max(1, len(order) // 10))
        for block in range(blocks):  # a share of each part, in its middle
            first, length = (block + (1 - share) / 2) * len(order) / blocks, share * len(order) / blocks
            held[order[round(first) : max(round(first + length), round(first) + 1)]] = True
        inside = [number for number in order if held[number]]
        for number in order:
            train[number] = not any(_reaches(rows[other], rows[number]) or _reaches(rows[number], rows[other]) for other in inside)
    train &= ~held
    dropped = int((~train & ~held).sum())
    said = f"held out {held.sum()} of {len(rows)} clips in stretches of each video, for clips overlap"
    return train, held, f"{said}; {dropped} that share frames with them train nobody"


def _reaches(one: Row, other: Row) -> bool:
    """Whether the second begins within the first."""
    return (one.start or 0) <= (other.start or 0) <= (one.stop or 0)


KINDS = (
    Kind("actions", _open_actions, ("train", "val", "seed"), needs_path=None),
    Kind("clips", _open_clips, ("table", "heads", "val"), needs_path="FOLDER"),
    Kind("something", _open_something, (), needs_path="ROOT"),
    Kind("epic", _open_epic, (), needs_path="ROOT"),
)
