"""The report's own part of image-text runs: the data, what is found for pictures, and classes by words."""

from __future__ import annotations

from html import escape

import numpy as np

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.images.page_parts import card, gallery, heads, note, row, table
from stillroom.tasks.imagetext.data import ImageTextData

_SHOWN = 8
_CLASSES = 20
_FEW = 50  # validation images


def imagetext_sections(report: Report, data: ImageTextData) -> list[Section]:
    """What each model finds, classes by words, and the data."""
    arms = {name: results[0] for name, results in report.arms.items() if "ranks" in results[0].details}
    lines = "".join(f"<li>{escape(line)}</li>" for line in data.first_lines())
    return [*_found(report, arms, data), *_classes(arms, data), Section("The data", f"<ul>{lines}</ul>")]


def _found(report: Report, arms: dict[str, StageResult], data: ImageTextData) -> list[Section]:
    """Pictures with the text that each model finds nearest: where the leading one is right, and where it is furthest off."""
    leading = arms.get(report.leading or "") or next(iter(arms.values()), None)
    if leading is None:
        return []
    ranks_N = leading.details["ranks"]
    right = np.flatnonzero(ranks_N == 0)
    wrong = np.flatnonzero(ranks_N)[np.argsort(-ranks_N[ranks_N > 0], kind="stable")]
    spread = right[np.unique(np.linspace(0, len(right) - 1, min(_SHOWN, len(right))).astype(int))] if len(right) else right
    cards = {title: [_card(int(index), arms, data) for index in chosen] for title, chosen in (("right", spread), ("wrong", wrong[:_SHOWN]))}
    said = note(["The nearest of all validation texts by each model, first seed. Of those that are wrong the furthest off stand first."])
    shown = gallery("Its own text is found", len(right), cards["right"]) + gallery("Another text is nearer", len(wrong), cards["wrong"])
    return [Section("What is found for a picture", f"{said}{shown}")]


def _card(index: int, arms: dict[str, StageResult], data: ImageTextData) -> str:
    answers = {}
    for name, result in arms.items():
        rank, nearest = int(result.details["ranks"][index]), int(result.details["predicted"][index])
        answers[name] = escape(data.caption(nearest)) + ("" if rank == 0 else f" <small>(its own is no. {rank + 1})</small>")
    return card(data.val_image(index), index, escape(data.captions_of(index)[0]), answers)


def _classes(arms: dict[str, StageResult], data: ImageTextData) -> list[Section]:
    zero = data.zero_shot
    kept = {name: result.details["zero_top"] for name, result in arms.items() if "zero_top" in result.details}
    if zero is None or not kept:
        return []
    rows = []
    for number, name in enumerate(zero.classes[:_CLASSES]):
        of = zero.images.labels == number
        cells = "".join(f"<td>{100 * (top[of, 0] == number).mean():.1f}</td>" for top in kept.values())
        rows.append(row(name, f"<td>{int(of.sum())}</td>{cells}"))
    template = escape(repr(data.templates[0]))
    said = note([f"Top-1 in %, by {len(data.templates)} templates such as {template}; nothing was trained on these classes."])
    return [Section("Classes by words", said + table("Zero-shot top-1 by class", heads(["class", "images", *kept]), rows))]


def remarks(report: Report, data: ImageTextData) -> list[str]:
    """That pairs are drawn, where they are; and what gives a wrong picture of a score."""
    found = ["Procedural data: the pictures and captions are drawn, so nothing is said of real ones."] if data.source.drawn else []
    count = len(data.evaluator().own)
    if count < _FEW:
        found.append(f"There are only {count} validation images: a text is easily found among so few; one image is {100 / count:.1f} %.")
    return found
