"""The report's own part of segmentation: IoU of each class, and pictures with truth and answer."""

from __future__ import annotations

from html import escape

import numpy as np
from PIL import Image

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.images.label_pictures import overlaid
from stillroom.tasks.images.page_parts import captioned, change_cell, changes, figure, heads, mean_over_seeds, note, row, table
from stillroom.tasks.images.pixel_classes import ious
from stillroom.tasks.segmentation.data import SegmentationData

_ROWS = 60  # classes that are listed


def segmentation_sections(report: Report, data: SegmentationData) -> list[Section]:
    """IoU by class, the worst pictures, the data."""
    arms = {name: [one for one in results if "unions" in one.details] for name, results in report.arms.items()}
    shown = {name: results for name, results in arms.items() if results}
    lines = "".join(f"<li>{escape(line)}</li>" for line in data.first_lines())
    return [_by_class(report, shown, data), *_pictures(report, shown, data), Section("The data", f"<ul>{lines}</ul>")]


def _by_class(report: Report, arms: dict[str, list[StageResult]], data: SegmentationData) -> Section:
    """A row for each class, the leading arm's change over the baseline in the last column."""
    found = {name: {result.seed: _ious(result) for result in results} for name, results in arms.items()}
    changes_SC = changes(found.get(report.baseline or "", {}), found.get(report.leading or "", {}))
    means = {name: mean_over_seeds(list(by_seed.values())) for name, by_seed in found.items()}
    rows = []
    for number, name in enumerate(data.classes[:_ROWS]):
        cells = "".join(f"<td>{figure(float(mean_C[number]))}</td>" for mean_C in means.values())
        if changes_SC is not None:
            cells += change_cell(float(changes_SC[:, number].mean()), changes_SC[:, number])
        rows.append(row(name, cells))
    notes = ["IoU in %, of pixels pooled over the validation set; a dash for a class that is in no mask and no answer: it is in no mean."]
    if changes_SC is not None:
        notes.append(f"The change is that of {escape(report.leading or '')} over {escape(report.baseline or '')}.")
    columns = heads(["class", *arms], change=changes_SC is not None)
    return Section("By class", f"{table('IoU by class', columns, rows)}{note(notes)}")


def _ious(result: StageResult) -> np.ndarray:
    iou_C: np.ndarray = 100 * ious(result.details["hits"].sum(0), result.details["unions"].sum(0))
    return iou_C


def _pictures(report: Report, arms: dict[str, list[StageResult]], data: SegmentationData) -> list[Section]:
    """Those with the least IoU of the leading arm: picture, truth, answer."""
    leading = report.leading if report.leading in arms else next(reversed(arms), None)
    if leading is None:
        return []
    details, cells, start = arms[leading][0].details, [], 0
    for index, (height, width) in zip(details["worst"].tolist(), details["map_shapes"].tolist(), strict=True):
        answer = details["maps"][start : start + height * width].reshape(height, width)
        start += height * width
        image, truth = data.val_image(index), data.val_mask(index)
        hits_C, unions_C = (details[name][np.flatnonzero(details["ids"] == index)[0]] for name in ("hits", "unions"))
        iou = 100 * float(np.nanmean(ious(hits_C, unions_C)))
        name = data.val_name(index)
        found = np.asarray(Image.fromarray(answer).resize(image.size, Image.Resampling.NEAREST))
        cells.append(captioned(image, escape(name)))
        cells.append(captioned(overlaid(image, truth, data.source.colours), f"truth: {escape(_names(truth, data))}"))
        answered = f"{escape(leading)}, {iou:.0f} %: {escape(_names(found, data))}"
        cells.append(captioned(overlaid(image, found, data.source.colours), answered))
    told = note([f"The pictures with the least mean IoU of {escape(leading)}, the worst first, first seed; white counts nowhere."])
    columns = "grid-template-columns:repeat(3,minmax(0,1fr))"
    return [Section("Worst pictures", f'{told}<div class="gallery" style="{columns}">{"".join(cells)}</div>')]


def _names(mask_HW: np.ndarray, data: SegmentationData) -> str:
    present = [int(one) for one in np.unique(mask_HW) if one < data.num_classes]
    return ", ".join(data.classes[one] for one in present)
