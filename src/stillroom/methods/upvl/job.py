"""Labelling as a job: sequences in, folders of labels out, and a page that shows them; what was done is not done again."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout

from stillroom.engine.run.written import write_atomic
from stillroom.errors import InputError
from stillroom.methods.upvl.labelling import (
    LabelSpec,
    Motion,
    Scan,
    Track,
    carried,
    checked_poses,
    proposals,
    scan_motions,
    scan_of,
    tracks_of,
)
from stillroom.methods.upvl.lifting import background, otsu
from stillroom.methods.upvl.loss import box_labels
from stillroom.methods.upvl.vision import Language, VisionLanguage
from stillroom.tasks.detection3d.sources import open_source
from stillroom.tasks.images.page_parts import heads, row, table
from stillroom.tasks.points.answers import kitti_entries, nuscenes_entries
from stillroom.tasks.points.augment import moved_boxes
from stillroom.tasks.points.drawings import figure_of, from_above, gallery, in_camera, legend
from stillroom.tasks.points.folder import NAME, open_folder
from stillroom.tasks.points.frames import Frame, cleaned
from stillroom.tasks.points.kitti import KittiDrives
from stillroom.tasks.points.place import open_place
from stillroom.tasks.points.semantic_kitti import KittiSequences
from stillroom.tasks.points.sources import Frames

OBJECT = "object"  # what everything is called without a vision-language model
DONE, PAGE, FEATURES = "labels.json", "report.html", "features.npz"
_POINTS = "lidar/{:06d}.bin"
_PICTURES = 3  # frames of a sequence that the page shows
_TOGETHER = 6  # pairs of frames whose flow is fitted at once, and kept in one file
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


@dataclass(frozen=True)
class Labelled:
    """A sequence with its labels.

    Attributes:
        name: of the sequence.
        frames: which, without points; of those that are drawn also these.
        poses: to the world.
        tracks: what was found.
        names: what each is called.
        shares: [T], how probable its name is; 1 without a model.
        seconds: that labelling took; 0 where it was done before.
        diverged: fits of flow that ended in no number.
        unseen: points of all frames that no camera saw, as a share; None without a model.
    """

    name: str
    frames: Sequence[Frame]
    poses: Sequence[np.ndarray]
    tracks: Sequence[Track]
    names: Sequence[str]
    shares: np.ndarray
    seconds: float = 0.0
    diverged: int = 0
    unseen: float | None = None

    def at(self, frame: int) -> tuple[np.ndarray, list[int]]:
        """Boxes of a frame, float32 [M, 9] in the vehicle's coordinates, and the track of each."""
        found = [(k, track.boxes[track.frames == frame][0]) for k, track in enumerate(self.tracks) if frame in track.frames]
        boxes = np.array([box for _, box in found]).reshape(-1, 9)
        return moved_boxes(boxes, np.linalg.inv(self.poses[frame])), [k for k, _ in found]


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
        InputError: sequences that cannot be labelled, or a folder that holds other labels.
    """
    out.mkdir(parents=True, exist_ok=True)
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
                known = _known(out / folder, key, overwrite)
                before = "" if known is None else "done before, "
                if known is None:
                    known = _labelled(frames, indices, out / folder, key, spec, vision, threshold, with_points)
            say(f"{name}: {before}{known['said']}")
            sections[folder] = known["section"]
        waiting = left
    if with_points:
        _join(out, names)
    write_atomic(out / PAGE, _page([sections[name] for name in names], vision))
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
    frames: Frames, indices: Sequence[int], place: Path, key: str, spec: LabelSpec, vision: VisionLanguage | None, threshold: float | None,
    with_points: bool,
) -> dict[str, Any]:  # fmt: skip
    """Labels a sequence and writes all of it; what its folder says of it then."""
    made = label_sequence(frames, indices, place, spec, vision, threshold)
    columns = _write_points(frames, indices, place) if with_points else None
    write_labels(made, place, vision, columns)
    moving = sum(track.moving for track in made.tracks)
    said = f"{len(made.tracks)} tracks, {moving} of them moving, in {len(indices)} frames, {made.seconds:.0f} s"
    content = {"key": key, "said": said, "section": _section(made)}
    write_atomic(place / DONE, json.dumps(content))
    shutil.rmtree(place / "begun", ignore_errors=True)
    return content


def label_sequence(
    frames: Frames,
    indices: Sequence[int],
    place: Path | None,
    spec: LabelSpec,
    vision: Language | None = None,
    threshold: float | None = None,
) -> Labelled:
    """Labels one sequence; the motion of each frame is kept in a folder, so that a job that was stopped goes on there.

    Args:
        frames, indices: which.
        place: the folder; None keeps nothing.
        spec, vision, threshold: see `label_sequences`.

    Raises:
        InputError: poses are missing or jump, or time runs back.
    """
    began = time.monotonic()
    return replace(labelled(prepared(frames, indices, place, spec, vision, threshold), spec, vision), seconds=time.monotonic() - began)


class Prepared(NamedTuple):
    """A sequence whose motion is known, and what is background.

    Attributes:
        frames: without points; of those that are drawn also these.
        poses: to the world.
        interval: seconds from a frame to the next.
        scans, motions: of each frame.
    """

    frames: Sequence[Frame]
    poses: Sequence[np.ndarray]
    interval: float
    scans: Sequence[Scan]
    motions: Sequence[Motion]


def prepared(
    frames: Frames,
    indices: Sequence[int],
    place: Path | None,
    spec: LabelSpec,
    vision: Language | None = None,
    threshold: float | None = None,
    argument: str = "SEQUENCES",
) -> Prepared:
    """The first half of `label_sequence`: what does not depend on which objects are kept.

    Raises:
        InputError: as there, of what is called `argument`.
    """
    drawn = {indices[at] for at in np.linspace(0, len(indices) - 1, min(_PICTURES, len(indices))).round().astype(int)}
    read = frames.frame
    lean = []
    for index in indices:
        frame = read(index)
        lean.append(frame if index in drawn else replace(frame, points=frame.points[:0], views=()))
    poses, interval = checked_poses(lean, argument)
    scans = []
    for index, pose in zip(indices, poses, strict=True):
        frame = read(index)
        scans.append(scan_of(frame, pose, spec, None if vision is None else vision.of_points(frame)))
    if not any(len(scan.points) for scan in scans):
        raise InputError(argument, f"{lean[0].sequence or 'a sequence'}, none of whose frames has a point above the ground",
                         "frames of points within reach")  # fmt: skip
    if vision is not None:
        scans = _told_background(scans, vision, threshold, contrast=spec.contrast)
    motions: list[Motion] = []
    pairs = list(pairwise(scans))
    for start in range(0, len(pairs), _TOGETHER):
        kept = None if place is None else place / "begun" / f"{start:06d}.npz"
        motions += _kept(kept, partial(scan_motions, pairs[start : start + _TOGETHER], interval, spec))
    motions.append(carried(scans[-2], motions[-1], scans[-1]) if motions else standing(scans[0]))
    return Prepared(lean, poses, interval, scans, motions)


def labelled(made: Prepared, spec: LabelSpec, vision: Language | None = None) -> Labelled:
    """The second half: objects, their tracks, boxes and names."""
    scans, motions, interval = made.scans, made.motions, made.interval
    found = [one for at in range(len(scans)) for one in proposals(scans, motions, at, interval, spec)]
    tracks = tracks_of(scans, found, interval, spec)
    names, shares = _named(tracks, vision)
    unseen = None if vision is None else 1 - float(np.concatenate([scan.seen for scan in scans]).mean())
    diverged = sum(motion.diverged for motion in motions)
    return Labelled(made.frames[0].sequence, made.frames, made.poses, tracks, names, shares, 0.0, diverged, unseen)


def standing(scan: Scan) -> Motion:
    """The motion of a scan in which nothing moves."""
    return Motion(np.zeros((len(scan.chosen), 3)), np.zeros(len(scan.chosen)))


def _kept(file: Path | None, compute: Callable[[], list[Motion]]) -> list[Motion]:
    """What a file holds; else what is computed, and then the file holds it."""
    if file is not None and file.is_file():
        with np.load(file, allow_pickle=False) as arrays:
            count = len(arrays["diverged"])
            return [Motion(arrays[f"flow {k}"], arrays[f"speed {k}"], int(arrays["diverged"][k])) for k in range(count)]
    made = compute()
    if file is not None:
        stream = BytesIO()
        named = {f"{name} {k}": getattr(motion, name) for k, motion in enumerate(made) for name in ("flow", "speed")}
        np.savez(stream, diverged=np.array([motion.diverged for motion in made]), **named)
        write_atomic(file, stream.getvalue())
    return made


def _told_background(scans: Sequence[Scan], vision: Language, threshold: float | None, *, contrast: bool) -> list[Scan]:
    """Scans whose background is marked."""
    prompts = vision.texts[list(vision.background)]
    if threshold is None and not contrast:
        rows = torch.from_numpy(np.concatenate([scan.features[scan.seen] for scan in scans]))  # type: ignore[index]
        threshold = otsu((rows @ prompts.T).amax(1).numpy()) if len(rows) else 0.0
    marked = []
    for scan in scans:
        features, seen = torch.from_numpy(scan.features), torch.from_numpy(scan.seen)
        if contrast:
            found = seen & ((features @ prompts.T).amax(1) >= (features @ vision.things.T).amax(1))
        else:
            found = background(features, seen, prompts, threshold or 0.0)
        marked.append(scan._replace(background=found.numpy()))
    return marked


def _named(tracks: Sequence[Track], vision: Language | None) -> tuple[list[str], np.ndarray]:
    """What each track is called, by its points in all its frames, and how probable that is."""
    if vision is None:
        return [OBJECT] * len(tracks), np.ones(len(tracks))
    names, shares = [], np.zeros(len(tracks))
    for k, track in enumerate(tracks):
        rows = torch.from_numpy(np.asarray(track.features))
        probability, label = box_labels(rows, torch.ones(1, len(rows)), vision.texts, vision.background)
        names.append(vision.words[int(label)])
        shares[k] = float(probability[0, label])
    return names, shares


# What is written ------------------------------------------------------------------------------------------------------------------------


def write_labels(made: Labelled, place: Path, vision: VisionLanguage | None = None, columns: Sequence[str] | None = None) -> None:
    """Writes a sequence's labels: ``frames.json`` (every box with its track, in the vehicle's coordinates), ``nuscenes.json`` (in the
    world's) and ``kitti.json`` (by KITTI's measures); with a model also ``features.npz``, the mean feature of each track.

    Args:
        made: the labels.
        place: the folder.
        vision: that named them.
        columns: of the points, where these are written beside the labels (`_write_points`).
    """
    classes = sorted(set(made.names)) if vision is None else list(vision.words)
    scores = np.array([track.score for track in made.tracks])
    told: list[dict[str, Any]] = []
    nuscenes, kitti = {}, {}
    for at, frame in enumerate(made.frames):
        boxes, own = made.at(at)
        labels = np.array([classes.index(made.names[k]) for k in own], np.int64)
        score = scores[own] if own else np.zeros(0)
        rows = [
            {
                "name": made.names[k],
                "box": [round(float(value), 4) for value in box],
                "track": k,
                "moving": made.tracks[k].moving,
                "score": round(made.tracks[k].score, 3),
                "name_probability": round(float(made.shares[k]), 4),
            }
            for k, box in zip(own, boxes, strict=True)
        ]
        lidar = frame.name if columns is None else _POINTS.format(at)
        place_of = {"lidar": lidar, "sequence": made.name or "sequence", "time_s": frame.time, "ego2global": made.poses[at].tolist()}
        told.append({**place_of, "boxes": rows})
        entries = nuscenes_entries(moved_boxes(boxes, made.poses[at]), score, labels, classes)
        nuscenes[frame.name] = [{"sample_token": frame.name, "tracking_id": str(k), **one} for k, one in zip(own, entries, strict=True)]
        kitti[frame.name] = [{"track": k, **one} for k, one in zip(own, kitti_entries(boxes, score, labels, classes), strict=True)]
    meta = {"use_camera": vision is not None, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": vision is not None}
    shared = {"classes": classes} if columns is None else {"classes": classes, "columns": list(columns)}
    contents = {NAME: {**shared, "frames": told}, "nuscenes.json": {"meta": meta, "results": nuscenes}, "kitti.json": kitti}
    for name, content in contents.items():
        write_atomic(place / name, json.dumps(content))
    if vision is not None:
        stream = BytesIO()
        means = [np.asarray(track.features).sum(0) for track in made.tracks]
        units = [mean / max(float(np.linalg.norm(mean)), 1e-12) for mean in means]
        np.savez(stream, feature=np.array(units, np.float16).reshape(len(units), vision.texts.shape[1]))
        write_atomic(place / FEATURES, stream.getvalue())


def _write_points(frames: Frames, indices: Sequence[int], place: Path) -> tuple[str, ...]:
    """The points of a sequence as raw numbers beside its labels, and their columns: those that its first frame has."""
    columns = frames.frame(indices[0]).columns
    (place / _POINTS).parent.mkdir(parents=True, exist_ok=True)
    for at, index in enumerate(indices):
        points = cleaned(frames.frame(index)).frame.with_columns(columns).points
        write_atomic(place / _POINTS.format(at), points.astype("<f4").tobytes())
    return columns


def _folder_name(sequence: str) -> str:
    """A sequence's name as that of a folder."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in sequence).strip(".") or "sequence"


