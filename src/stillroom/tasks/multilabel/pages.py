"""A multi-label report's own part: which labels distillation changed, and images on which the models differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.classification import multilabel_average_precision

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.images.page_parts import card, change_cell, changes, figure, gallery, heads, mean_over_seeds, note, row, table

_ROWS = 30
_IMAGES = 6


def multilabel_sections(report: Report, classes: Sequence[str], image_of: Callable[[int], Image.Image]) -> list[Section]:
    """Average precision of each label and example images, as far as the stages of `report` kept their answers (`details`).

    Shown are the baseline, the leading distilled arm and the teacher, whichever of them there are.

    Args:
        report: with details `ids` [N], `labels` and `scores` [N, K] in the stages' results.
        classes: names of the labels.
        image_of: a validation image by its id.
    """
    named = dict.fromkeys(name for name in (report.baseline, report.leading, report.teacher) if name is not None)
    kept = {name: [result for result in report.arms.get(name, []) if len(result.details.get("ids", ()))] for name in named}
    arms = {name: results for name, results in kept.items() if results}
    if not arms:
        return []
    return [_by_label(arms, report, classes), *_examples(arms, report, classes, image_of)]


def _by_label(arms: Mapping[str, list[StageResult]], report: Report, classes: Sequence[str]) -> Section:
    """A row for each label, the largest change first; means over seeds."""
    found = {name: {result.seed: _precisions(result) for result in results} for name, results in arms.items()}
    means = {name: mean_over_seeds(list(by_seed.values())) for name, by_seed in found.items()}
    images_K = next(iter(arms.values()))[0].details["labels"].sum(0)
    compared = report.baseline != report.leading
    changes_SK = changes(found.get(report.baseline or "", {}), found.get(report.leading or "", {})) if compared else None
    change_K = next(iter(means.values())) if changes_SK is None else mean_over_seeds(changes_SK)
    order = np.argsort(-np.abs(np.nan_to_num(change_K)), kind="stable")
    rows = []
    for k in order[:_ROWS].tolist():
        cells = [f"<td>{figure(means[name][k])}</td>" for name in arms]
        if changes_SK is not None:
            cells.append(change_cell(change_K[k], changes_SK[:, k]))
        rows.append(row(classes[k], f"<td>{images_K[k]}</td>{''.join(cells)}"))
    several = changes_SK is not None and len(changes_SK) > 1
    notes = ["Means over seeds; a change with its standard deviation over seeds."] if several else []
    if len(order) > _ROWS:
        notes.append(f"The {len(order) - _ROWS} labels that changed least are left out.")
    columns = heads(["label", "images", *arms], change=changes_SK is not None)
    numbers = table("Average precision by label", columns, rows)
    return Section("Label by label", f"<p>Average precision of each label, %</p>{numbers}{note(notes)}")


def _precisions(result: StageResult) -> np.ndarray:
    """Average precision of each label in %, [K]; NaN for one that no image has."""
    labels, scores = torch.from_numpy(result.details["labels"]), torch.from_numpy(result.details["scores"])
    seen = labels.any(0).numpy()
    found = np.full(len(seen), np.nan)
    if seen.any():
        several = multilabel_average_precision(scores, labels.long(), num_labels=len(seen), average="none").reshape(-1).numpy()
        found[seen] = 100 * several[seen]
    return found


def _examples(
    arms: Mapping[str, list[StageResult]], report: Report, classes: Sequence[str], image_of: Callable[[int], Image.Image]
) -> list[Section]:
    """Images with more and with fewer labels right by distillation; the first of each by id, of the first seed, so nobody picked them."""
    first = {name: results[0].details for name, results in arms.items()}
    before, after = first.get(report.baseline or ""), first.get(report.leading or "")
    if before is None or after is None or before is after or not np.array_equal(before["ids"], after["ids"]):
        return []
    wrong = [((one["scores"] > 0.5) != one["labels"]).sum(1) for one in (before, after)]
    html = [note(["What the first seed says, at a probability of 1/2. The first images of each kind, not picked by eye."])]
    groups = {"More labels right by distillation": wrong[1] < wrong[0], "Fewer labels right by distillation": wrong[1] > wrong[0]}
    for title, chosen_N in groups.items():
        places = np.flatnonzero(chosen_N)
        cards = [_card(place, first, classes, image_of(int(before["ids"][place]))) for place in places[:_IMAGES].tolist()]
        html.append(gallery(title, len(places), cards))
    return [Section("What the models say", "".join(html))]


def _card(place: int, answers: Mapping[str, Mapping[str, np.ndarray]], classes: Sequence[str], image: Image.Image) -> str:
    """One image, its labels, and what each model says."""
    one = next(iter(answers.values()))
    true = [escape(classes[k]) for k in np.flatnonzero(one["labels"][place]).tolist()]
    said = {name: _said(found, place, classes) for name, found in answers.items()}
    return card(image, int(one["ids"][place]), ", ".join(true) or "no label", said)


def _said(found: Mapping[str, np.ndarray], place: int, classes: Sequence[str]) -> str:
    """The labels that a model gives, marked as right or wrong, and those that it misses."""
    marks = []
    for k in np.flatnonzero((found["scores"][place] > 0.5) | (found["labels"][place] > 0)).tolist():
        given, true = found["scores"][place][k] > 0.5, found["labels"][place][k] > 0
        mark, better = ("✓", "up") if given and true else ("✗", "down") if given else ("missed:", "down")
        marks.append(f'<span class="{better}">{mark}&nbsp;{escape(classes[k])}</span>')
    return ", ".join(marks) or "no label"
