"""Labelling as a job: sequences in, folders of labels out, and a page that shows them; what was done is not done again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stillroom.engine.run.written import Record, refuse_foreign, remove, write_atomic
from stillroom.errors import InputError
from stillroom.methods.upvl.label_files import FEATURES, KITTI, NUSCENES, page, section, write_labels, write_points
from stillroom.methods.upvl.labelling import LabelSpec
from stillroom.methods.upvl.sequence import BEGUN, label_sequence
from stillroom.methods.upvl.vision import VisionLanguage
from stillroom.tasks.detection3d.sources import open_source
from stillroom.tasks.points.folder import NAME, open_folder
from stillroom.tasks.points.kitti import KittiDrives
from stillroom.tasks.points.place import open_place
from stillroom.tasks.points.semantic_kitti import KittiSequences
from stillroom.tasks.points.sources import Frames

DONE, PAGE = "labels.json", "report.html"
_VERSION = 1  # of what is written


def open_sequences(spec: str, argument: str = "SEQUENCES") -> Frames:
    """The frames at a path, or of a specification.

    Args:
        spec: a folder or archive as SemanticKITTI has it (``velodyne``, poses, calibration), as KITTI's raw drives, or with
            ``frames.json``; or ``streets:...``, ``nuscenes:ROOT``.
        argument: who asks.

    Raises:
        InputError: there is none of these.
    """
    kind = spec.partition(":")[0]
    if kind in ("streets", "nuscenes"):
        return open_source(spec, argument).train
    place = open_place(spec.partition(":")[2] if kind == "points" else spec, argument)
    if place.within(NAME) is not None:
        return open_folder(place.path, argument).listed()
    folders = place.folders()
    if any(folder.endswith("velodyne_points/data") for folder in folders):
        return KittiDrives(place).listed()
    if any(folder.rpartition("/")[2] == "velodyne" for folder in folders):
        return KittiSequences(place).listed()
    raise InputError(argument, spec, f"a folder or zip with velodyne/*.bin and poses, KITTI's raw drives, or {NAME}")


def label_sequences(
    specs: Sequence[str],
    out: Path,
    spec: LabelSpec,
    vision: VisionLanguage | None = None,
    *,
    threshold: float | None = None,
    with_points: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Labels all sequences at some places; each gets a folder of its own, and all of them a page. Several processes may do it together.

    Args:
        specs: where they are, see `open_sequences`.
        out: the folder to write.
        spec: how.
        vision: names objects, and tells what stands from the background.
        threshold: similarity to a background prompt from which a point is background; by default Otsu's of each sequence.
        with_points: also write the points, so that a folder is a data set that detectors are trained on.
        overwrite: label again what was labelled otherwise.
        say: is told of each sequence.

    Returns:
        The names of the folders.

    Raises:
        InputError: sequences that cannot be labelled, a folder that holds other labels, or files in the way that this job did not write.
    """
    out.mkdir(parents=True, exist_ok=True)
    (Record.of(out) or Record(out)).begin()
    refuse_foreign([out / PAGE, *([out / NAME] if with_points else [])])
    works = []
    for at in specs:
        frames = open_sequences(at)
        by: dict[str, list[int]] = {}
        for index in range(len(frames)):
            by.setdefault(frames.sequence(index), []).append(index)
        works += [(frames, name, indices) for name, indices in by.items()]
    names = [_folder_name(name) for _, name, _ in works]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise InputError("SEQUENCES", f"two that are called {double}", "each sequence once, under a name of its own")
    sections: dict[str, str] = {}
    waiting = list(zip(works, names, strict=True))
    for patience in (0, -1):  # what another process labels now is looked at again when everything else is done
        left = []
        for (frames, name, indices), folder in waiting:
            lock = FileLock(out / f".{folder}.lock")
            with ExitStack() as held:
                try:
                    held.enter_context(lock.acquire(timeout=patience))
                except Timeout:
                    left.append(((frames, name, indices), folder))
                    continue
                key = _key(frames, indices, spec, vision, threshold, with_points)
                known = _known(out, folder, key, overwrite)
                before = "" if known is None else "done before, "
                if known is None:
                    known = _labelled(frames, indices, out, folder, key, spec, vision, threshold, with_points)
            say(f"{name}: {before}{known['said']}")
            sections[folder] = known["section"]
        waiting = left
    if with_points:
        _join(out, names)
    write_atomic(out / PAGE, page([sections[name] for name in names], vision))
    return names


