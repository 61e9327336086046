"""The report's own part of multi-task runs: the figures of every target, and pictures of each answer beside its truth."""

from __future__ import annotations

from html import escape

import numpy as np
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.images.page_parts import captioned, change_cell, changes, heads, mean_over_seeds, note, row, table
from stillroom.tasks.multitask.data import MultiTaskData
from stillroom.tasks.multitask.maps import shown
from stillroom.tasks.multitask.metrics import FIGURES, figure_name
from stillroom.tasks.multitask.targets import Target

_SIDE = 220  # pixels that pictures are shown with
_WRONG_WAY = 90.0  # degrees


def multitask_sections(report: Report, data: MultiTaskData) -> list[Section]:
    """Figures by target, pictures, the data."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in data.first_lines())
    return [_by_target(report, data), *_pictures(report, data), Section("The data", f"<ul>{lines}</ul>")]


def remarks(report: Report, data: MultiTaskData) -> list[str]:
    """Normals that point the wrong way."""
    said = []
    for target in (one for one in data.targets if one.kind == "normals"):
        for arm, results in report.arms.items():
            mean = float(np.mean([result.metrics.get(f"{target.name} mean angle", np.nan) for result in results]))
            if mean > _WRONG_WAY:
                said.append(f"{arm}: {target.name} are {mean:.0f} degrees off on average: do all axes point the same way?")
    return said


def _by_target(report: Report, data: MultiTaskData) -> Section:
    """A row for each figure, the leading arm's change over the baseline in the last column."""
    names = [(figure_name(target, metric), metric) for target in data.targets for metric in FIGURES[target.kind]]

    def figures(result: StageResult) -> np.ndarray:
        return np.array([result.metrics.get(name, np.nan) for name, _ in names])

    found = {arm: {result.seed: figures(result) for result in results} for arm, results in report.arms.items()}
    changes_SF = changes(found.get(report.baseline or "", {}), found.get(report.leading or "", {}))
    means = {arm: mean_over_seeds(list(by_seed.values())) for arm, by_seed in found.items()}
    rows = []
    for place, (name, metric) in enumerate(names):
        numbers = [float(mean_F[place]) for mean_F in means.values()]
        cells = "".join(f"<td>{metric.number(value) if np.isfinite(value) else '–'}</td>" for value in numbers)
        if changes_SF is not None:
            change = changes_SF[:, place]
            cells += change_cell(_mean(change), change, higher_is_better=bool(metric.higher_is_better), decimals=metric.decimals or 1)
        rows.append(row(f"{name}{f', {metric.unit}' if metric.unit else ''}", cells))
    tolerance = [f"{one.name} within {one.tolerance:.4g} of the diagonal" for one in data.targets if one.kind == "edges"]
    how = "thinned and matched one to one" if data.edge_matching else "by the distance to the nearest, without thinning or matching"
    notes = ["Pooled over the validation set's pixels with a truth. mIoU counts a class that is nowhere 0, as papers of this field do."]
    notes += [f"Edges: {'; '.join(tolerance)}, {how}."] if tolerance else []
    columns = heads(["figure", *report.arms], change=changes_SF is not None)
    return Section("By target", f"{table('Figures by target', columns, rows)}{note(notes)}")


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _pictures(report: Report, data: MultiTaskData) -> list[Section]:
    """Of the first pictures every target: its truth, and the answers of the baseline and the leading arm."""
    named = dict.fromkeys(name for name in (report.baseline, report.leading, *report.arms) if name is not None)
    arms = {name: report.arms[name][0].details for name in named if "shown" in report.arms[name][0].details}
    arms = dict(list(arms.items())[:2])
    if not arms:
        return []
    cells = []
    for place, index in enumerate(next(iter(arms.values()))["shown"].tolist()):
        pixels, truths = data.val_sample(index)
        picture = to_pil_image(pixels)
        depths = {target.name: _depths(target, truths[target.name]) for target in data.targets}
        cells.append(captioned(picture, escape(data.val_name(index)), _SIDE))
        for target in data.targets:
            cells.append(captioned(shown(target, truths[target.name], depths[target.name]), f"{escape(target.name)}, truth", _SIDE))
        for name, details in arms.items():
            cells.append(f"<figure><figcaption>{escape(name)}</figcaption></figure>")
            for target in data.targets:
                answer = shown(target, _answer(details, target, place), depths[target.name]).resize(picture.size, Image.Resampling.NEAREST)
                cells.append(captioned(answer, f"{escape(target.name)}, {escape(name)}", _SIDE))
    told = note(
        [
            f"The first pictures of the validation set, first seed: truth, and the answers of {' and '.join(map(escape, arms))}.",
            "Classes in colours, white where the truth is not known; depth from near (light) to far; directions as colours; edges bright.",
        ]
    )
    columns = f"grid-template-columns:repeat({1 + len(data.targets)},minmax(0,1fr))"
    return [Section("Every target", f'{told}<div class="gallery" style="{columns}">{"".join(cells)}</div>')]


def _depths(target: Target, truth: np.ndarray) -> tuple[float, float]:
    known = truth[np.isfinite(truth)] if target.kind == "depth" else truth[:0]
    return (float(known.min()), float(known.max())) if known.size else (0.0, 10.0)


def _answer(details: dict[str, np.ndarray], target: Target, place: int) -> np.ndarray:
    """One of the kept answers, [H, W] of classes, else [C, H, W]."""
    channels = 3 if target.kind == "normals" else 1
    sizes = details[f"shape/{target.name}"]
    start = channels * int(sizes[:place].prod(1).sum())
    height, width = (int(side) for side in sizes[place])
    answer = details[f"map/{target.name}"][start : start + channels * height * width].astype(np.float32)
    return answer.reshape(height, width) if target.kind == "classes" else answer.reshape(channels, height, width)
