"""The report's own part of segmentation of scans: IoU by class, and clouds with truth and answers."""

from __future__ import annotations

from html import escape

import numpy as np

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.images.page_parts import note
from stillroom.tasks.points.class_table import class_section
from stillroom.tasks.points.drawings import cloud, figure_of, gallery, label_colours, legend
from stillroom.tasks.segmentation3d.data import Segmentation3dData

_SIDE = 300  # pixels of a cloud


def segmentation3d_sections(report: Report, data: Segmentation3dData) -> list[Section]:
    """IoU of each class, the first validation scans, and the data."""
    arms = {name: [one for one in results if "iou" in one.details] for name, results in report.arms.items()}
    shown = {name: results for name, results in arms.items() if results}
    lines = "".join(f"<li>{escape(line)}</li>" for line in data.first_lines())
    return [_by_class(report, shown, data), *_pictures(shown, data), Section("The data", f"<ul>{lines}</ul>")]


def remarks(report: Report, data: Segmentation3dData) -> list[str]:
    """What a reader must not miss: scans without any label measure nothing."""
    details = [one.details for results in report.arms.values() for one in results if "points" in one.details]
    if details and not any(told["points"].sum() for told in details):
        return ["No point of the scans that were measured with has a class: the figures say nothing, the pictures may."]
    return []


def _by_class(report: Report, arms: dict[str, list[StageResult]], data: Segmentation3dData) -> Section:
    def notes(points_C: np.ndarray) -> list[str]:
        said = ["IoU in %, of points pooled over the validation scans; clusters are matched with classes once over all of them."]
        if missing := [name for name, count in zip(data.classes, points_C, strict=True) if not count]:
            said.append(f"Classes without a point there count as 0 in the mean: {escape(', '.join(missing))}.")
        return said

    words = {"values": "iou", "counts": "points", "title": "IoU by class", "counted": "points"}
    return class_section(report, arms, data.classes, notes=notes, **words)


def _pictures(arms: dict[str, list[StageResult]], data: Segmentation3dData) -> list[Section]:
    """The first validation scans: colours, truth, and what each arm's clusters are matched with, first seed."""
    if not arms:
        return []
    cells: list[str] = []
    shown = next(iter(arms.values()))[0].details["shown"].tolist()
    for place, index in enumerate(shown):
        frame = data.val_frame(index)

        def drawn(colours: np.ndarray, said: str, points: np.ndarray = frame.points[:, :3]) -> str:
            return figure_of(cloud(points, colours, angles=(40.0,), tilt=60.0, side=_SIDE, cut=1.6), said)

        cells.append(drawn((frame.points[:, 3:6] * 255).astype(np.uint8), f"{data.val_name(index)}"))
        labels = frame.point_labels if frame.point_labels is not None else np.full(len(frame.points), -1)
        cells.append(drawn(label_colours(labels), "truth"))
        for name, results in arms.items():
            details = results[0].details
            start = int(details["sizes"][:place].sum())
            found = details["labels"][start : start + int(details["sizes"][place])]
            cells.append(drawn(label_colours(found), name))
    told = note(["The first validation scans, not picked by eye, cut above 1.6 m; first seed."])
    names = f"<p>{legend(dict(enumerate(data.classes)))}</p>"
    return [Section("Scans", told + names + gallery(cells, min(4, 2 + len(arms))))]