def _join(out: Path, names: Sequence[str]) -> None:
    """Writes a ``frames.json`` of all sequences beside their folders, so that they are one data set; unless their columns differ."""
    contents = [json.loads((out / name / NAME).read_text(encoding="utf-8")) for name in names]
    if all(content["columns"] == contents[0]["columns"] for content in contents):
        frames = [
            {**frame, "lidar": f"{name}/{frame['lidar']}", "sequence": name}
            for name, content in zip(names, contents, strict=True)
            for frame in content["frames"]
        ]
        classes = list(dict.fromkeys(word for content in contents for word in content["classes"]))
        write_atomic(out / NAME, json.dumps({"classes": classes, "columns": contents[0]["columns"], "frames": frames}))


def _labelled(
    frames: Frames, indices: Sequence[int], out: Path, folder: str, key: str, spec: LabelSpec, vision: VisionLanguage | None,
    threshold: float | None, with_points: bool,
) -> dict[str, Any]:  # fmt: skip
    """Labels a sequence and writes all of it; what its folder says of it then."""
    place = out / folder
    made = label_sequence(frames, indices, place, spec, vision, threshold)
    columns = write_points(frames, indices, place) if with_points else None
    write_labels(made, place, vision, columns)
    moving = sum(track.moving for track in made.tracks)
    said = f"{len(made.tracks)} tracks, {moving} of them moving, in {len(indices)} frames, {made.seconds:.0f} s"
    content = {"key": key, "said": said, "section": section(made)}
    write_atomic(place / DONE, json.dumps(content))
    _remove(out, place / BEGUN)
    return content


def _remove(out: Path, below: Path) -> None:
    """Removes what the record lists below a folder.

    Raises:
        InputError: a file that is not as it was written.
    """
    if (record := Record.of(out)) is not None:
        remove(record.present(below), out)


def _folder_name(sequence: str) -> str:
    """A sequence's name as that of a folder."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in sequence).strip(".") or "sequence"


def _key(frames: Frames, indices: Sequence[int], spec: LabelSpec, vision: VisionLanguage | None, *options: Any) -> str:
    """What labels depend on, but for the contents of the frames' files, which are known by their names."""
    named = [frames.name(index) for index in indices]
    model = None if vision is None else (vision.clip.source, vision.words)
    return hashlib.sha256(repr((_VERSION, named, spec, model, options)).encode()).hexdigest()[:16]


def _known(out: Path, folder: str, key: str, overwrite: bool) -> dict[str, Any] | None:
    """What a folder says of labels that are the same; None where they are to be made, from the beginning or from where a job stopped.

    Raises:
        InputError: it holds others, or files that this job did not write where it writes.
    """
    place = out / folder
    begun, content = place / BEGUN / "key", {}
    if (place / DONE).is_file():
        try:
            content = json.loads((place / DONE).read_text(encoding="utf-8"))
        except ValueError:
            content = {"key": "damaged"}
    found = content.get("key") or (begun.read_text(encoding="utf-8") if begun.is_file() else key)
    if found != key:
        if not overwrite:
            raise InputError("out", f"{place}, which holds labels that were made otherwise", "another folder, or --overwrite")
        _remove(out, place)
    elif content:
        return dict(content)
    refuse_foreign(place / name for name in (NAME, NUSCENES, KITTI, FEATURES, DONE))
    write_atomic(begun, key)
    return None
