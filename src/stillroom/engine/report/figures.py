"""A report's figures, drawn as SVG that asks nothing of the network; names and texts are escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

from stillroom.engine.report.results import Metric, Report


@dataclass(frozen=True)
class Figure:
    """One drawing: its heading and its SVG."""

    title: str
    svg: str


# one arm's curve: for each epoch (epoch, lowest, mean, highest value over seeds)
Band = list[tuple[float, float, float, float]]

# The frame of every figure, in SVG units; the page scales them to about their size on paper.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 230, 54, 10, 10, 30


def _bands(report: Report, key: str) -> dict[str, Band]:
    bands = {}
    for arm, results in report.arms.items():
        by_epoch: dict[float, list[float]] = {}
        for row in (row for result in results for row in result.history):
            if math.isfinite(row.get(key, math.nan)):
                by_epoch.setdefault(row["epoch"], []).append(row[key])
        if by_epoch:
            bands[arm] = [(epoch, min(v), fmean(v), max(v)) for epoch, v in sorted(by_epoch.items())]
    return bands


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers within [low, high]."""
    power = 10.0 ** math.floor(math.log10(high - low))
    for step in (factor * power for factor in (5, 2, 1, 0.5, 0.2)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first >= 2:
            break
    return [i * step for i in range(first, last + 1)]


def tick_texts(marks: list[float]) -> list[str]:
    """Ticks with as many decimals as they need."""
    step = marks[1] - marks[0]
    if step < 1e-4 and max(map(abs, marks)) < 1e-2:  # as 1.85e−4: zeros behind the point would be wider than the margin
        return [f"{mark:.2e}".replace("e-0", "e-").replace("-", "−") if mark else "0" for mark in marks]
    if step < 1e-4 or max(map(abs, marks)) >= 1e5:
        return [f"{mark:.3g}".replace("-", "−") for mark in marks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{mark:.{decimals}f}".replace("-", "−") for mark in marks]


def _limits(bands: Iterable[Band], references: Iterable[float]) -> tuple[float, float]:
    """The range to show. Early epochs may run out of it where they would squash all that follows."""
    everything, settled = list(references), list(references)
    for band in bands:
        skip = len(band) // 6
        everything += [value for point in band for value in point[1:]]
        settled += [value for point in band[skip:] for value in point[1:]]
    (low, high), (calm_low, calm_high) = (min(everything), max(everything)), (min(settled), max(settled))
    if high - low > 1.5 * (calm_high - calm_low) > 0:
        low, high = calm_low, calm_high
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _curve(report: Report, key: str, metric: Metric, styles: dict[str, str], number: int) -> Figure | None:
    """A curve for each arm over epochs, with the band that its seeds span; arms that were not trained are level lines."""
    bands = _bands(report, key)
    if not bands:
        return None
    name = key.removeprefix("val/")
    still = {arm: summary.metrics[name].mean for arm, summary in report.summary().items() if arm not in bands and name in summary.metrics}
    still = {arm: value for arm, value in still.items() if key.startswith("val/") and math.isfinite(value)}
    low, high = _limits(bands.values(), still.values())
    last = max(band[-1][0] for band in bands.values())

    def x(epoch: float) -> str:
        return f"{_LEFT + (_WIDTH - _LEFT - _RIGHT) * ((epoch - 1) / (last - 1) if last > 1 else 0.5):.1f}"

    def y(value: float) -> str:
        return f"{_TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low):.1f}"

    parts, marks = [], ticks(low, high)
    for tick, text in zip(marks, tick_texts(marks), strict=True):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(tick)}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick)}" dy=".35em" text-anchor="end">{text}</text>')
    epochs = [1.0, *(tick for tick in ticks(1, last) if tick >= 2 and tick == int(tick))] if last > 1 else [1.0]
    for i, epoch in enumerate(epochs):
        text = f"{'epoch ' if i == 0 else ''}{epoch:.0f}"
        anchor = "start" if i == 0 and last > 1 else "end" if epoch == last > 1 else "middle"
        if i == 0 or float(x(epoch)) > _LEFT + 70:
            parts.append(f'<text x="{x(epoch)}" y="{_HEIGHT - 10}" text-anchor="{anchor}">{text}</text>')
    frame = f'x="{_LEFT - 2}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT + 4}" height="{_HEIGHT - _TOP - _BOTTOM}"'
    parts.append(f'<clipPath id="frame-{number}"><rect {frame}/></clipPath><g clip-path="url(#frame-{number})">')
    for arm, value in still.items():
        parts.append(f'<path class="line {styles[arm]}" d="M{_LEFT} {y(value)}H{_WIDTH - _RIGHT}"/>')
    for arm, band in bands.items():
        if len(report.arms[arm]) > 1:
            edge = [f"{x(e)} {y(top)}" for e, _, _, top in band] + [f"{x(e)} {y(bottom)}" for e, bottom, _, _ in reversed(band)]
            parts.append(f'<path class="band {styles[arm]}" d="M{"L".join(edge)}Z"/>')
    for arm, band in bands.items():
        middle = [f"{x(epoch)} {y(mean)}" for epoch, _, mean, _ in band]
        round_end = " dot" if len(middle) == 1 else ""
        parts.append(f'<path class="line {styles[arm]}{round_end}" d="M{"L".join(middle)}{"h0" if round_end else ""}"/>')
    parts.append("</g>")
    told = [f"{arm} from {metric.number(b[0][2])} to {metric.number(b[-1][2])} at epoch {b[-1][0]:.0f}" for arm, b in bands.items()]
    told += [f"{arm} at {metric.number(value)}" for arm, value in still.items()]
    unit = f" ({metric.unit})" if metric.unit else ""
    return Figure(f"{metric.label}{unit}", _svg(number, _HEIGHT, f"{metric.label}{unit} by epoch", "; ".join(told) + ".", parts))


