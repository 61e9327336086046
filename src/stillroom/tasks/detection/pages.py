"""The report's own part of detection: AP by class, what was met in the data, and images with true and found boxes side by side."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
import torch
from PIL import Image, ImageDraw

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.loaded import THRESHOLD
from stillroom.tasks.detection.metrics import class_precision
from stillroom.tasks.detection.preparation import rescaled
from stillroom.tasks.images.page_parts import change_cell, changes, data_uri, figure, heads, note, row, table

_IMAGES, _CLASSES, _LARGE, _SMALL = 8, 30, 480, 192
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def detection_sections(report: Report, data: DetectionData) -> list[Section]:
    """AP of each class, the data, and the first validation images; as far as the stages of `report` kept their detections (`details`)."""
    kept = {name: [result for result in results if "ids" in result.details] for name, results in report.arms.items()}
    arms = {name: results for name, results in kept.items() if results}
    return [_by_class(report, arms, data), _met(data), *_pictures(arms, data)]


# Tables ---------------------------------------------------------------------------------------------------------------------------------


def _by_class(report: Report, arms: Mapping[str, list[StageResult]], data: DetectionData) -> Section:
    """A row for each class, in the order of the data; the largest classes where there are many."""
    found = {name: {result.seed: 100 * _precision(result, data) for result in results} for name, results in arms.items()}
    changes_SC = changes(found.get(report.baseline or "", {}), found.get(report.leading or "", {}))
    train_C, val_C = (images.objects(data.num_classes) for images in (data.trained, data.truth))
    shown = np.sort(np.argsort(-val_C, kind="stable")[:_CLASSES])
    rows = []
    for k in shown.tolist():
        cells = [f"<td>{figure(float(np.mean([by_class[k] for by_class in by_seed.values()])))}</td>" for by_seed in found.values()]
        if changes_SC is not None:
            cells.append(change_cell(float(changes_SC[:, k].mean()), changes_SC[:, k]))
        rows.append(row(data.classes[k], f"<td>{train_C[k]}</td><td>{val_C[k]}</td>{''.join(cells)}"))
    notes = []
    if changes_SC is not None:
        notes.append(f"The change is that of {escape(report.leading or '')} over {escape(report.baseline or '')}.")
        notes += ["Means over seeds; the change with its standard deviation over seeds."] if len(changes_SC) > 1 else []
    if len(shown) < len(val_C):
        notes.append(f"The {data.num_classes - len(shown)} classes with the fewest validation boxes are left out.")
    columns = heads(["class", "training boxes", "validation boxes", *arms], change=changes_SC is not None)
    said = "<p>AP of each class, %, and how many boxes students are trained on and measured with</p>"
    return Section("Class by class", f"{said}{table('AP by class', columns, rows)}{note(notes)}")


def _precision(result: StageResult, data: DetectionData) -> np.ndarray:
    """AP of each class in [0, 1], [C]."""
    return class_precision(rows_of(result.details, data), data.num_classes)


def rows_of(details: Mapping[str, np.ndarray], data: DetectionData) -> list[dict[str, np.ndarray]]:
    """What a stage found in each validation image, beside what there is, as the metrics read it."""
    truth = data.truth
    order = np.argsort(details["ids"], kind="stable")
    ids = details["ids"][order]
    rows: list[dict[str, np.ndarray]] = []
    for index in range(len(truth)):
        mine = order[np.searchsorted(ids, index) : np.searchsorted(ids, index, side="right")]
        found = {name: details[name][mine] for name in ("boxes", "scores", "labels")}
        boxes = torch.from_numpy(truth.boxes[index])
        there = rescaled(boxes, truth.shapes[index], data.preparation.size(*truth.shapes[index])).numpy()
        rows.append({**found, "true_boxes": there, "true_labels": truth.labels[index], "crowd": truth.crowd[index]})
    return rows


def _met(data: DetectionData) -> Section:
    """How many images there are, how large they are, and what was found on the way."""
    source = data.source
    shapes = sorted({shape for images in (data.trained, data.truth) for shape in images.shapes}, key=lambda shape: shape[0] * shape[1])
    sizes = " to ".join(f"{width} × {height}" for height, width in dict.fromkeys((shapes[0], shapes[-1])))
    told = [f"{len(data.trained)} images to train on", f"{len(data.truth)} to measure with"]
    if source.teacher is not None:
        told.append(f"{len(source.teacher)} for a teacher that is trained")
    size = data.preparation.image_size
    read = f", read with a shorter side of {size}" if size else ""
    lines = [f"<li>{escape(line)}</li>" for line in source.notes.lines()]
    met = f"<p>Met in the files and annotations:</p><ul>{''.join(lines)}</ul>" if lines else ""
    return Section("The data", f"<p>{', '.join(told)}; {sizes} pixels{read}.</p>{met}")


# Pictures -------------------------------------------------------------------------------------------------------------------------------


def _pictures(arms: Mapping[str, list[StageResult]], data: DetectionData) -> list[Section]:
    """The first validation images with an object: true boxes, and of the first seed those of every arm above the threshold."""
    truth = data.truth
    with_object = [index for index in range(len(truth)) if len(truth.labels[index])][:_IMAGES]
    cells: list[str] = []
    named: set[int] = set()
    for index in with_object:
        image, shape = data.val_image(index), truth.shapes[index]
        shown = {"truth": (truth.boxes[index], truth.labels[index])}
        shown |= {name: _found(results[0].details, index, data.preparation.size(*shape), shape) for name, results in arms.items()}
        cells += [_figure(image, boxes, labels, data.classes, name, index) for name, (boxes, labels) in shown.items()]
        named |= {int(label) for _, labels in shown.values() for label in labels}
    legend = " &emsp;".join(f'<span style="color:{_colour(k)}">■</span>&nbsp;{escape(data.classes[k])}' for k in sorted(named))
    told = note([f"Scores above {THRESHOLD:g}, of the first seed.", "The first validation images with an object, not picked by eye."])
    columns = f"grid-template-columns:repeat({1 + len(arms)},minmax(0,1fr))"
    pictures = f'<div class="gallery" style="{columns}">{"".join(cells)}</div>'
    return [Section("Objects found", f"{told}<p>{legend}</p>{pictures}")]


def _found(details: Mapping[str, np.ndarray], index: int, size: tuple[int, int], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [D, 4] in the image's own pixels, and labels [D]."""
    shown = (details["ids"] == index) & (details["scores"] > THRESHOLD)
    return rescaled(torch.from_numpy(details["boxes"][shown]), size, shape).numpy(), details["labels"][shown]


def _figure(image: Image.Image, boxes: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], name: str, index: int) -> str:
    scale = _LARGE / max(image.size) if max(image.size) > _LARGE else max(1, _SMALL // max(image.size))
    shown = image.convert("RGB").resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(shown)
    for box, label in zip(boxes, labels, strict=True):
        draw.rectangle([float(side) * scale for side in box], outline=_colour(int(label)), width=2)
    said = f"validation image {index}, {name}: {', '.join(classes[int(label)] for label in labels) or 'nothing'}"
    boxes_said = f"{len(labels)} box{'' if len(labels) == 1 else 'es'}"
    picture = f'<img src="{data_uri(shown, "JPEG")}" alt="{escape(said)}" loading="lazy" style="aspect-ratio:auto">'
    return f"<figure>{picture}<figcaption><b>{escape(name)}</b> · {boxes_said}</figcaption></figure>"


def _colour(label: int) -> str:
    return _COLOURS[label % len(_COLOURS)]
