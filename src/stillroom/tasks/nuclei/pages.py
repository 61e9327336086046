"""The report's own part of nuclei: scores of each class, and pictures with truth and answer."""

from __future__ import annotations

from html import escape

import numpy as np

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.images.page_parts import captioned, change_cell, changes, figure, heads, mean_over_seeds, note, row, table
from stillroom.tasks.nuclei.data import NucleiData
from stillroom.tasks.nuclei.loaded import class_colours, outlined
from stillroom.tasks.nuclei.maps import NucleiMap, numbered
from stillroom.tasks.nuclei.measures import panoptic_quality
from stillroom.tasks.nuclei.metrics import pooled_counts


def nuclei_sections(report: Report, data: NucleiData) -> list[Section]:
    """Scores by class, the worst pictures, the data."""
    arms = {name: [one for one in results if "class_match" in one.details] for name, results in report.arms.items()}
    shown = {name: results for name, results in arms.items() if results}
    lines = "".join(f"<li>{escape(line)}</li>" for line in data.first_lines())
    return [_by_class(report, shown, data), *_pictures(report, shown, data), Section("The data", f"<ul>{lines}</ul>")]


def _by_class(report: Report, arms: dict[str, list[StageResult]], data: NucleiData) -> Section:
    """A row for each class: PQ+ and F1 of each arm; the leading arm's change of PQ+ over the baseline."""
    quality = {name: {one.seed: 100 * pooled_counts(one.details).class_pq() for one in results} for name, results in arms.items()}
    typed = {name: [100 * pooled_counts(one.details).type_f1() for one in results] for name, results in arms.items()}
    changes_SC = changes(quality.get(report.baseline or "", {}), quality.get(report.leading or "", {}))
    means = {name: (mean_over_seeds(list(quality[name].values())), mean_over_seeds(typed[name])) for name in arms}
    rows = []
    for number, name in enumerate(data.classes):
        cells = "".join(f"<td>{figure(float(pq[number]))} / {figure(float(f1[number]))}</td>" for pq, f1 in means.values())
        if changes_SC is not None:
            cells += change_cell(float(mean_over_seeds(changes_SC)[number]), changes_SC[:, number])
        rows.append(row(f"{name}{' (apart)' if name in data.apart else ''}", cells))
    notes = ["PQ+ / F1 of types in %, pooled over the validation set; a dash for a class that is in no truth and no answer."]
    if changes_SC is not None:
        notes.append(f"The change is of PQ+, of {escape(report.leading or '')} over {escape(report.baseline or '')}.")
    empty = [int((one.details["match"][:, :3].sum(1) == 0).sum()) for results in arms.values() for one in results]
    if any(empty):
        notes.append(f"Up to {max(empty)} pictures have no nucleus in truth and answer: they are in no mean over pictures.")
    columns = heads(["class", *arms], change=changes_SC is not None)
    return Section("By class", f"{table('PQ+ and F1 by class', columns, rows)}{note(notes)}")


def _pictures(report: Report, arms: dict[str, list[StageResult]], data: NucleiData) -> list[Section]:
    """Those with the least PQ of the leading arm: picture, truth, answer."""
    leading = report.leading if report.leading in arms else next(reversed(arms), None)
    if leading is None:
        return []
    details, cells, start = arms[leading][0].details, [], 0
    for index, (height, width) in zip(details["worst"].tolist(), details["map_shapes"].tolist(), strict=True):
        answer_HW2 = details["maps"][start : start + height * width].reshape(height, width, 2)
        start += height * width
        image, truth = data.val_image(index), data.val_nuclei(index)
        quality = 100 * float(panoptic_quality(details["match"][np.flatnonzero(details["ids"] == index)[0]]))
        cells.append(captioned(image, escape(data.val_name(index))))
        cells.append(captioned(outlined(image, truth), f"truth: {len(truth.types) - 1} nuclei"))
        found = _whole(answer_HW2, image.size)
        cells.append(captioned(outlined(image, found), f"{escape(leading)}, PQ {quality:.0f} %: {len(found.types) - 1} nuclei"))
    colours = (f"rgb({r}, {g}, {b})" for r, g, b in class_colours(data.num_classes)[1:].tolist())
    legend = " ".join(f'<span style="color: {rgb}">■</span> {escape(name)}' for name, rgb in zip(data.classes, colours, strict=True))
    told = note([f"The pictures with the least PQ of {escape(leading)}, the worst first, first seed; outlines: {legend}."])
    return [Section("Pictures", f'<div class="gallery">{"".join(cells)}</div>{told}')] if cells else []


def _whole(answer_HW2: np.ndarray, size: tuple[int, int]) -> NucleiMap:
    """An answer that was kept in small, in the picture's size."""
    rows, columns = (np.arange(wanted) * kept // wanted for wanted, kept in zip(size[::-1], answer_HW2.shape[:2], strict=True))
    instances, types = np.moveaxis(answer_HW2[np.ix_(rows, columns)], 2, 0)
    of_number = np.zeros(int(instances.max(initial=0)) + 1, np.int64)
    of_number[instances] = types
    return numbered(instances, of_number)