def _dots(report: Report, styles: dict[str, str], number: int) -> Figure | None:
    """The final primary metric: a dot for each seed, a stroke at the mean."""
    metric = report.metric(report.primary)
    values = {arm: [result.metrics[report.primary] for result in results] for arm, results in report.arms.items()}
    values = {arm: finite for arm, all_ in values.items() if (finite := [value for value in all_ if math.isfinite(value)])}
    if not values:
        return None
    row = min(52, max(38, 190 // len(values)))
    height = max(_HEIGHT, row * len(values) + _TOP + _BOTTOM)
    low, high = min(map(min, values.values())), max(map(max, values.values()))
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = low - margin, high + margin

    def x(value: float) -> str:
        return f"{10 + (_WIDTH - 20) * (value - low) / (high - low):.1f}"

    parts, marks = [], ticks(low, high)
    for tick, text in zip(marks, tick_texts(marks), strict=True):
        parts.append(f'<path class="grid" d="M{x(tick)} {_TOP}V{height - _BOTTOM}"/>')
        parts.append(f'<text x="{x(tick)}" y="{height - 10}" text-anchor="middle">{text}</text>')
    for i, (arm, found) in enumerate(values.items()):
        line = _TOP + (height - _TOP - _BOTTOM) * (i + 0.68) / len(values)
        spread = metric.spread(report.summary()[arm].metrics[report.primary])
        parts.append(f'<text class="name" x="2" y="{line - 16:.1f}">{escape(arm)} <tspan class="quiet">{spread}</tspan></text>')
        parts += [f'<circle class="{styles[arm]}" cx="{x(value)}" cy="{line:.1f}" r="4.5"/>' for value in found]
        parts.append(f'<path class="line {styles[arm]} mean" d="M{x(fmean(found))} {line - 9:.1f}v18"/>')
    told = "; ".join(f"{arm}: {', '.join(map(metric.number, found))}" for arm, found in values.items())
    title = f"Final {metric.label}{f' ({metric.unit})' if metric.unit else ''}, a dot for each seed"
    return Figure(title, _svg(number, height, title, told + ".", parts))


def _svg(number: int, height: float, title: str, description: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-labelledby="title-{number} told-{number}">'
        f'<title id="title-{number}">{escape(title)}</title><desc id="told-{number}">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _of_training(name: str) -> str:
    """The heading of a curve. A term is shown as it enters the loss: arms that weigh it otherwise cannot be compared by it. What a method
    records besides has a name of two parts (see `Recorder`)."""
    if not name or "/" in name:
        return name.replace("/", ": ") or "learning rate"
    return f"{name}, {'the whole loss' if name == 'total' else 'times its weight'}"


def figures(report: Report, styles: dict[str, str]) -> list[tuple[str, list[Figure]]]:
    """The figures in groups with a heading each."""
    keys = dict.fromkeys(key for results in report.arms.values() for result in results for row in result.history for key in row)
    metrics = sorted((key for key in keys if key.startswith("val/")), key=lambda key: key != f"val/{report.primary}")
    terms = sorted((key for key in keys if key.startswith("train/")), key=lambda key: key != "train/total")
    number = 0
    dots = [_dots(report, styles, number)]
    groups: list[tuple[str, list[Figure | None]]] = [("On the validation set", dots), ("In training", [])]
    for group, chosen in ((0, metrics), (1, [*terms, *(key for key in keys if key == "lr")])):
        for key in chosen:
            number += 1
            name = key.partition("/")[2]
            metric = report.metric(name) if group == 0 else Metric(_of_training(name))
            groups[group][1].append(_curve(report, key, metric, styles, number))
    return [(title, drawn) for title, found in groups if (drawn := [figure for figure in found if figure])]
