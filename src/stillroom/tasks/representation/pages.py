"""The report's own part of representation learning: nearest neighbours as pictures, what was measured how, what collapsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.engine.task import WARNING
from stillroom.tasks.images.page_parts import data_uri, heads, note, table
from stillroom.tasks.representation.data import RepresentationData

_QUERIES = 8  # validation images whose neighbours are shown
_SIDE = 72  # pixels that pictures are shown with
_COLLAPSED = 0.02  # of the spread of features, below which they say next to nothing


class Pair(NamedTuple):
    """A training image and another that a method found for it.

    Attributes:
        query, other: ids of training images.
        accepted: whether the method went on with the other.
        said: a few words about it, e.g. its similarity.
    """

    query: int
    other: int
    accepted: bool
    said: str = ""


def representation_sections(report: Report, data: RepresentationData) -> list[Section]:
    """The nearest neighbours of the first validation images, and the data."""
    kept = {name: results[0] for name, results in report.arms.items() if "neighbours" in results[0].details}
    lines = "".join(f"<li>{escape(line)}</li>" for line in data.first_lines())
    return [*_neighbours(kept, report, data), Section("The data", f"<ul>{lines}</ul>")]


def pairs_section(title: str, data: RepresentationData, pairs: Sequence[Pair]) -> Section:
    """Training images beside those that a method found for them, and whether it took them; for a recipe's `method_sections`."""
    rows = []
    for pair in pairs:
        labels = "" if not data.labelled else _right(int(data.train_labels[pair.query]), int(data.train_labels[pair.other]))
        taken = '<span class="up">taken</span>' if pair.accepted else '<span class="down">not taken</span>'
        query, other = (_picture(data.train_image(index), f"training image {index}") for index in (pair.query, pair.other))
        rows.append(f"<tr><td>{query}</td><td>{other}</td><td>{taken}</td><td>{escape(pair.said)} {labels}</td></tr>")
    columns = heads(["image", "found", "", ""])
    return Section(title, table(title, columns, rows))


def remarks(report: Report, data: RepresentationData) -> list[str]:
    """What a reader must not miss: features that collapsed, and what cannot be scored."""
    found = []
    for name, results in report.arms.items():
        for result in results:
            if result.metrics["spread"] < _COLLAPSED or result.metrics["rank"] < 2:
                said = f"spread {result.metrics['spread']:.3f}, effective rank {result.metrics['rank']:.1f}"
                found.append(f"{WARNING}the features of {name} (seed {result.seed}) collapsed: {said}")
    if data.procedural:
        found.append("procedural data: the pictures are drawn, and say little about photographs")
    if not data.labelled:
        found.append("without labels there are no scores: the effective rank tells of a collapse, more of it is no better features")
    return found


def _neighbours(arms: Mapping[str, StageResult], report: Report, data: RepresentationData) -> list[Section]:
    """The first validation images by id, of the first seed: nobody picked them."""
    shown = [name for name in dict.fromkeys((report.baseline, report.leading)) if name is not None and name in arms]
    if not shown:
        return []
    rows = []
    count = len(arms[shown[0]].details["ids"])
    for place in np.linspace(0, count - 1, min(_QUERIES, count)).astype(int).tolist():
        number = int(arms[shown[0]].details["ids"][place])
        cells = f"<td>{_picture(data.val_image(number), f'validation image {number}')}</td>"
        for name in shown:
            details = arms[name].details
            pictures = []
            for bank, similarity in zip(details["neighbours"][place], details["similarities"][place], strict=True):
                index = int(data.bank[bank])
                right = "" if not data.labelled else _right(int(details["labels"][place]), int(data.train_labels[index]))
                pictures.append(f"{_picture(data.train_image(index), f'training image {index}')}<br>{similarity:.2f} {right}")
            cells += f"<td>{'</td><td>'.join(pictures)}</td>"
        rows.append(f"<tr>{cells}</tr>")
    columns = heads(["image"]) + "".join(f'<th scope="colgroup" colspan="{_count(arms[name])}">{escape(name)}</th>' for name in shown)
    notes = ["The nearest training images by the features of the first seed, with their cosines."]
    if data.labelled:
        notes.append("✓ of the same class, ✗ of another.")
    return [Section("Nearest neighbours", f"{table('Nearest neighbours', columns, rows)}{note(notes)}")]


def _count(result: StageResult) -> int:
    return int(result.details["neighbours"].shape[1])


def _right(label: int, other: int) -> str:
    return '<span class="up">✓</span>' if label == other else '<span class="down">✗</span>'


def _picture(image: Image.Image, named: str) -> str:
    small = image.copy()
    small.thumbnail((2 * _SIDE, 2 * _SIDE))
    tiny = ' style="image-rendering:pixelated"' if max(image.size) < _SIDE else ""
    return f'<img{tiny} src="{data_uri(small)}" width="{_SIDE}" alt="{named}" loading="lazy">'
