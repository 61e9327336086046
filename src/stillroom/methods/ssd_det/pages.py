"""A report's part on boxes: how far given and refined ones are from the true ones, and the largest changes."""

from __future__ import annotations

from html import escape

import numpy as np
import torch
from PIL import Image, ImageDraw
from torchvision.ops import box_area, box_iou

from stillroom.engine.report.results import Metric, Section
from stillroom.tasks.detection import DetectionData
from stillroom.tasks.detection.boxes import paired_iou
from stillroom.tasks.detection.preparation import as_pixels
from stillroom.tasks.images.page_parts import data_uri, figure, heads, note, row, table

FORMATS = {
    "box_iou": Metric("boxes' IoU", "%", 1, True),
    "box_iou_1": Metric("boxes' IoU, stage I", "%", 1, True),
    "box_good": Metric("boxes of IoU 0.5 or more", "%", 1, True),
}
_SHOWN, _LARGE, _SMALL = 12, 480, 288
_COLOURS = {"true": "#ffc400", "given": "#e6194b", "refined": "#3cb44b"}


def overlaps(first_N4: np.ndarray, second_N4: np.ndarray) -> np.ndarray:
    """IoU of the boxes in the same row, float32 [N]; NaN where one is."""
    first, second = (torch.from_numpy(np.ascontiguousarray(boxes, np.float32)) for boxes in (first_N4, second_N4))
    found = paired_iou(first, second).numpy()
    return np.where(np.isnan(first_N4).any(1) | np.isnan(second_N4).any(1), np.float32(np.nan), found)


def figures(boxes_N4: np.ndarray, true_N4: np.ndarray, stage1_N4: np.ndarray | None = None) -> dict[str, float]:
    """Metrics of boxes whose true ones are known, in % (`FORMATS`); none where no true box is."""
    iou_N = overlaps(boxes_N4, true_N4)
    if np.isnan(iou_N).all():
        return {}
    known_N = ~np.isnan(iou_N)
    found = {"box_iou": 100 * float(iou_N[known_N].mean()), "box_good": 100 * float((iou_N[known_N] >= 0.5).mean())}
    return found if stage1_N4 is None else found | {"box_iou_1": 100 * float(overlaps(stage1_N4, true_N4)[known_N].mean())}


def told(data: DetectionData, found: dict[str, np.ndarray], true_N4: np.ndarray) -> list[str]:
    """How far given and refined boxes are from the true ones, in a sentence; see `box_section`."""
    known_N = ~np.isnan(found["scores"]) & ~np.isnan(true_N4).any(1)
    if not known_N.any():
        return []
    given, refined = (float(overlaps(b[known_N], true_N4[known_N]).mean()) for b in (np.concatenate(data.trained.boxes), found["boxes"]))
    return [
        f"The mean IoU of training boxes with the true ones is {100 * given:.1f} % as given and {100 * refined:.1f} % refined (first seed)."
    ]


def box_section(data: DetectionData, found: dict[str, np.ndarray], true_N4: np.ndarray) -> Section:
    """Given and refined boxes of the training images in numbers, and pictures of those that changed most.

    Args:
        data: with the given boxes.
        found: of `distiller.refine_all`.
        true_N4: in the same order; NaN where nobody knows.
    """
    annotated = data.trained
    given_N4 = np.concatenate(annotated.boxes)
    refined_N = ~np.isnan(found["scores"])
    moved_N = np.where(refined_N, 1 - overlaps(given_N4, found["boxes"]), -1)
    known_N = refined_N & ~np.isnan(true_N4).any(1)
    said = [f"{refined_N.sum()} boxes were refined; their IoU with the given ones is {(1 - moved_N[refined_N]).mean():.3f} in the mean."]
    said += [] if known_N.any() else ["No true boxes are known, so nothing here says that the refined ones are better: look at them."]
    image_N = np.repeat(np.arange(len(annotated)), [len(boxes) for boxes in annotated.boxes])
    numbers = _numbers({"given": given_N4, "stage I": found["stage1"], "refined": found["boxes"]}, true_N4, known_N, image_N)
    labels_N = np.concatenate(annotated.labels)
    cards = []
    for place in np.argsort(-moved_N, kind="stable")[: min(_SHOWN, int(refined_N.sum()))].tolist():
        boxes = {"true": true_N4[place], "given": given_N4[place], "refined": found["boxes"][place]}
        iou = {name: f"{overlaps(box[None], true_N4[place][None])[0]:.2f}" for name, box in boxes.items() if known_N[place]}
        better = f", IoU with the true box {iou['given']} → {iou['refined']}" if iou else ""
        index = int(image_N[place])
        caption = f"<b>{escape(data.classes[labels_N[place]])}</b> · {escape(data.train_name(index))}{better}"
        cards.append(f"<figure>{_picture(data, index, boxes)}<figcaption>{caption}</figcaption></figure>")
    legend = " &emsp;".join(
        f'<span style="color:{_COLOURS[name]}">■</span>&nbsp;{name}' for name in _COLOURS if name != "true" or known_N.any()
    )
    columns = "grid-template-columns:repeat(4,minmax(0,1fr))"
    gallery = f'<h3>The largest changes</h3><p>{legend}</p><div class="gallery" style="{columns}">{"".join(cards)}</div>' if cards else ""
    return Section("Boxes: given, refined, true", f"{note(said)}{numbers}{gallery}")