def _key(frames: Frames, indices: Sequence[int], spec: LabelSpec, vision: VisionLanguage | None, *options: Any) -> str:
    """What labels depend on, but for the contents of the frames' files, which are known by their names."""
    named = [frames.name(index) for index in indices]
    model = None if vision is None else (vision.clip.source, vision.words)
    return hashlib.sha256(repr((_VERSION, named, spec, model, options)).encode()).hexdigest()[:16]


def _known(place: Path, key: str, overwrite: bool) -> dict[str, Any] | None:
    """What a folder says of labels that are the same; None where they are to be made, from the beginning or from where a job stopped.

    Raises:
        InputError: it holds others.
    """
    begun = place / "begun" / "key"
    content: dict[str, Any] = {}
    if place.is_dir() and not (place / DONE).exists() and {path.name for path in place.iterdir()} - {"begun"} and not begun.is_file():
        raise InputError("out", f"{place}, which holds other files", "a folder for labels alone")
    if (place / DONE).is_file():
        try:
            content = json.loads((place / DONE).read_text(encoding="utf-8"))
        except ValueError:
            content = {"key": "damaged"}
    found = content.get("key") or (begun.read_text(encoding="utf-8") if begun.is_file() else key)
    if found != key:
        if not overwrite:
            raise InputError("out", f"{place}, which holds labels that were made otherwise", "another folder, or --overwrite")
        shutil.rmtree(place)
    elif content:
        return content
    begun.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(begun, key)
    return None


