"""A classification report's own part: which classes distillation changed, and images on which the models differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.errors import InputError
from stillroom.tasks.images.page_parts import card, change_cell, changes, figure, gallery, heads, mean_over_seeds, note, row, table

_ROWS = 30
_IMAGES = 6
_MATRIX = 12  # classes; of more the pairs that are confused most are listed
_PAIRS = 15
_SAME, _TRUE = 0.99, 0.9  # one answer: to at least this share of the images, where no class has that share


def classification_sections(report: Report, classes: Sequence[str], image_of: Callable[[int], Image.Image]) -> list[Section]:
    """Per-class accuracy and example images, as far as the stages of `report` kept their answers (`details`).

    Shown are the teacher, the baseline, and the leading distilled arm, whichever of them there are.

    Args:
        report: with details `ids`, `labels`, `predicted` (-1: no answer), `confidence` (0 to 1), each [N], in the stages' results.
        classes: names in the order of the labels.
        image_of: a validation image by its id.

    Raises:
        InputError: a label without a class, or one image labelled differently by two stages.
    """
    roles = {"baseline": report.baseline, "distilled": report.leading, "teacher": report.teacher}
    arms = {
        role: _Arm(name, kept)
        for role, name in roles.items()
        if name is not None and (kept := [result for result in report.arms.get(name, []) if len(result.details.get("ids", ()))])
    }
    if not arms:
        return []
    return [_per_class(arms, classes), *_examples(arms, classes, image_of)]


def confusion_sections(report: Report, classes: Sequence[str]) -> list[Section]:
    """What the leading student (else the baseline, else the teacher) takes for what: a matrix; of many classes the worst pairs.

    Args:
        report: with details `ids`, `labels`, `predicted`, each [N], in the stages' results.
        classes: names in the order of the labels.
    """
    order = dict.fromkeys(name for name in (report.leading, report.baseline, report.teacher) if name is not None)
    kept = {name: [result for result in report.arms.get(name, []) if len(result.details.get("ids", ()))] for name in order}
    arms = {name: results for name, results in kept.items() if results}
    if not arms:
        return []
    counts = {name: np.mean([_confusion(result, len(classes)) for result in results], 0) for name, results in arms.items()}
    first, seeds = next(iter(arms)), len(next(iter(arms.values())))
    told = [f"Answers of {escape(first)}{', means over seeds' if seeds > 1 else ''}."]
    if len(classes) <= _MATRIX:
        html = _matrix(counts[first], classes)
        told.append("Rows are what the images are, columns what they are taken for.")
    else:
        html = _worst_pairs(counts, classes)
        if not html:
            return []
        told.append("Images of the first class that are taken for the second; the share is of that class's images.")
    return [Section("What is taken for what", f"{html}{note(told)}")]


def _confusion(result: StageResult, classes: int) -> np.ndarray:
    """Images by what they are and what they are taken for, [C, C + 1]; no answer last."""
    answers = _by_id(result)
    predicted = np.where(answers["predicted"] < 0, classes, answers["predicted"])
    return np.bincount(answers["labels"] * (classes + 1) + predicted, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def _matrix(counts_CC: np.ndarray, classes: Sequence[str]) -> str:
    shown = counts_CC if counts_CC[:, -1].any() else counts_CC[:, :-1]
    rows = []
    for k, name in enumerate(classes):
        cells = [f"<td>{f'<b>{_whole(value)}</b>' if k == column else _whole(value)}</td>" for column, value in enumerate(shown[k])]
        rows.append(row(name, "".join(cells)))
    columns = [*classes, *(["no answer"] if shown.shape[1] > len(classes) else [])]
    return table("What is taken for what", heads(["", *columns]), rows)


def _worst_pairs(counts: Mapping[str, np.ndarray], classes: Sequence[str]) -> str:
    wrong = next(iter(counts.values()))[:, :-1].copy()
    np.fill_diagonal(wrong, 0)
    images_C = np.maximum(next(iter(counts.values())).sum(1), 1)
    rows = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS].tolist():
        true, said = divmod(place, len(classes))
        if not wrong[true, said]:
            break
        cells = [f"<td>{_whole(found[true, said])} ({found[true, said] / images_C[true]:.0%})</td>" for found in counts.values()]
        rows.append(row(f"{classes[true]} as {classes[said]}", "".join(cells)))
    return table("The most confused classes", heads(["taken for another", *counts]), rows) if rows else ""


def _whole(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.1f}"


def one_answer(report: Report, classes: Sequence[str]) -> list[str]:
    """Sentences on models that give (nearly) all validation images one class, though these are of several."""
    told = []
    for name, results in report.arms.items():
        for result in results:
            predicted, labels = result.details.get("predicted", np.empty(0)), result.details.get("labels", np.empty(0))
            if len(predicted) < 2:
                continue
            said, times = np.unique(predicted, return_counts=True)
            most, count = int(said[times.argmax()]), int(times.max())
            if count >= _SAME * len(predicted) and np.unique(labels, return_counts=True)[1].max() < _TRUE * len(labels):
                what = classes[most] if most >= 0 else "nothing that is a number"
                images = f"{count} of {len(predicted)} validation images"
                told.append(f"{name}, seed {result.seed}, answers {what} to {images}: it tells no classes apart.")
    return told


@dataclass(frozen=True)
class _Arm:
    """An arm's results that kept what they answered, a seed each."""

    name: str
    results: list[StageResult]