def mistakes(boxes_N4: np.ndarray, true_N4: np.ndarray, image_N: np.ndarray) -> dict[str, float]:
    """How boxes that overlap their object by less than 0.5 went wrong, in % of all boxes; one may be of several kinds.

    ``drift``: another object of the image is overlapped more; ``group``: more than half of several objects is covered; ``part``: more than
    0.7 of the box lies in its object. The thresholds are not the paper's, which names none.

    Args:
        image_N: of which image each is; sorted.
    """
    found = {"drift": 0, "group": 0, "part": 0}
    places = np.flatnonzero(np.diff(image_N)) + 1
    for boxes_G4, true_G4 in zip(np.split(boxes_N4, places), np.split(true_N4, places), strict=True):
        boxes, true = torch.from_numpy(boxes_G4), torch.from_numpy(true_G4)
        iou_GG = box_iou(boxes, true)
        common_GG = iou_GG / (1 + iou_GG) * (box_area(boxes)[:, None] + box_area(true))
        bad_G = iou_GG.diagonal() < 0.5
        found["drift"] += int((bad_G & (iou_GG.amax(1) > iou_GG.diagonal())).sum())
        found["group"] += int((bad_G & ((common_GG > 0.5 * box_area(true)).sum(1) > 1)).sum())
        found["part"] += int((bad_G & (common_GG.diagonal() > 0.7 * box_area(boxes))).sum())
    return {name: 100 * count / len(boxes_N4) for name, count in found.items()}


def _numbers(boxes: dict[str, np.ndarray], true_N4: np.ndarray, known_N: np.ndarray, image_N: np.ndarray) -> str:
    if not known_N.any():
        return ""
    rows = []
    for name, mine_N4 in boxes.items():
        iou_M = overlaps(mine_N4[known_N], true_N4[known_N])
        cells = [100 * float(value) for value in (iou_M.mean(), (iou_M >= 0.5).mean(), (iou_M >= 0.75).mean())]
        cells += mistakes(mine_N4[known_N], true_N4[known_N], image_N[known_N]).values()
        rows.append(row(name, "".join(f"<td>{figure(cell)}</td>" for cell in cells)))
    columns = heads(
        ["boxes", "mean IoU with the true ones, %", "of 0.5 or more, %", "of 0.75 or more, %", "drift, %", "group, %", "part, %"]
    )
    said = [
        "Of those below 0.5: drift overlaps another object more than its own, group covers more than half of several objects,",
        "part lies within its object by more than 0.7.",
    ]
    return table(f"Overlap with the {known_N.sum()} true boxes that are known", columns, rows) + note(said)


def _picture(data: DetectionData, index: int, boxes: dict[str, np.ndarray]) -> str:
    pixels = as_pixels(data.trained.image(index)).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    scale = _LARGE / max(image.size) if max(image.size) > _LARGE else max(1, _SMALL // max(image.size))
    shown = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(shown)
    for name, box in boxes.items():
        if not np.isnan(box).any():
            draw.rectangle([float(side) * scale for side in box], outline=_COLOURS[name], width=3 if name == "refined" else 2)
    alt = f"training image {index}, {', '.join(boxes)} box"
    return f'<img src="{data_uri(shown, "JPEG")}" alt="{alt}" loading="lazy" style="aspect-ratio:auto">'
