"""One sequence of frames, labelled: motion, which is kept on the way, what is background, objects with their tracks, boxes and names."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

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
from stillroom.methods.upvl.vision import Language
from stillroom.tasks.points.augment import moved_boxes
from stillroom.tasks.points.frames import Frame
from stillroom.tasks.points.sources import Frames

OBJECT = "object"  # what everything is called without a vision-language model
BEGUN = "begun"  # the folder of what is kept of a sequence until it is labelled
_PICTURES = 3  # frames of a sequence that are drawn
_TOGETHER = 6  # pairs of frames whose flow is fitted at once, and kept in one file


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
        spec, vision, threshold: see `job.label_sequences`.

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
        kept = None if place is None else place / BEGUN / f"{start:06d}.npz"
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
