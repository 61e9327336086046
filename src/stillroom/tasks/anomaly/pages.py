"""The anomaly task's part of a report: figures by category, the worst mistakes, scores and ROC, the levels, the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.anomaly.inspected import GOOD
from stillroom.tasks.anomaly.maps import heat
from stillroom.tasks.anomaly.metrics import FIGURES, METRICS
from stillroom.tasks.images.page_parts import card, data_section, figure, heads, note, row, table

if TYPE_CHECKING:
    from stillroom.tasks.anomaly.data import AnomalyData

_MISTAKES = 3  # of each kind that a category shows
_BINS = 24
_SIDE = 160  # pixels of a picture of the gallery
_WIDTH, _HEIGHT, _EDGE = 400, 200, 30  # of a drawing, in its own units


def anomaly_sections(report: Report, data: AnomalyData) -> list[Section]:
    """All of them, of the first seed of the leading arm, the table of categories over all seeds."""
    arm = report.leading or next(iter(report.arms))
    shown = report.arms[arm][0]
    sections = [categories_section(report, data)]
    if shown.details.get("map") is not None and data.tested:
        sections += [mistakes_section(shown, data, arm), curves_section(shown, data, arm), levels_section(shown, data, arm)]
    return [*sections, thresholds_section(shown, data, arm), data_section(data, "category")]


def remarks(report: Report, data: AnomalyData) -> list[str]:
    """What the threshold was made of; that nothing is known where there was nothing to test on."""
    quantile = report.settings.get("quantile")
    made = f"Thresholds are the {quantile} quantile of the scores of {int(data.held_out_N.sum())} held-out good pictures, whose distance "
    made += "chose the epochs too; no anomalous picture was looked at."
    if data.tested:
        return [made]
    return [f"{made} There are good pictures alone: nothing says what this finds."]


def categories_section(report: Report, data: AnomalyData) -> Section:
    """A row for each category and arm, the mean over the seeds, and the mean over the categories."""
    names = [name for name in FIGURES if any(name in result.details for results in report.arms.values() for result in results)]
    rows = []
    for k, category in enumerate([*data.classes, "mean"]):
        for arm, results in report.arms.items():
            values = []
            for name in names:
                found = [_of_category(result, name, k, len(data.classes)) for result in results]
                values.append(figure(float(np.mean(found))) if found else figure(math.nan))
            rows.append(row(f"{category}, {arm}", "".join(f"<td>{value}</td>" for value in values)))
    said = "Means over the seeds; a dash where a category has no good, no anomalous or no masked picture, which the mean leaves out."
    return Section(
        "By category", table("Figures by category", heads(["category, arm", *(METRICS[name].label for name in names)]), rows) + note([said])
    )


def _of_category(result: StageResult, name: str, category: int, count: int) -> float:
    """A figure of a category; of the number behind the last one the mean over all."""
    if category == count:
        return result.metrics.get(name, math.nan)
    values = result.details[name][result.details["category"] == category]
    return float(values[0]) if len(values) else math.nan


def mistakes_section(result: StageResult, data: AnomalyData, arm: str) -> Section:
    """For each category the anomalous pictures with the lowest scores and the good ones with the highest, with map, overlay and truth."""
    details, parts = result.details, []
    for k, category in enumerate(data.classes):
        mine = np.flatnonzero(details["category"] == k)
        bad = details["anomalous"][mine] > 0
        order = details["score"][mine].argsort(kind="stable")
        missed, alarmed = mine[order][bad[order]][:_MISTAKES], mine[order][~bad[order]][::-1][:_MISTAKES]
        cards = [_card(int(i), details, data) for i in (*missed, *alarmed)]
        parts.append(f'<h3>{escape(category)}</h3><div class="gallery">{"".join(cards)}</div>')
    said = f"Of {arm}, seed {result.seed}: the anomalous pictures with the lowest scores, then the good ones with the highest. Each as "
    said += "input beside map (white at twice the threshold, or at its own maximum), overlay beside truth."
    return Section("The worst mistakes", note([said]) + "".join(parts))


def _card(index: int, details: dict[str, np.ndarray], data: AnomalyData) -> str:
    number = int(details["ids"][index])
    score, threshold = float(details["score"][index]), float(details["threshold"][index])
    picture = data.preparation(data.val_image(number))
    small = interpolate(picture[None].float(), (_SIDE, _SIDE), mode="bilinear", antialias=True)[0].round().to(torch.uint8)
    map_SS = interpolate(torch.from_numpy(details["map"][index].astype(np.float32))[None, None], (_SIDE, _SIDE), mode="bilinear")[0, 0]
    hot = heat(map_SS, 0.0, max(2 * threshold, float(map_SS.max())))
    overlay = (0.5 * small.float() + 0.5 * hot.float()).to(torch.uint8)
    mask = interpolate(data.mask(number)[None, None].float(), (_SIDE, _SIDE))[0] == 1
    truth = torch.where(mask, torch.tensor([255, 255, 255], dtype=torch.uint8)[:, None, None], small // 3)
    four = torch.cat([torch.cat([small, hot], 2), torch.cat([overlay, truth], 2)], 1).permute(1, 2, 0).numpy()
    kind = str(data.kinds[number])
    said = f"{score:.3g}, {'above' if score > threshold else 'not above'} the threshold of {threshold:.3g}"
    return card(Image.fromarray(four), number, escape(kind), {"score": said, "file": escape(data.val_name(number))})


def curves_section(result: StageResult, data: AnomalyData, arm: str) -> Section:
    """For each category a histogram of the scores and the ROC curve."""
    parts = []
    for k, category in enumerate(data.classes):
        mine = result.details["category"] == k
        scores, bad = result.details["score"][mine], result.details["anomalous"][mine] > 0
        if not len(scores):
            continue
        drawings = _histogram(scores, bad, float(result.details["threshold"][mine][0]), category)
        if bad.any() and not bad.all():
            drawings += _roc(scores, bad, category)
        parts.append(f'<h3>{escape(category)}</h3><div class="figures">{drawings}</div>')
    said = f"Of {arm}, seed {result.seed}. The stroke is the threshold, from held-out good pictures."
    return Section("Scores and ROC", note([said]) + "".join(parts))


def _histogram(scores: np.ndarray, bad: np.ndarray, threshold: float, category: str) -> str:
    low, high = min(float(scores.min()), threshold), max(float(scores.max()), threshold)
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    counts = [np.histogram(scores[which], edges)[0] for which in (~bad, bad)]
    top = max(1, int(max(one.max() for one in counts)))
    width = (_WIDTH - 2 * _EDGE) / _BINS
    bars = []
    for colour, one, shift in (("#3b7dd8", counts[0], 0.0), ("#d8593b", counts[1], width / 2)):
        for i, number in enumerate(one.tolist()):
            height = (_HEIGHT - 2 * _EDGE) * number / top
            place = f'x="{_EDGE + i * width + shift:.1f}" y="{_HEIGHT - _EDGE - height:.1f}"'
            bars.append(f'<rect {place} width="{width / 2:.1f}" height="{height:.1f}" fill="{colour}"/>')
    x = _EDGE + (_WIDTH - 2 * _EDGE) * (threshold - edges[0]) / (edges[-1] - edges[0])
    bars.append(f'<path d="M{x:.1f} {_EDGE}V{_HEIGHT - _EDGE}" stroke="currentColor" stroke-dasharray="4 3"/>')
    bars.append(_text(_EDGE, _HEIGHT - 10, f"{low:.3g}") + _text(_WIDTH - _EDGE, _HEIGHT - 10, f"{high:.3g}", "end"))
    bars.append(_text(_EDGE, 18, f"good ({int((~bad).sum())})", fill="#3b7dd8"))
    bars.append(_text(_WIDTH - _EDGE, 18, f"anomalous ({int(bad.sum())})", "end", fill="#d8593b"))
    return _drawing(f"Scores of {category}: good and anomalous pictures, threshold {threshold:.3g}", bars)


def _roc(scores: np.ndarray, bad: np.ndarray, category: str) -> str:
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # equal scores are taken together
    found = np.append(0.0, np.cumsum(bad[order])[last] / bad.sum())
    false = np.append(0.0, np.cumsum(~bad[order])[last] / (~bad).sum())
    side = _HEIGHT - 2 * _EDGE
    points = "L".join(f"{_EDGE + side * x:.1f} {_HEIGHT - _EDGE - side * y:.1f}" for x, y in zip(false, found, strict=True))
    frame = f'<rect x="{_EDGE}" y="{_EDGE}" width="{side}" height="{side}" fill="none" stroke="currentColor" opacity=".3"/>'
    curve = f'<path d="M{points}" fill="none" stroke="#d8593b" stroke-width="2"/>'
    texts = _text(_EDGE, _HEIGHT - 10, "good pictures above a threshold") + _text(_EDGE, 18, "anomalous pictures above it")
    return _drawing(f"ROC of {category}", [frame, curve, texts])


def _text(x: float, y: float, text: str, anchor: str = "start", fill: str = "currentColor") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{fill}" font-size="12">{escape(text)}</text>'


def _drawing(title: str, parts: Sequence[str]) -> str:
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
        f"{''.join(parts)}</svg><figcaption>{escape(title)}</figcaption></figure>"
    )


def levels_section(result: StageResult, data: AnomalyData, arm: str) -> Section:
    """How far student and teacher are apart on each level: in good pictures, and in anomalous ones outside the defect and in it."""
    details = result.details
    bad = details["anomalous"] > 0
    columns = {
        "good pictures": details["outside"][~bad],
        "anomalous, beside the defect": details["outside"][bad],
        "in the defect": details["inside"][bad],
    }
    means = {name: _column_means(values) for name, values in columns.items()}
    rows = []
    for level in range(details["outside"].shape[1]):
        values = [means[name][level] for name in columns]
        ratio = values[2] / values[0] if values[0] else math.nan
        cells = [f"{value:.4g}" if math.isfinite(value) else figure(math.nan) for value in values]
        rows.append(row(f"level {level + 1}", "".join(f"<td>{cell}</td>" for cell in (*cells, figure(ratio)))))
    said = f"Of {arm}, seed {result.seed}: mean of 1 - cosine, before levels are combined. The last column is the defect's to the good's."
    return Section(
        "Teacher and student, level by level", table("Distance by level", heads(["level", *columns, "ratio"]), rows) + note([said])
    )


def _column_means(values_NK: np.ndarray) -> np.ndarray:
    """Without NaN; NaN of a column that has no number."""
    known_K = np.isfinite(values_NK).sum(0)
    sums_K = np.nansum(values_NK, 0)
    return np.divide(sums_K, known_K, out=np.full(values_NK.shape[1], math.nan), where=known_K > 0)


def thresholds_section(result: StageResult, data: AnomalyData, arm: str) -> Section:
    """Each category's threshold, of the first seed."""
    found: list[Any] = []
    for k, category in enumerate(data.classes):
        mine = result.details.get("category") == k
        values = result.details["threshold"][mine]
        held = int((data.held_out_N & (data.trained_labels == k)).sum())
        found.append(row(category, f"<td>{values[0]:.5g}</td><td>{held}</td>" if len(values) else "<td>–</td><td>–</td>"))
    kinds = sorted({str(kind) for kind in data.kinds} - {GOOD}) if data.tested else []
    said = [f"Of {arm}, seed {result.seed}, with the weights that are shipped."]
    said += [f"Kinds of defects: {escape(', '.join(kinds))}."] if kinds else []
    return Section("Thresholds", table("Thresholds", heads(["category", "threshold", "held-out good pictures"]), found) + note(said))
