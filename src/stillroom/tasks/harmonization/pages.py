"""The report's own part of harmonization: errors by the foreground's share, and pictures beside the truth."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
from PIL import Image

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.harmonization.data import HarmonyData
from stillroom.tasks.harmonization.metrics import in_bins
from stillroom.tasks.images.page_parts import change_cell, changes, data_uri, figure, heads, note, row, table

_SIDE = 160  # pixels that pictures are shown with
_AMPLIFIED = 4  # times that errors are enlarged


def harmonization_sections(report: Report, data: HarmonyData) -> list[Section]:
    """Errors by the foreground's share, the data, and the first validation composites."""
    kept = {name: [result for result in results if "share" in result.details] for name, results in report.arms.items()}
    arms = {name: results for name, results in kept.items() if results}
    return [_by_share(report, arms), *_pictures(arms, data), _met(data)]


def _by_share(report: Report, arms: Mapping[str, list[StageResult]]) -> Section:
    """A row for each bin of the paper."""
    found = {name: {result.seed: _errors(result) for result in results} for name, results in arms.items()}
    changes_SC = changes(found.get(report.baseline or "", {}), found.get(report.leading or "", {}))
    bins = in_bins(next(iter(arms.values()))[0].details["share"])
    rows = []
    for number, ((low, high), inside_N) in enumerate(bins.items()):
        cells = [f"<td>{figure(float(np.mean([errors[number] for errors in by_seed.values()])))}</td>" for by_seed in found.values()]
        if changes_SC is not None:
            cells.append(change_cell(float(changes_SC[:, number].mean()), changes_SC[:, number], higher_is_better=False))
        rows.append(row(f"{low} to {high} %", f"<td>{int(inside_N.sum())}</td>{''.join(cells)}"))
    notes = []
    if changes_SC is not None:
        notes.append(f"The change is that of {escape(report.leading or '')} over {escape(report.baseline or '')}: below 0 is better.")
    columns = heads(["foreground", "composites", *arms], change=changes_SC is not None)
    said = "<p>fMSE by the share of the picture that the foreground takes</p>"
    return Section("By the size of the foreground", f"{said}{table('fMSE by the share of the foreground', columns, rows)}{note(notes)}")


def _errors(result: StageResult) -> np.ndarray:
    """fMSE of each bin; NaN for one without pictures."""
    outcome_N = result.details["outcome"]
    return np.array([outcome_N[inside].mean() if inside.any() else np.nan for inside in in_bins(result.details["share"]).values()])


def _met(data: HarmonyData) -> Section:
    lines = "".join(f"<li>{escape(line)}</li>" for line in data.first_lines())
    return Section("The data", f"<ul>{lines}</ul>")


def _pictures(arms: Mapping[str, list[StageResult]], data: HarmonyData) -> list[Section]:
    """The first validation composites: what was given, every arm's picture of the first seed, the truth, and what is wrong where."""
    shown = {name: results[0].details["pictures"] for name, results in arms.items() if "pictures" in results[0].details}
    count = min((len(pictures) for pictures in shown.values()), default=0)
    if not count:
        return []
    batch = data.val_batch(range(count))
    truth, masks = data.pixels(batch.reals).numpy(), batch.masks.numpy()
    cells: list[str] = []
    for index in range(count):
        box = _box(masks[index, 0])
        name = data.val_name(index)
        cells.append(_cell(np.repeat(255 * masks[index], 3, 0), "mask", name, None))
        for arm, pictures in shown.items():
            error = float((masks[index] * (pictures[index] - truth[index]) ** 2).sum() / (3 * masks[index].sum() + 1e-6))
            cells.append(_cell(pictures[index], arm, name, box, f" · {error:.0f}"))
        cells.append(_cell(truth[index], "truth", name, box))
        last = list(shown)[-1]
        wrong = _AMPLIFIED * np.abs(shown[last][index] - truth[index])
        cells.append(_cell(wrong, f"error of {last}, × {_AMPLIFIED}", name, box))
    columns = f"grid-template-columns:repeat({3 + len(shown)},minmax(0,1fr))"
    told = note(["The first validation composites, not picked by eye. Below each picture its foreground enlarged, and fMSE. First seed."])
    return [Section("Pictures", f'{told}<div class="gallery" style="{columns}">{"".join(cells)}</div>')]


def _box(mask_HW: np.ndarray) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of a square around the foreground, inside the picture; None where there is none."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    if not len(rows):
        return None
    side = min(max(rows[-1] - rows[0], columns[-1] - columns[0]) + 5, *mask_HW.shape)
    top = int(np.clip((rows[0] + rows[-1] + 1 - side) // 2, 0, mask_HW.shape[0] - side))
    left = int(np.clip((columns[0] + columns[-1] + 1 - side) // 2, 0, mask_HW.shape[1] - side))
    return left, top, left + int(side), top + int(side)


def _cell(picture_3HW: np.ndarray, title: str, name: str, box: tuple[int, int, int, int] | None, said: str = "") -> str:
    image = Image.fromarray(np.moveaxis(np.clip(picture_3HW, 0, 255).astype(np.uint8), 0, -1))
    shown = [image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)]
    if box is not None:
        shown.append(image.crop(box).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    both = Image.new("RGB", (_SIDE, 2 * _SIDE + 4), "white")
    for number, part in enumerate(shown):
        both.paste(part, (0, number * (_SIDE + 4)))
    said_of = escape(f"{title} of {name}")
    picture = f'<img src="{data_uri(both, "JPEG")}" alt="{said_of}" loading="lazy" style="aspect-ratio:auto">'
    return f"<figure>{picture}<figcaption><b>{escape(title)}</b>{said}</figcaption></figure>"
