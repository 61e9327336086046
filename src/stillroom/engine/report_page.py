"""A report for people: how numbers are written, the sentence that says what distillation bought, the curves, the page.

The page is one file that asks nothing of the network: its style and its figures (SVG drawn here) are inside, it runs no script, and its
content security policy forbids both. `report.html` beside this module is its template; names and texts are escaped there, or here where
they go into a figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from statistics import fmean
from typing import TYPE_CHECKING

import jinja2

if TYPE_CHECKING:
    from stillroom.engine.report import Gain, Report, Spread

NOTHING = "–"
_STYLES = 6  # how many colours for distilled arms the template has


@dataclass(frozen=True)
class Metric:
    """How a metric is written.

    Attributes:
        label: for people.
        unit: "%" or another, or none.
        decimals: how many; None for four significant digits.
        higher_is_better: None where neither direction is.
    """

    label: str
    unit: str = ""
    decimals: int | None = None
    higher_is_better: bool | None = None

    def number(self, value: float, sign: str = "-") -> str:
        """The value without its unit; `sign` "+" puts one before positive values, too."""
        if not math.isfinite(value):
            return "n/a"
        text = format(value, f"{sign}.{self.decimals}f" if self.decimals is not None else f"{sign}.4g")
        return (text.lstrip("+-") if float(text) == 0 else text).replace("-", "−")

    def spread(self, spread: Spread, sign: str = "-") -> str:
        """Mean ± standard deviation, or the mean alone for one seed."""
        mean = self.number(spread.mean, sign)
        return mean if spread.std is None or not math.isfinite(spread.std) else f"{mean} ± {self.number(spread.std)}"

    @property
    def difference_unit(self) -> str:
        """What a difference is counted in, with a space before it."""
        return " points" if self.unit == "%" else f" {self.unit}" if self.unit else ""


COMMON_METRICS = {
    "top1": Metric("top-1", "%", 1, True),
    "top5": Metric("top-5", "%", 1, True),
    "nll": Metric("NLL", "nats", 3, False),
    "ece": Metric("calibration error", "%", 1, False),
    "agreement": Metric("agreement with teacher", "%", 1),
}


def metric_of(report: Report, name: str) -> Metric:
    """How the report writes a metric."""
    return report.shown.get(name) or COMMON_METRICS.get(name) or Metric(name)


def count(value: float | None) -> str:
    """A large count in three digits: 1.23 M; a dash for None."""
    if value is None:
        return NOTHING
    for size, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size * 0.9995:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{suffix}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """0.4 s, 42 s, 3 min 20 s, 2 h 5 min; a dash for no time at all."""
    if not seconds > 0:
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def headline(report: Report) -> str:
    """What distillation bought, in a few plain sentences, and how sure that is."""
    summary, metric = report.summary(), metric_of(report, report.primary)
    several = len(report.distilled) > 1 and report.subject is None
    arm = report.leading or report.baseline or next(iter(report.arms))
    reached = summary[arm].metrics[report.primary]
    small = report.arms[arm][0].footprint
    if not math.isfinite(reached.mean):
        return f"{arm} has no finite {metric.label}: training diverged with at least one seed."

    who = f"The student of {count(small.parameters)} parameters" if report.leading else f"{arm}, of {count(small.parameters)} parameters,"
    if several:
        who = f"The best of {len(report.distilled)} distilled students is {arm}: with {count(small.parameters)} parameters it"
    unit = f" {metric.unit}" if metric.unit else ""
    sentence = f"{who} reaches {metric.spread(reached)}{unit} {metric.label}"
    gain = report.gain(report.leading) if report.leading else None
    if gain:
        same = report.baseline == "alone" and summary[arm].model == summary[gain.over].model
        sentence += f", {_apart(gain.spread.mean, metric)} {'the same student trained alone' if same else gain.over}"
    if report.teacher in report.arms and report.teacher != arm:
        teacher = summary[report.teacher].metrics[report.primary]
        if math.isfinite(teacher.mean):
            sentence += f", {_apart(reached.mean - teacher.mean, metric, counted=not gain)} its teacher"
        large = report.arms[report.teacher][0].footprint
        if small.macs and large.macs:
            sentence += _share(small.macs / large.macs, "multiply-adds")
        else:
            sentence += _share(small.parameters / large.parameters, "parameters") if large.parameters else ""
    sentences = [sentence + "." if report.higher_is_better else sentence + f" (lower {metric.label} is better)."]
    if report.leading:
        sentences.append(_verdict(report, gain, metric))
    if several:
        sentences.append("It was picked for doing best on these very data, which flatters it.")
    if report.failed:
        failures = [f"{name} failed{' with some seeds' if name in report.arms else ''}" for name in report.failed]
        sentences.append(f"{'; '.join(failures)}.")
    return " ".join(filter(None, sentences))


def _apart(difference: float, metric: Metric, counted: bool = True) -> str:
    """How far above or below something; level where the difference is not visible in the metric's digits."""
    size = metric.number(abs(difference))
    if size == "n/a":
        return "not comparable with"
    if float(size) == 0:
        return "level with"
    return f"{size}{metric.difference_unit if counted else ''} {'above' if difference > 0 else 'below'}"


