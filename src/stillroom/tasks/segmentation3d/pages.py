"""The report's own part of segmentation of scans: IoU by class, and clouds with truth and answers."""

from __future__ import annotations

from html import escape

import numpy as np

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.images.page_parts import change_cell, changes, figure, heads, mean_over_seeds, note, row, table
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
    found = {name: {result.seed: result.details["iou"] for result in results} for name, results in arms.items()}
    changes_SC = changes(found.get(report.baseline or "", {}), found.get(report.leading or "", {}))
    means = {name: mean_over_seeds(list(by_seed.values())) for name, by_seed in found.items()}
    first = next((results[0] for results in arms.values()), None)
    points_C = first.details["points"] if first is not None else np.zeros(data.num_classes, np.int64)
    rows = []
    for number, name in enumerate(data.classes):
        cells = f"<td>{points_C[number]}</td>" + "".join(f"<td>{figure(float(mean_C[number]))}</td>" for mean_C in means.values())
        if changes_SC is not None:
            cells += change_cell(float(changes_SC[:, number].mean()), changes_SC[:, number])
        rows.append(row(name, cells))
    notes = ["IoU in %, of points pooled over the validation scans; clusters are matched with classes once over all of them."]
    if missing := [name for name, count in zip(data.classes, points_C, strict=True) if not count]:
        notes.append(f"Classes without a point there count as 0 in the mean: {escape(', '.join(missing))}.")
    if changes_SC is not None:
        notes.append(f"The change is that of {escape(report.leading or '')} over {escape(report.baseline or '')}.")
    columns = heads(["class", "points", *arms], change=changes_SC is not None)
    return Section("By class", f"{table('IoU by class', columns, rows)}{note(notes)}")


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