def _per_class(arms: Mapping[str, _Arm], classes: Sequence[str]) -> Section:
    """A row for each class, the largest change first."""
    by_seed = {role: {r.seed: _class_accuracy(r, len(classes)) for r in arm.results} for role, arm in arms.items()}
    accuracy = {role: mean_over_seeds(list(values.values())) for role, values in by_seed.items()}
    changes_SC = changes(by_seed.get("baseline", {}), by_seed.get("distilled", {}))
    images_C = np.bincount(_by_id(next(iter(arms.values())).results[0])["labels"], minlength=len(classes))

    if changes_SC is not None:
        change_C = mean_over_seeds(changes_SC)
        order = np.argsort(-np.abs(np.nan_to_num(change_C)), kind="stable")
    else:
        change_C = np.full(len(classes), np.nan)
        order = np.argsort(np.nan_to_num(next(iter(accuracy.values())), nan=np.inf), kind="stable")
    order = order[images_C[order] > 0]

    marks = sorted(arms, key=list(_STYLE).index)  # the one that matters is drawn last, on top
    low = min(90.0, 10 * np.floor(min(np.nanmin(accuracy[role][order[:_ROWS]]) for role in arms) / 10))
    rows = []
    for c in order[:_ROWS].tolist():
        places = {role: 100 * (accuracy[role][c] - low) / (100 - low) for role in marks if np.isfinite(accuracy[role][c])}
        strip = "".join(f'<i class="{_STYLE[role]}" style="left:{place:.1f}%"></i>' for role, place in places.items())
        cells = [f"<td>{figure(accuracy[role][c])}</td>" for role in arms]
        if changes_SC is not None:
            cells.append(change_cell(change_C[c], changes_SC[:, c]))
        cells = [f'<td>{images_C[c]}</td><td aria-hidden="true"><div class="strip">{strip}</div></td>', *cells]
        rows.append(row(classes[c], "".join(cells)))
    caption = "Accuracy within each class, %" + (", and its change in points" if changes_SC is not None else "")
    key = "".join(f'<span><i class="{_STYLE[role]}"></i>{escape(arm.name)}</span>' for role, arm in arms.items())
    scale = f'<td aria-hidden="true"><div class="strip ends"><span>{low:.0f}</span><span>100 %</span></div></td>'
    columns = heads(["class", "images"]) + scale + heads([arm.name for arm in arms.values()], change=changes_SC is not None)
    several = changes_SC is not None and len(changes_SC) > 1
    told = _rest_note(order, change_C, images_C, changed=changes_SC is not None, several=several)
    return Section("Class by class", f'<h3>{caption}</h3><p class="key">{key}</p>{table("Accuracy by class", columns, rows)}{told}')


_STYLE = {"teacher": "teacher", "baseline": "baseline", "distilled": "d0"}


def _rest_note(order: np.ndarray, change_C: np.ndarray, images_C: np.ndarray, *, changed: bool, several: bool) -> str:
    notes = ["Means over seeds; a change with its standard deviation over seeds."] if several else []
    if len(order) > _ROWS:
        rest = order[_ROWS:]
        tail = f"changed by at most {np.nanmax(np.abs(change_C[rest])):.1f} points" if changed else "do better"
        notes.append(f"{len(rest)} further class{'es' if len(rest) > 1 else ''} {tail}.")
    if len(order):
        notes.append(f"In a class of {int(np.median(images_C[order]))} images, one image is {100 / np.median(images_C[order]):.1f} points.")
    return note(notes)


