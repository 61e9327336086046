"""Automatic labels as what a detector learns and is compared with: of whole sequences, in several ways, kept on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from stillroom.engine import Lab
from stillroom.errors import InputError
from stillroom.methods.upvl.distiller import Found
from stillroom.methods.upvl.label_files import FEATURES
from stillroom.methods.upvl.labelling import LabelSpec, proposals
from stillroom.methods.upvl.sequence import Prepared, labelled, prepared, standing
from stillroom.methods.upvl.vision import Language
from stillroom.tasks.points.boxes import points_in_boxes
from stillroom.tasks.points.folder import FolderFrames
from stillroom.tasks.points.frames import Frame
from stillroom.tasks.points.sources import Frames

_NUMBERS = ("boxes", "score", "name", "share", "visible")  # of each box


@dataclass(frozen=True)
class Targets:
    """What automatic labels say of the frames of a split.

    Attributes:
        found: by way, of each frame.
        rows: of each frame its points with a feature, int64 [n], and where this is in `table`, int64 [n].
        table: [T, C], half precision.
    """

    found: dict[str, list[Found]]
    rows: list[tuple[Tensor, Tensor]]
    table: Tensor

    def frame(self, frame: Frame, index: int, way: str) -> Frame:
        """A frame to train on: the boxes of one way in the place of the true ones, and of each point the row of its feature."""
        found = self.found[way][index]
        rows = np.full(len(frame.points), -1, np.int64)
        points, places = self.rows[index]
        rows[points.numpy()] = places.numpy()
        boxes = np.full((len(found.boxes), 9), np.nan, np.float32)
        boxes[:, :7] = found.boxes[:, :7].numpy()
        labels = np.zeros(len(boxes), np.int64)
        return replace(frame, boxes=boxes, labels=labels, about={}, point_labels=rows, instances=None, flow=None, views=())


def made(lab: Lab, frames: Frames, key: str, split: str, spec: LabelSpec, vision: Language, ways: Sequence[str], points: int) -> Targets:
    """Labels sequences, each of them once for all seeds: what was labelled is kept in the run's folder, sequence by sequence.

    Args:
        lab: whose folder.
        frames: whole sequences, with poses and pictures.
        key: what else the labels depend on.
        split: how the files are called.
        spec, vision: how objects are found and named.
        ways: of `distiller.WAYS`.
        points: of a frame whose feature is kept, at most.

    Raises:
        InputError: (data) frames that cannot be labelled.
    """
    by: dict[str, list[int]] = {}
    for index in range(len(frames)):
        by.setdefault(frames.sequence(index), []).append(index)
    found: dict[str, list[Found]] = {way: [None] * len(frames) for way in ways}  # type: ignore[list-item]
    rows: list[tuple[Tensor, Tensor]] = [(torch.zeros(0, dtype=torch.int64),) * 2] * len(frames)
    tables, count = [], 0
    for number, indices in enumerate(by.values()):

        def compute(indices: list[int] = indices) -> dict[str, Tensor]:
            return _sequence(prepared(frames, indices, None, spec, vision, argument="data"), frames, indices, spec, vision, ways, points)

        with lab.shared():
            known = lab.remember(f"labels/{split}-{number}", f"{key} {spec} {sorted(ways)} {points} {indices}", compute)
        tables.append(known["table"])
        for at, index in enumerate(indices):
            mine = (known["row frame"] == at).nonzero().squeeze(1)
            rows[index] = known["row"][mine].long(), count + mine
            for way in ways:
                of = known[f"{way} frame"] == at
                boxes, score, name, share, visible = (known[f"{way} {what}"][of] for what in _NUMBERS)
                found[way][index] = Found(boxes, score, name, share, visible)
        count += len(known["table"])
    return Targets(found, rows, torch.cat(tables))


def _sequence(
    whole: Prepared, frames: Frames, indices: Sequence[int], spec: LabelSpec, vision: Language, ways: Sequence[str], points: int
) -> dict[str, Tensor]:
    """A sequence's boxes in every way, and the features of some of its points: half of them in boxes, so that what is small counts."""
    answers: dict[str, Tensor] = {}
    for way in ways:
        parts = list(_boxes(whole, way, spec, vision))
        columns = {what: np.concatenate([part[what] for part in parts]) for what in ("frame", *_NUMBERS)}
        answers |= {f"{way} {what}": torch.from_numpy(column) for what, column in columns.items()}
    random, rows, table = np.random.default_rng(len(indices)), [], []
    for at, index in enumerate(indices):
        frame = frames.frame(index)
        features = torch.from_numpy(vision.of_points(frame)(frame.points[:, :3]))
        boxes = answers[f"{ways[-1]} boxes"][answers[f"{ways[-1]} frame"] == at]
        inside = points_in_boxes(torch.from_numpy(frame.points[:, :3]), boxes).any(0).numpy()
        seen = (features != 0).any(1).numpy()
        first = _drawn(np.flatnonzero(seen & inside), points // 2, random)
        chosen = np.sort(np.append(first, _drawn(np.flatnonzero(seen & ~inside), points - len(first), random)))
        rows.append(np.column_stack((np.full(len(chosen), at), chosen)))
        table.append(features[chosen].half())
    where = torch.from_numpy(np.concatenate(rows))
    return {**answers, "row frame": where[:, 0], "row": where[:, 1], "table": torch.cat(table)}


def _drawn(rows: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= most else random.choice(rows, most, replace=False)


def _boxes(whole: Prepared, way: str, spec: LabelSpec, vision: Language) -> Iterator[dict[str, np.ndarray]]:
    """The boxes of each frame in the vehicle's coordinates, in one of the ways."""
    if way == "clusters":  # no motion, no pictures, no tracks: what each frame shows
        scans = [scan._replace(seen=np.ones_like(scan.seen), background=np.zeros_like(scan.background)) for scan in whole.scans]
        still = [standing(scan) for scan in scans]
        for at in range(len(scans)):
            boxes = np.array([one.box for one in proposals(scans, still, at, whole.interval, spec)]).reshape(-1, 7)
            yield _numbers(at, boxes, np.ones(len(boxes)), np.full(len(boxes), -1), np.ones(len(boxes)), boxes[:, 3:6])
        return
    if way != "labels":
        every = way == "unfiltered"
        scans = [s._replace(seen=np.full(len(s.seen), every), background=np.zeros_like(s.background)) for s in whole.scans]
        whole = whole._replace(scans=scans)
    told = labelled(whole, spec, vision)
    scores = np.array([track.score for track in told.tracks])
    names = np.array([vision.words.index(name) if way == "labels" else -1 for name in told.names], np.int64)
    moving = np.array([track.moving for track in told.tracks], bool)
    for at in range(len(whole.scans)):
        boxes, own = told.at(at)
        wanted = np.array([moving[k] or way != "motion" for k in own], bool)
        kept, boxes = [k for k, there in zip(own, wanted, strict=True) if there], boxes[wanted]
        shown = [told.tracks[k].visible[told.tracks[k].frames == at][0] for k in kept]
        yield _numbers(at, boxes[:, :7], scores[kept], names[kept], told.shares[kept], np.array(shown).reshape(-1, 3))


def _numbers(
    at: int, boxes: np.ndarray, score: np.ndarray, name: np.ndarray, share: np.ndarray, shown: np.ndarray
) -> dict[str, np.ndarray]:
    told = {"boxes": boxes, "score": score, "share": share, "visible": shown}
    return {"frame": np.full(len(boxes), at), "name": name, **{what: column.astype(np.float32) for what, column in told.items()}}


def given(frames: Frames, reader: FolderFrames) -> Targets:
    """What `stillroom label-3d --points` wrote: the boxes of frames, and for the points in each the mean feature of its track.

    Args:
        frames: of a folder that the job wrote.
        reader: of the folder.

    Raises:
        InputError: (data) frames that are no such labels, or without features.
    """
    found, rows, tables, first, count = [], [], [], {}, 0
    for index in range(len(frames)):
        frame = frames.frame(index)
        place = str(PurePosixPath(frames.name(index)).parent.parent / FEATURES)
        if place not in first:
            if place not in reader.place.files:
                raise InputError(
                    "data", f"{frame.name}, beside which there is no {FEATURES}", "what stillroom label-3d --clip --points wrote"
                )
            with np.load(BytesIO(reader.place.bytes(place)), allow_pickle=False) as arrays:
                tables.append(torch.from_numpy(arrays["feature"]))
            first[place], count = count, count + len(tables[-1])
        boxes = torch.from_numpy(frame.boxes)
        track = torch.from_numpy(frame.about["track"].astype(np.int64)) + first[place]
        inside = points_in_boxes(torch.from_numpy(frame.points[:, :3]), boxes)
        points = inside.any(0).nonzero().squeeze(1)
        rows.append((points, track[inside[:, points].int().argmax(0)] if len(points) else points))
        nothing = torch.full((len(boxes), 3), torch.nan)
        found.append(Found(boxes, torch.ones(len(boxes)), torch.from_numpy(frame.labels), torch.ones(len(boxes)), nothing))
    return Targets({"labels": found}, rows, torch.cat(tables))
