"""The report's own part of detection in three dimensions: AP by class, frames from above and in the cameras."""

from __future__ import annotations

from html import escape

import numpy as np

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.detection3d.data import Detection3dData
from stillroom.tasks.detection3d.loaded import THRESHOLD
from stillroom.tasks.images.page_parts import note
from stillroom.tasks.points.class_table import class_section
from stillroom.tasks.points.drawings import figure_of, from_above, gallery, in_camera, legend

_FRAMES, _CAMERAS = 4, 3  # that are shown
_OF_40 = 41  # objects below which an AP at 40 recalls cannot reach 100 %


def detection3d_sections(report: Report, data: Detection3dData) -> list[Section]:
    """AP of each class, the first validation frames with an object, and the data; as far as the stages kept their boxes."""
    arms = {name: [one for one in results if "boxes" in one.details] for name, results in report.arms.items()}
    shown = {name: results for name, results in arms.items() if results}
    scored = {name: results for name, results in shown.items() if all("by_class" in one.details for one in results)}
    lines = "".join(f"<li>{escape(line)}</li>" for line in data.first_lines())
    by_class = [_by_class(report, scored, data)] if scored or not shown else []
    return [*by_class, *_pictures(shown, data), Section("The data", f"<ul>{lines}</ul>")]


def _by_class(report: Report, arms: dict[str, list[StageResult]], data: Detection3dData) -> Section:
    kitti = data.source.measure == "kitti"
    by = "overlap in three dimensions, moderate objects, 40 recalls" if kitti else "centre distances of 0.5, 1, 2 and 4 m"

    def notes(objects_C: np.ndarray) -> list[str]:
        said = [f"AP in %, by {by}."]
        if missing := [name for name, count in zip(data.classes, objects_C, strict=True) if not count]:
            said.append(f"Without a true box in the validation set, and counted as 0 in the mean: {escape(', '.join(missing))}.")
        if kitti and (few := [name for name, count in zip(data.classes, objects_C, strict=True) if 0 < count < _OF_40]):
            said.append(f"With fewer than {_OF_40} objects ({escape(', '.join(few))}) a perfect detector stays below 100 by this rule.")
        return said

    words = {"values": "by_class", "counts": "objects", "title": "AP by class", "counted": "true boxes"}
    return class_section(report, arms, data.classes, notes=notes, **words)


def _pictures(arms: dict[str, list[StageResult]], data: Detection3dData) -> list[Section]:
    """The first validation frames with an object: from above, truth and every arm; and, where there are cameras, the first of them."""
    cells: list[str] = []
    cameras: list[str] = []
    shown = 0
    for index in range(data.val_size):
        frame = data.val_frame(index)
        if not len(frame.boxes):
            continue
        shown += 1
        cells.append(figure_of(from_above(frame, frame.boxes, frame.labels, data.reach), f"{data.val_name(index)}: truth"))
        for name, results in arms.items():
            boxes, labels = _found(results[0], index)
            picture = from_above(frame, boxes, labels, data.reach, truth=frame.boxes)
            cells.append(figure_of(picture, f"{name}: {len(boxes)} box{'' if len(boxes) == 1 else 'es'}"))
        for view in frame.views[:_CAMERAS] if shown <= 2 else ():
            cameras.append(figure_of(in_camera(view, frame.boxes, frame.labels), f"{view.name}, {data.val_name(index)}: truth"))
            if arms:
                name, results = next(reversed(arms.items()))
                cameras.append(figure_of(in_camera(view, *_found(results[0], index)), f"{view.name}: {name}"))
        if shown == _FRAMES:
            break
    told = note([f"Seen from above, ahead is up; scores above {THRESHOLD:g}, of the first seed; truth is gray below what was found.",
                 "The first validation frames with an object, not picked by eye."])  # fmt: skip
    names = f"<p>{legend(dict(enumerate(data.classes)))}</p>"
    sections = [Section("Objects found", told + names + gallery(cells, 1 + len(arms)))] if cells else []
    if cameras:
        sections.append(Section("In the cameras", names + gallery(cameras, 2)))
    return sections


def _found(result: StageResult, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and labels that a stage found in a frame, of scores above the threshold."""
    shown = (result.details["ids"] == index) & (result.details["scores"] > THRESHOLD)
    return result.details["boxes"][shown], result.details["labels"][shown]