def _share(ratio: float, what: str) -> str:
    if 0.995 <= ratio < 1.005:
        return f", with as many {what}"
    if ratio > 1:
        return f", at {ratio:.1f} times the teacher's {what}"
    return f", at {ratio:.0%} of the teacher's {what}".replace("%", " %") if ratio >= 0.01 else f", at {ratio:.2g} of the teacher's {what}"


def _verdict(report: Report, gain: Gain | None, metric: Metric) -> str:
    """How sure the difference to the baseline is."""
    if gain is None:
        missing = "no baseline was" if report.baseline is None else f"no seed was shared with {report.baseline}, so nothing is"
        return f"What distillation bought is not known: {missing} compared."
    if not math.isfinite(gain.spread.mean):
        return "What distillation bought is not known: a run diverged."
    if gain.interval is None:
        return "One seed: no spread known, so the difference may be chance."
    low, high = (metric.number(limit, "+") for limit in gain.interval)
    over = f"over {gain.spread.n} seeds the paired difference is {metric.spread(gain.spread, '+')}{metric.difference_unit}"
    over += f" (95 % interval {low} to {high})"
    if gain.spread.std == 0:
        return f"Not known to be more than chance: {over}, equal on every seed, so the metric is too coarse here to show its spread."
    if not gain.clear:
        few = "; two seeds can hardly show more" if gain.spread.n == 2 else ""
        return f"That difference is within noise: {over}, so it may be chance{few}."
    if (gain.spread.mean > 0) == report.higher_is_better:
        return f"The gain stands out from the noise: {over}."
    return f"Distillation made the student worse: {over}."


@dataclass(frozen=True)
class Cells:
    """A table as text: the columns' headings, and for each arm its name and then its cells."""

    columns: list[str]
    rows: list[list[str]]


def result_cells(report: Report) -> Cells:
    """What each arm learnt: seeds, every metric (the primary first), the best epoch."""
    summary = report.summary()
    names = list(dict.fromkeys([report.primary, *(name for arm in summary.values() for name in arm.metrics)]))
    metrics = {name: metric_of(report, name) for name in names}
    arrows = {True: "\N{NO-BREAK SPACE}↑", False: "\N{NO-BREAK SPACE}↓", None: ""}
    better = {name: metric.higher_is_better for name, metric in metrics.items()} | {report.primary: report.higher_is_better}
    headings = [f"{metric.label}{f' ({metric.unit})' if metric.unit else ''}{arrows[better[name]]}" for name, metric in metrics.items()]
    rows = []
    for arm, found in summary.items():
        cells = [metrics[name].spread(found.metrics[name]) if name in found.metrics else NOTHING for name in names]
        best = metrics[report.primary].spread(found.best) if found.best else NOTHING
        epochs = sorted({int(result.best["epoch"]) for result in report.arms[arm] if "epoch" in result.best})
        rows.append([arm, ", ".join(map(str, found.seeds)), *cells, best, ", ".join(map(str, epochs)) or NOTHING])
    return Cells(["arm", "seeds", *headings, f"best {metrics[report.primary].label}", "at epoch"], rows)


def cost_cells(report: Report) -> Cells:
    """What each arm is and costs: model, parameters, multiply-adds, latency, size, and the training it took."""
    rows = []
    for arm, results in report.arms.items():
        cost, trained = results[0].footprint, [result for result in results if result.epochs]
        latency = f"{fmean(result.footprint.latency_ms for result in results):.3g} ms"
        size = f"{count(cost.bytes)}B" if cost.bytes >= 1000 else f"{cost.bytes} B"
        epochs = ", ".join(map(str, sorted({result.epochs for result in trained}))) or NOTHING
        time = duration(fmean(result.seconds for result in trained)) if trained else NOTHING
        rows.append([arm, results[0].model, count(cost.parameters), count(cost.macs), latency, size, epochs, time])
    return Cells(["arm", "model", "parameters", "multiply-adds", "latency", "size", "epochs", "training time"], rows)


def table_cells(report: Report) -> Cells:
    """Both tables as one, for a terminal: an arm a column, or a row where there are more arms than figures."""
    results, costs = result_cells(report), cost_cells(report)
    grid = [results.columns + costs.columns[1:]] + [a + b[1:] for a, b in zip(results.rows, costs.rows, strict=True)]
    if len(grid) <= len(grid[0]):
        grid = [list(column) for column in zip(*grid, strict=True)]
    return Cells(grid[0], grid[1:])