def _class_accuracy(result: StageResult, classes: int) -> np.ndarray:
    """Accuracy within each class in %, [C]; NaN for a class without images."""
    answers = _by_id(result)
    labels, predicted = answers["labels"], answers["predicted"]
    if not 0 <= labels.min() <= labels.max() < classes:
        raise InputError("classes", f"{classes} names, and labels from {labels.min()} to {labels.max()}", "a name for each label")
    images_C = np.bincount(labels, minlength=classes)
    right_C = np.bincount(labels[labels == predicted], minlength=classes)
    return np.divide(100.0 * right_C, images_C, out=np.full(classes, np.nan), where=images_C > 0)


def _examples(arms: Mapping[str, _Arm], classes: Sequence[str], image_of: Callable[[int], Image.Image]) -> list[Section]:
    """Images that distillation fixed, broke, and that no model gets right; the first of each by id, so nobody picked them."""
    every = {role: [_by_id(result) for result in arm.results] for role, arm in arms.items()}
    ids_N = _common([answers["ids"] for several in every.values() for answers in several])
    if not len(ids_N):
        return []
    answers = {role: [_rows(one, ids_N) for one in several] for role, several in every.items()}
    labels_N = next(iter(answers.values()))[0]["labels"]
    for role, several in answers.items():
        if any(not np.array_equal(one["labels"], labels_N) for one in several):
            raise InputError("details", f"other labels in arm {arms[role].name!r}", "the same label of an image in every stage")
    right = {role: np.mean([one["predicted"] == labels_N for one in several], 0) for role, several in answers.items()}
    groups: list[tuple[str, np.ndarray]] = []
    if "baseline" in arms and "distilled" in arms:
        groups.append(("Set right by distillation", (right["distilled"] > 0.5) & (right["baseline"] < 0.5)))
        groups.append(("Set wrong by distillation", (right["distilled"] < 0.5) & (right["baseline"] > 0.5)))
    groups.append(("Wrong with every model" if len(arms) > 1 else "Wrong", np.all([share == 0 for share in right.values()], 0)))
    most = max(len(several) for several in answers.values())
    told = [f"Of {len(ids_N)} validation images."]
    told += ["What a model says is what more than half of its seeds say, with their mean confidence."] if most > 1 else []
    html = [note([*told, "The first of each kind in the order of the data, not picked by eye."])]
    for title, chosen_N in groups:
        places = np.flatnonzero(chosen_N)
        cards = [_card(int(ids_N[n]), int(n), arms, answers, int(labels_N[n]), classes, image_of) for n in places[:_IMAGES].tolist()]
        html.append(gallery(title, len(places), cards))
    return [Section("What the models say", "".join(html))]


def _card(
    sample: int,
    place: int,
    arms: Mapping[str, _Arm],
    answers: Mapping[str, list[dict[str, np.ndarray]]],
    label: int,
    classes: Sequence[str],
    image_of: Callable[[int], Image.Image],
) -> str:
    """One image, what it is, and what each model says."""
    said = {
        arm.name: _say([(int(one["predicted"][place]), float(one["confidence"][place])) for one in answers[role]], label, classes)
        for role, arm in arms.items()
    }
    return card(image_of(sample), sample, escape(classes[label]), said)


def _say(answers: list[tuple[int, float]], label: int, classes: Sequence[str]) -> str:
    """What more than half of the seeds answer, with their mean confidence; `answers` are (class, confidence) of each seed."""
    classes_said, votes = np.unique([answer for answer, _ in answers], return_counts=True)
    said, most = int(classes_said[votes.argmax()]), int(votes.max())
    if 2 * most <= len(answers):
        return "seeds disagree"
    confidence = float(np.mean([confidence for answer, confidence in answers if answer == said]))
    word = escape(classes[said]) if 0 <= said < len(classes) else "no answer"
    sure = f", {100 * confidence:.0f}&nbsp;%" if np.isfinite(confidence) else ""
    seeds = f" ({most} of {len(answers)} seeds)" if most < len(answers) else ""
    mark, better = ("✓", "up") if said == label else ("✗", "down")
    return f'<span class="{better}">{mark}&nbsp;{word}</span>{sure}{seeds}'


def _by_id(result: StageResult) -> dict[str, np.ndarray]:
    """The details in the order of ids, each id once."""
    _, first = np.unique(result.details["ids"], return_index=True)
    return {name: result.details[name][first] for name in ("ids", "labels", "predicted", "confidence")}


def _common(several: list[np.ndarray]) -> np.ndarray:
    common = several[0]
    for ids in several[1:]:
        common = np.intersect1d(common, ids, assume_unique=True)
    return common


def _rows(answers: dict[str, np.ndarray], ids: np.ndarray) -> dict[str, np.ndarray]:
    places = np.searchsorted(answers["ids"], ids)
    return {name: column[places] for name, column in answers.items()}