# The page -------------------------------------------------------------------------------------------------------------------------------


def _section(made: Labelled) -> str:
    """What the page shows of a sequence."""
    classes = sorted(set(made.names))
    by_track = np.array([classes.index(name) for name in made.names], np.int64)
    moving = np.array([track.moving for track in made.tracks], bool)
    rows = [
        row(name, f"<td>{(by_track == k).sum()}</td><td>{(moving & (by_track == k)).sum()}</td>"
                  f"<td>{sum(len(track.frames) for track, of in zip(made.tracks, by_track, strict=True) if of == k)}</td>")
        for k, name in enumerate(classes)
    ]  # fmt: skip
    said = [f"{len(made.frames)} frames, {made.seconds:.0f} s."]
    if made.diverged:
        said.append(f"In {made.diverged} clusters the fit of flow ended in no number, and their flow is zero.")
    if made.unseen is not None:
        said.append(f"No camera sees {100 * made.unseen:.0f} % of the points.")
    figures = []
    for at, frame in enumerate(made.frames):
        if not len(frame.points):
            continue
        boxes, own = made.at(at)
        coloured = by_track[own] if classes != [OBJECT] else moving[own].astype(np.int64)
        low, high = np.quantile(frame.points[:, :3], [0.01, 0.99], axis=0)
        above = from_above(frame, boxes, coloured, (*low, *high), side=420)
        figures.append(figure_of(above, f"{frame.name}: from above, ahead is up"))
        figures += [figure_of(in_camera(view, boxes, coloured, side=640), f"{frame.name}: {view.name}") for view in frame.views[:1]]
    names = dict(enumerate(classes)) if classes != [OBJECT] else {0: "stands", 1: "moves"}
    counts = table("Tracks by name", heads(["called", "tracks", "moving", "boxes"]), rows)
    title = escape(made.name or "sequence")
    return f"<h2>{title}</h2><p>{' '.join(said)}</p>{counts}<p>{legend(names)}</p>{gallery(figures, 2)}"


def _page(parts: Sequence[str], vision: VisionLanguage | None) -> str:
    """All sequences on one page, which asks nothing of the network."""
    by = "Without a vision-language model everything is called object, and what stands is kept by its size alone." if vision is None else (
        f"Named, and told from the background, by {escape(vision.clip.source)}.")  # fmt: skip
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse}"
        "th,td{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}th:first-child{text-align:left}"
        ".gallery{display:grid;gap:.8rem}figure{margin:0}img{width:100%}figcaption{font-size:.8rem;color:#555}"
    )
    head = f'<meta charset="utf-8"><title>Labels in three dimensions</title><style>{style}</style>'
    body = f"<h1>Labels in three dimensions</h1><p>{by}</p>{''.join(parts)}"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>'
