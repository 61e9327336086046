"""What is written of labelled sequences: boxes in three forms, features, points, and a page that shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.engine.run.written import write_atomic
from stillroom.methods.upvl.sequence import OBJECT, Labelled
from stillroom.methods.upvl.vision import VisionLanguage
from stillroom.tasks.images.page_parts import heads, row, table
from stillroom.tasks.points.answers import kitti_entries, nuscenes_entries
from stillroom.tasks.points.augment import moved_boxes
from stillroom.tasks.points.drawings import figure_of, from_above, gallery, in_camera, legend
from stillroom.tasks.points.folder import NAME
from stillroom.tasks.points.frames import cleaned
from stillroom.tasks.points.sources import Frames

NUSCENES, KITTI, FEATURES = "nuscenes.json", "kitti.json", "features.npz"  # besides NAME
_POINTS = "lidar/{:06d}.bin"


def write_labels(made: Labelled, place: Path, vision: VisionLanguage | None = None, columns: Sequence[str] | None = None) -> None:
    """Writes a sequence's labels: ``frames.json`` (every box with its track, in the vehicle's coordinates), ``nuscenes.json`` (in the
    world's) and ``kitti.json`` (by KITTI's measures); with a model also ``features.npz``, the mean feature of each track.

    Args:
        made: the labels.
        place: the folder.
        vision: that named them.
        columns: of the points, where these are written beside the labels (`write_points`).
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
    contents = {NAME: {**shared, "frames": told}, NUSCENES: {"meta": meta, "results": nuscenes}, KITTI: kitti}
    for name, content in contents.items():
        write_atomic(place / name, json.dumps(content))
    if vision is not None:
        stream = BytesIO()
        means = [np.asarray(track.features).sum(0) for track in made.tracks]
        units = [mean / max(float(np.linalg.norm(mean)), 1e-12) for mean in means]
        np.savez(stream, feature=np.array(units, np.float16).reshape(len(units), vision.texts.shape[1]))
        write_atomic(place / FEATURES, stream.getvalue())


def write_points(frames: Frames, indices: Sequence[int], place: Path) -> tuple[str, ...]:
    """The points of a sequence as raw numbers beside its labels, and their columns: those that its first frame has."""
    columns = frames.frame(indices[0]).columns
    (place / _POINTS).parent.mkdir(parents=True, exist_ok=True)
    for at, index in enumerate(indices):
        points = cleaned(frames.frame(index)).frame.with_columns(columns).points
        write_atomic(place / _POINTS.format(at), points.astype("<f4").tobytes())
    return columns


def section(made: Labelled) -> str:
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


def page(parts: Sequence[str], vision: VisionLanguage | None) -> str:
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