def comparison_cells(report: Report) -> Cells:
    """An arm a row, for a terminal: the primary metric, its paired differences, training time. One that failed has a row, too."""
    metric, summary = metric_of(report, report.primary), report.summary()
    compared = [over for over in dict.fromkeys((report.baseline, report.reference)) if over is not None]
    gains = {over: report.gains(over) for over in compared}
    unit = metric.difference_unit
    headings = [f"{metric.label}{f' ({metric.unit})' if metric.unit else ''}", *(f"above {over}{unit and ','}{unit}" for over in compared)]
    rows = []
    for arm in dict.fromkeys((*report.arms, *report.failed)):
        found = summary.get(arm)
        if found is None:
            rows.append([arm, NOTHING, "failed", *[NOTHING] * len(headings)])
        else:
            differences = [_difference(gains[over].get(arm), metric) for over in compared]
            seeds = ", ".join(map(str, found.seeds))
            rows.append([arm, seeds, metric.spread(found.metrics[report.primary]), *differences, duration(found.seconds.mean)])
    return Cells(["arm", "seeds", *headings, "training time"], rows)


def _difference(gain: Gain | None, metric: Metric) -> str:
    """A paired difference, below it its 95 % interval where there is one."""
    if gain is None:
        return NOTHING
    text = metric.spread(gain.spread, "+")
    if gain.interval is None:
        return text
    return f"{text}\n{metric.number(gain.interval[0], '+')} to {metric.number(gain.interval[1], '+')}"


@dataclass(frozen=True)
class Figure:
    """One drawing: its heading and its SVG."""

    title: str
    svg: str


# one arm's curve: for each epoch (epoch, lowest, mean, highest value over seeds)
Band = list[tuple[float, float, float, float]]

# The frame of every figure, in SVG units; the page scales them to about their size on paper.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 230, 46, 10, 10, 30


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


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers within [low, high]."""
    power = 10.0 ** math.floor(math.log10(high - low))
    for step in (factor * power for factor in (5, 2, 1, 0.5, 0.2)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first >= 2:
            break
    return [i * step for i in range(first, last + 1)]


def _tick_texts(ticks: list[float]) -> list[str]:
    """The ticks with as many decimals as they need."""
    step = ticks[1] - ticks[0]
    if step < 1e-4 or max(map(abs, ticks)) >= 1e5:
        return [f"{tick:.3g}".replace("-", "−") for tick in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick:.{decimals}f}".replace("-", "−") for tick in ticks]


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

    parts, ticks = [], _ticks(low, high)
    for tick, text in zip(ticks, _tick_texts(ticks), strict=True):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(tick)}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick)}" dy=".35em" text-anchor="end">{text}</text>')
    epochs = [1.0, *(tick for tick in _ticks(1, last) if tick >= 2 and tick == int(tick))] if last > 1 else [1.0]
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
    metric = metric_of(report, report.primary)
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

    parts, ticks = [], _ticks(low, high)
    for tick, text in zip(ticks, _tick_texts(ticks), strict=True):
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


def _styles_of(report: Report) -> dict[str, str]:
    """The class that gives each arm its colour and stroke."""
    styles = {arm: f"arm d{i % _STYLES}{' again' if i >= _STYLES else ''}" for i, arm in enumerate(report.distilled)}
    if report.baseline is not None:
        styles[report.baseline] = "arm baseline"
    if report.teacher in report.arms:
        styles[report.teacher] = "arm teacher"
    return {arm: styles[arm] for arm in report.arms}


def _figures(report: Report, styles: dict[str, str]) -> list[tuple[str, list[Figure]]]:
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
            metric = metric_of(report, name) if group == 0 else Metric(name.replace("/", ": ") or "learning rate")
            groups[group][1].append(_curve(report, key, metric, styles, number))
    return [(title, drawn) for title, figures in groups if (drawn := [figure for figure in figures if figure])]


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(files("stillroom.engine").joinpath("report.html").read_text(encoding="utf-8"))


def render(report: Report) -> str:
    """The report as one self-contained HTML page."""
    styles = _styles_of(report)
    comparisons = [
        (over, list(gains.values()), sorted({seed for gain in gains.values() for seed in gain.per_seed}))
        for over in dict.fromkeys((report.baseline, report.reference))
        if over is not None and (gains := report.gains(over))
    ]
    return _template().render(
        report=report,
        headline=headline(report).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}").replace(" %", "\N{NO-BREAK SPACE}%"),
        metric=metric_of(report, report.primary),
        results=result_cells(report),
        costs=cost_cells(report),
        comparisons=[found for found in comparisons if len(found[2]) > 1 or report.reference],
        styles=styles,
        groups=_figures(report, styles),
        banded=any(len(results) > 1 for results in report.arms.values()),
        untrained=any(not result.history for results in report.arms.values() for result in results),
        continued={arm: times for arm, results in report.arms.items() if (times := sum(result.resumed for result in results))},
    )
