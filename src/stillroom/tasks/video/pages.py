"""The report's own part of video: accuracy by class, clips with their answers, what a video costs, and the data."""

from __future__ import annotations

from html import escape

import numpy as np
from PIL import Image

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.images.page_parts import change_cell, changes, data_uri, figure, heads, mean_over_seeds, note, row, table
from stillroom.tasks.video.data import VideoData
from stillroom.tasks.video.tracks import FLOW, RGB

_ROWS = 40  # classes of a head that are listed
_SHOWN, _FRAMES, _SIDE = 6, 6, 96  # clips, frames of each, pixels


def video_sections(report: Report, data: VideoData) -> list[Section]:
    """Accuracy by class, clips, costs, the data."""
    arms = {name: [one for one in results if "right" in one.details] for name, results in report.arms.items()}
    arms = {name: results for name, results in arms.items() if results}
    lines = "".join(f"<li>{escape(line)}</li>" for line in data.first_lines())
    by_head = [_by_class(report, arms, data, number) for number in range(len(data.heads))]
    return [*by_head, *_clips(report, arms, data), _costs(report, data), Section("The data", f"<ul>{lines}</ul>")]


def _by_class(report: Report, arms: dict[str, list[StageResult]], data: VideoData, number: int) -> Section:
    """A row for each class of a head, the leading arm's change over the baseline in the last column."""
    head, names = list(data.heads.items())[number]
    found = {arm: {one.seed: _shares(one, number, len(names)) for one in results} for arm, results in arms.items()}
    changes_SC = changes(found.get(report.baseline or "", {}), found.get(report.leading or "", {}))
    means = {arm: mean_over_seeds(list(by_seed.values())) for arm, by_seed in found.items()}
    truth_N = next(iter(arms.values()))[0].details["labels"][:, number]
    counts_C = np.bincount(truth_N, minlength=len(names))
    rows = []
    for place in np.argsort(-counts_C, kind="stable")[:_ROWS].tolist():
        cells = f"<td>{counts_C[place]}</td>" + "".join(f"<td>{figure(float(mean_C[place]))}</td>" for mean_C in means.values())
        if changes_SC is not None:
            cells += change_cell(float(changes_SC[:, place].mean()), changes_SC[:, place])
        rows.append(row(names[place], cells))
    notes = [f"How many of a class's clips have the right {escape(head)}, in %; the classes with the most clips first."]
    if changes_SC is not None:
        notes.append(f"The change is that of {escape(report.leading or '')} over {escape(report.baseline or '')}.")
    title = f"By {head}"
    return Section(title, table(title, heads([head, "clips", *arms], change=changes_SC is not None), rows) + note(notes))


def _shares(result: StageResult, number: int, classes: int) -> np.ndarray:
    """Of each class, in %: how many of its clips have the right answer; NaN without a clip."""
    labels_N, right_N = (result.details[name][:, number] for name in ("labels", "right"))
    counts_C = np.bincount(labels_N, minlength=classes)
    share_C: np.ndarray = 100 * np.divide(
        np.bincount(labels_N, right_N, classes), counts_C, out=np.full(classes, np.nan), where=counts_C > 0
    )
    return share_C


def _clips(report: Report, arms: dict[str, list[StageResult]], data: VideoData) -> list[Section]:
    """Those on which baseline and leading arm differ the most often, then others: frames, truth, answers."""
    name = report.leading if report.leading in arms else next(reversed(arms), None)
    if name is None:
        return []
    baseline = arms.get(report.baseline or "") if report.baseline != name else None
    details = arms[name][0].details
    gain_N = details["outcome"] - (baseline[0].details["outcome"] if baseline else 0)
    order = [*np.argsort(-gain_N, kind="stable")[: _SHOWN // 2], *np.argsort(gain_N, kind="stable")[: _SHOWN // 2]]
    cells = []
    for place in dict.fromkeys(map(int, order)):
        index = int(details["ids"][place])
        strips = [_strip(data.val_frames(index, _FRAMES, _SIDE, modality)) for modality in (RGB, FLOW) if modality in data.modalities]
        pictures = "".join(
            f'<img src="{data_uri(strip, "JPEG")}" alt="frames of clip {index}" loading="lazy" style="width:100%;aspect-ratio:auto">'
            for strip in strips
            if strip
        )
        said = {"truth": _told(details["labels"][place], data)}
        for arm, results in arms.items():
            found = results[0].details
            at = np.flatnonzero(found["ids"] == index)
            if len(at):
                said[arm] = _told(found["predicted"][at[0]], data, found["confidence"][at[0]])
        lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in said.items())
        cells.append(f"<figure>{pictures}<figcaption>{escape(data.val_name(index))}<dl>{lines}</dl></figcaption></figure>")
    better = f"is better than {escape(report.baseline or '')}" if baseline else "is right"
    told = note([f"First clips where {escape(name)} {better}, then the other way; first seed."])
    return [Section("Clips", f'{told}<div class="gallery" style="grid-template-columns:repeat(2,minmax(0,1fr))">{"".join(cells)}</div>')]


def _strip(frames: list[Image.Image]) -> Image.Image | None:
    """Frames side by side, small ones enlarged."""
    if not frames:
        return None
    width, height = frames[0].size
    strip = Image.new("RGB", (len(frames) * (width + 2) - 2, height), "white")
    for number, frame in enumerate(frames):
        strip.paste(frame, (number * (width + 2), 0))
    return strip


def _told(classes: np.ndarray, data: VideoData, confidence: np.ndarray | None = None) -> str:
    """The names of an answer's classes, with their probabilities."""
    names = [names[int(one)] for one, names in zip(classes, data.heads.values(), strict=True)]
    if confidence is None:
        return ", ".join(names)
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in zip(names, confidence.tolist(), strict=True))


def _costs(report: Report, data: VideoData) -> Section:
    """Multiply-adds of a video: of one view, times the views."""
    rows = []
    for arm, results in report.arms.items():
        footprint = results[0].footprint
        macs = "–" if footprint.macs is None else f"{footprint.macs / 1e6:,.1f}"
        whole = "–" if footprint.macs is None else f"{footprint.macs * data.test_views / 1e6:,.1f}"
        rows.append(row(arm, f"<td>{footprint.parameters:,}</td><td>{macs}</td><td>{data.test_views}</td><td>{whole}</td>"))
    columns = heads(["", "parameters", "10⁶ MACs a view", "views", "10⁶ MACs a video"])
    notes = ["Multiply-adds as they are counted in one forward pass; what it takes to get at optical flow, boxes or sound is not in them."]
    return Section("What a video costs", table("What a video costs", columns, rows) + note(notes))
