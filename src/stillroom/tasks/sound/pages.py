"""The report's own part of sound: what was seen and heard, the truth, and every arm's answer."""

from __future__ import annotations

from html import escape

import numpy as np
from PIL import Image

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.images.page_parts import change_cell, changes, data_uri, figure, heads, mean_over_seeds, note, row, table
from stillroom.tasks.sound.data import SoundData
from stillroom.tasks.sound.pictures import coloured, from_above, shaded, spectrogram_picture
from stillroom.tasks.sound.recordings import FINE

_SIDE = 240  # pixels that pictures are wide
_COLUMNS = 6


def sound_sections(report: Report, data: SoundData) -> list[Section]:
    """IoU of each class where there are classes, the first validation recordings, and the data."""
    arms = {name: results for name, results in report.arms.items() if results}
    classes = [_by_class(report, arms, data)] if data.target == "segmentation" else []
    lines = "".join(f"<li>{escape(line)}</li>" for line in data.first_lines())
    return [*classes, *_pictures(arms, data), Section("The data", f"<ul>{lines}</ul>")]


def _by_class(report: Report, arms: dict[str, list[StageResult]], data: SoundData) -> Section:
    """A row for each class, the leading arm's change over the baseline in the last column."""
    found = {name: {result.seed: _ious(result) for result in results if "counts" in result.details} for name, results in arms.items()}
    changes_SC = changes(found.get(report.baseline or "", {}), found.get(report.leading or "", {}))
    means = {name: mean_over_seeds(list(by_seed.values())) for name, by_seed in found.items() if by_seed}
    rows = []
    for number, name in enumerate(data.classes):
        cells = "".join(f"<td>{figure(float(mean_C[number]))}</td>" for mean_C in means.values())
        if changes_SC is not None:
            cells += change_cell(float(changes_SC[:, number].mean()), changes_SC[:, number])
        rows.append(row(name, cells))
    said = ["IoU in %, pooled over the validation set; a dash for a class that the truth does not have: it is in no mean."]
    if changes_SC is not None:
        said.append(f"The change is that of {escape(report.leading or '')} over {escape(report.baseline or '')}.")
    columns = heads(["class", *means], change=changes_SC is not None)
    return Section("By class", f"{table('IoU by class', columns, rows)}{note(said)}")


def _ious(result: StageResult) -> np.ndarray:
    counts_CC = result.details["counts"].sum(0).astype(np.float64)
    hits_C, true_C = np.diagonal(counts_CC), counts_CC.sum(1)
    unions_C = true_C + counts_CC.sum(0) - hits_C
    return 100 * np.divide(hits_C, unions_C, out=np.full(len(hits_C), np.nan), where=true_C > 0)


def _pictures(arms: dict[str, list[StageResult]], data: SoundData) -> list[Section]:
    """The first validation recordings: picture, sound, truth, and every arm's answer of the first seed."""
    shown = {name: results[0].details["pictures"] for name, results in arms.items() if "pictures" in results[0].details}
    count = min((len(pictures) for pictures in shown.values()), default=0)
    if not count:
        return []
    batch = data.val_batch(range(count))
    galleries = []
    for index in range(count):
        cells: list[str] = []
        name, truth = data.val_name(index), batch.truth[index].numpy()
        high = float(truth.max())
        cells.append(_cell(data.val_image(index), "seen"))
        cells.append(_cell(spectrogram_picture(data.spectrogram(index)), "heard"))
        cells.append(_cell(_drawn(truth, data, high), f"truth{f', up to {high:.1f} m' if data.target == 'depth' else ''}"))
        for arm, pictures in shown.items():
            answer = pictures[index].astype(np.float32) / (255 if data.target == "occupancy" else 1)
            cells.append(_cell(_drawn(answer, data, high), f"{arm}: {_score(answer, truth, data)}"))
        columns = f"grid-template-columns:repeat({min(len(cells), _COLUMNS)},minmax(0,1fr))"
        galleries.append(f'<h3>{escape(name)}</h3><div class="gallery" style="{columns}">{"".join(cells)}</div>')
    told = ["The first validation recordings, not picked by eye; first seed.", _legend(data)]
    return [Section("Seen, heard, and known by its sound", f"{note(told)}{''.join(galleries)}")]


def _legend(data: SoundData) -> str:
    channels = "The spectrogram's channels lie one above the other, low frequencies below, time to the right."
    if data.target == "occupancy":
        return f"{channels} Voxels from above, without the ceiling: the brighter, the higher; ahead is up."
    return channels + (" Metres from near (dark) to far (bright); black is not known." if data.target == "depth" else "")


def _drawn(values: np.ndarray, data: SoundData, high: float) -> Image.Image:
    if data.target == "occupancy":
        return from_above(values.reshape((FINE,) * 3))
    return shaded(values, high) if data.target == "depth" else coloured(values.astype(np.int64))


def _score(answer: np.ndarray, truth: np.ndarray, data: SoundData) -> str:
    if data.target == "occupancy":
        both, either = ((answer >= 0.5) & (truth > 0)).sum(), ((answer >= 0.5) | (truth > 0)).sum()
        return f"IoU {100 * both / max(either, 1):.0f} %"
    known = truth > 0
    if not known.any():
        return "nothing is known"
    if data.target == "depth":
        return f"MAE {np.abs(answer - truth)[known].mean():.2f} m"
    return f"{100 * (answer == truth)[known].mean():.0f} % right"


def _cell(image: Image.Image, said: str) -> str:
    size = _SIDE, max(1, round(image.height * _SIDE / image.width))
    shown = image.resize(size, Image.Resampling.NEAREST if image.width < _SIDE else Image.Resampling.BILINEAR)
    picture = f'<img src="{data_uri(shown)}" alt="{escape(said)}" loading="lazy" style="aspect-ratio:auto">'
    return f"<figure>{picture}<figcaption>{escape(said)}</figcaption></figure>"
