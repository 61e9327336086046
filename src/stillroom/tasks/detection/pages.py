"""The report's own part of detection: images with true boxes and with what each arm found, side by side."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from stillroom.engine.report import Report, Section

if TYPE_CHECKING:
    from stillroom.tasks.detection.data import DetectionData

_IMAGES, _LARGE, _SMALL, _SHOWN = 8, 480, 144, 0.3
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def detection_sections(report: Report, data: DetectionData) -> list[Section]:
    """The first validation images with an object: true boxes, and of the first seed those of every arm with a score above 0.3."""
    arms = {name: results[0].details for name, results in report.arms.items() if len(results[0].details.get("ids", ()))}
    if not arms:
        return []
    ids = sorted(set().union(*(details["ids"].tolist() for details in arms.values())))[:_IMAGES]
    rows = []
    for index in ids:
        image = data.val_image(index)
        boxes, labels = data.val_objects(index)
        cells = [_figure(image, boxes, labels, data.classes, "truth")]
        for name, details in arms.items():
            shown = (details["ids"] == index) & (details["scores"] > _SHOWN)
            scale = data.prepare(image)[1]
            cells.append(_figure(image, details["boxes"][shown] / scale, details["labels"][shown], data.classes, name))
        rows.append(f'<div class="examples">{"".join(cells)}</div>')
    legend = " ".join(
        f'<span style="color:{_COLOURS[k % len(_COLOURS)]}">■</span>&nbsp;{escape(name)}' for k, name in enumerate(data.classes[:24])
    )
    met = {**data.source.train.counts, **{f"{name} (validation)": count for name, count in data.source.val.counts.items()}}
    told = [f"{count} {escape(name)}" for name, count in met.items() if count]
    if told:
        rows.append(f"<p>Met in the annotations: {'; '.join(told)}.</p>")
    return [Section(f"Objects found (score above {_SHOWN:g}, first seed)", f"<p>{legend}</p>{''.join(rows)}")]


def _figure(image: Image.Image, boxes: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], name: str) -> str:
    scale = _LARGE / max(image.size) if max(image.size) > _LARGE else max(1, _SMALL // max(image.size))
    shown = image.convert("RGB").resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(shown)
    for box, label in zip(boxes, labels, strict=True):
        draw.rectangle([float(side) * scale for side in box], outline=_COLOURS[int(label) % len(_COLOURS)], width=2)
    file = BytesIO()
    shown.save(file, format="JPEG", quality=80)
    told = f"{name}: {', '.join(classes[int(label)] for label in labels) or 'nothing'}"
    source = base64.b64encode(file.getvalue()).decode()
    picture = f'<img src="data:image/jpeg;base64,{source}" alt="{escape(told)}" loading="lazy">'
    return f"<figure>{picture}<figcaption><b>{escape(name)}</b> {len(labels)} boxes</figcaption></figure>"
