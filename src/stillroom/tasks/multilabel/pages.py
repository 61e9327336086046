"""A multi-label report's own part: which labels distillation changed, and images on which the models differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.classification import multilabel_average_precision

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.classification.pages import change_cell, data_uri, figure

_ROWS = 30
_IMAGES = 6
_TINY = 64  # pixels; images up to this size are enlarged without smoothing


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
    means = {name: _mean(np.array(list(by_seed.values()))) for name, by_seed in found.items()}
    images_K = next(iter(arms.values()))[0].details["labels"].sum(0)
    before, after = found.get(report.baseline or "", {}), found.get(report.leading or "", {})
    seeds = sorted(set(before) & set(after)) if report.baseline != report.leading else []
    changes_SK = np.array([after[seed] - before[seed] for seed in seeds]) if seeds else None
    change_K = next(iter(means.values())) if changes_SK is None else _mean(changes_SK)
    order = np.argsort(-np.abs(np.nan_to_num(change_K)), kind="stable")
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in arms)
    heads += '<th scope="col" class="first">change</th>' if changes_SK is not None else ""
    rows = []
    for k in order[:_ROWS].tolist():
        cells = [f"<td>{figure(means[name][k])}</td>" for name in arms]
        if changes_SK is not None:
            cells.append(change_cell(change_K[k], changes_SK[:, k]))
        rows.append(f'<tr><th scope="row">{escape(classes[k])}</th><td>{images_K[k]}</td>{"".join(cells)}</tr>')
    notes = ["Means over seeds; a change with its standard deviation over seeds."] if len(seeds) > 1 else []
    if len(order) > _ROWS:
        notes.append(f"The {len(order) - _ROWS} labels that changed least are left out.")
    html = (
        "<p>Average precision of each label, %</p>"
        '<div class="wide" tabindex="0" role="region" aria-label="Average precision by label">'
        '<table class="numbers" aria-label="Average precision by label">'
        f'<thead><tr><th scope="col">label</th><th scope="col">images</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<p class="note">{" ".join(notes)}</p>'
    )
    return Section("Label by label", html)


def _precisions(result: StageResult) -> np.ndarray:
    """Average precision of each label in %, [K]; NaN for one that no image has."""
    labels, scores = torch.from_numpy(result.details["labels"]), torch.from_numpy(result.details["scores"])
    seen = labels.any(0).numpy()
    found = np.full(len(seen), np.nan)
    if seen.any():
        several = multilabel_average_precision(scores, labels.long(), num_labels=len(seen), average="none").reshape(-1).numpy()
        found[seen] = 100 * several[seen]
    return found


def _mean(values_SK: np.ndarray) -> np.ndarray:
    """Over seeds; NaN where no seed knows."""
    known_K = np.isfinite(values_SK).sum(0)
    return np.divide(np.nansum(values_SK, 0), known_K, out=np.full(values_SK.shape[1], np.nan), where=known_K > 0)


def _examples(
    arms: Mapping[str, list[StageResult]], report: Report, classes: Sequence[str], image_of: Callable[[int], Image.Image]
) -> list[Section]:
    """Images with more and with fewer labels right by distillation; the first of each by id, of the first seed, so nobody picked them."""
    first = {name: results[0].details for name, results in arms.items()}
    before, after = first.get(report.baseline or ""), first.get(report.leading or "")
    if before is None or after is None or before is after or not np.array_equal(before["ids"], after["ids"]):
        return []
    wrong = [((one["scores"] > 0.5) != one["labels"]).sum(1) for one in (before, after)]
    html = ['<p class="note">What the first seed says, at a probability of 1/2. The first images of each kind, not picked by eye.</p>']
    groups = {"More labels right by distillation": wrong[1] < wrong[0], "Fewer labels right by distillation": wrong[1] > wrong[0]}
    for title, chosen_N in groups.items():
        places = np.flatnonzero(chosen_N)
        html.append(f"<h3>{title}: {len(places)} image{'' if len(places) == 1 else 's'}</h3>")
        cards = [_card(place, first, classes, image_of(int(before["ids"][place]))) for place in places[:_IMAGES].tolist()]
        html.append(f'<div class="gallery">{"".join(cards)}</div>' if cards else "")
    return [Section("What the models say", "".join(html))]


def _card(place: int, answers: Mapping[str, Mapping[str, np.ndarray]], classes: Sequence[str], image: Image.Image) -> str:
    """One image, its labels, and what each model says."""
    one = next(iter(answers.values()))
    true = [escape(classes[k]) for k in np.flatnonzero(one["labels"][place]).tolist()]
    lines = [f"<dt>{escape(name)}</dt><dd>{_said(found, place, classes)}</dd>" for name, found in answers.items()]
    tiny = ' class="tiny"' if max(image.size) <= _TINY else ""
    names = ", ".join(true) or "no label"
    number = int(one["ids"][place])
    return (
        f'<figure><img{tiny} src="{data_uri(image)}" alt="validation image {number}, {names}" loading="lazy">'
        f"<figcaption><b>{names}</b> · no. {number}<dl>{''.join(lines)}</dl></figcaption></figure>"
    )


def _said(found: Mapping[str, np.ndarray], place: int, classes: Sequence[str]) -> str:
    """The labels that a model gives, marked as right or wrong, and those that it misses."""
    marks = []
    for k in np.flatnonzero((found["scores"][place] > 0.5) | (found["labels"][place] > 0)).tolist():
        given, true = found["scores"][place][k] > 0.5, found["labels"][place][k] > 0
        mark, better = ("✓", "up") if given and true else ("✗", "down") if given else ("missed:", "down")
        marks.append(f'<span class="{better}">{mark}&nbsp;{escape(classes[k])}</span>')
    return ", ".join(marks) or "no label"
