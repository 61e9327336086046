"""How a report speaks: numbers as people write them, the sentence that says what distillation bought, the cells of its tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from stillroom.engine.report.gains import Gain, far_worse
from stillroom.engine.report.results import Metric, Report

NOTHING = "–"
_FOLDED = 8  # characters
LEGEND = (
    "A difference is clear where its 95 % interval, in which the spread over seeds and the chance of the validation images are joined, "
    "leaves out 0; else these runs cannot tell."
)


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
    summary, metric = report.summary(), report.metric(report.primary)
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
    broken = ""
    sentence = f"{who} reaches {metric.spread(reached)}{unit} {metric.label}"
    gain = report.gain(report.leading) if report.leading else None
    if gain:
        same = report.baseline == "alone" and summary[arm].model == summary[gain.over].model
        sentence += f", {_apart(gain.spread.mean, metric)} {'the same student trained alone' if same else gain.over}"
    if report.teacher in report.arms and report.teacher != arm:
        teacher = summary[report.teacher].metrics[report.primary]
        if _is_broken(report, teacher.mean):
            other = "the student alone" if report.baseline == "alone" else report.baseline
            broken = f"Its teacher, at {metric.spread(teacher)}{unit}, is far worse than {other}."
        elif math.isfinite(teacher.mean):
            sentence += f", {_apart(reached.mean - teacher.mean, metric, counted=not gain)} its teacher"
        large = report.arms[report.teacher][0].footprint
        if small.macs and large.macs:
            sentence += _share(small.macs / large.macs, "multiply-adds")
        else:
            sentence += _share(small.parameters / large.parameters, "parameters") if large.parameters else ""
    sentences = [sentence + "." if report.higher_is_better else sentence + f" (lower {metric.label} is better).", broken]
    if report.leading:
        sentences.append(_verdict(report, gain, metric))
    if several:
        sentences.append("It was picked for doing best on these very data, which flatters it.")
    if report.failed:
        failures = [f"{name} failed{' with some seeds' if name in report.arms else ''}" for name in report.failed]
        sentences.append(f"{'; '.join(failures)}.")
    return " ".join(filter(None, sentences))


def _is_broken(report: Report, teacher: float) -> bool:
    """Whether the teacher is far worse than the student without it: then being better than it is no praise."""
    if report.baseline is None or report.baseline == report.teacher:
        return False
    alone = fmean(result.metrics[report.primary] for result in report.arms[report.baseline])
    return far_worse(teacher, alone, higher_is_better=report.higher_is_better)


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
    return f", at {100 * ratio:.{0 if ratio >= 0.01 else 2 if ratio >= 0.001 else 4}f} % of the teacher's {what}"


def _verdict(report: Report, gain: Gain | None, metric: Metric) -> str:
    """How sure the difference to the baseline is."""
    if gain is None:
        missing = "no baseline was" if report.baseline is None else f"no seed was shared with {report.baseline}, so nothing is"
        return f"What distillation bought is not known: {missing} compared."
    if not math.isfinite(gain.spread.mean):
        return "What distillation bought is not known: a run diverged."
    images = "" if gain.images is None else f"{gain.images} validation image{'s' if gain.images > 1 else ''}"
    better = (gain.spread.mean > 0) == report.higher_is_better
    if gain.interval is None:
        if gain.images_interval is None or not all(map(math.isfinite, gain.images_interval)):  # or from a single image
            return "Cannot tell whether that is more than chance: one seed shows no spread."
        said = f"the 95 % interval from the {images} alone is {interval_text(gain.images_interval, metric)}{metric.difference_unit}"
        if gain.verdict == "cannot tell":
            return f"Cannot tell whether that is more than chance: {said}, and one seed shows nothing of the others."
        return f"The {'gain' if better else 'loss'} is clear for this seed: {said}; what others would give is not known."
    over = f"over {gain.spread.n} seeds{images and ' and '}{images} the paired difference is {metric.spread(gain.spread, '+')}"
    over += f"{metric.difference_unit} (95 % interval {interval_text(gain.interval, metric)})"
    if not gain.clear:
        few = "; two seeds can hardly show more" if gain.spread.n == 2 else ""
        return f"Cannot tell whether that is more than chance: {over}{few}."
    return f"The gain is clear: {over}." if better else f"Distillation made the student worse, which is clear: {over}."


def interval_text(interval: tuple[float, float], metric: Metric) -> str:
    """Its two ends, each with its sign."""
    return f"{metric.number(interval[0], '+')} to {metric.number(interval[1], '+')}"


@dataclass(frozen=True)
class Cells:
    """A table as text: the columns' headings, and for each arm its name and then its cells."""

    columns: list[str]
    rows: list[list[str]]

    def fits(self, width: int) -> bool:
        """Whether a terminal of so many columns shows it, with words that are longer than `_FOLDED` broken where they must be."""
        columns = list(zip(self.columns, *self.rows, strict=True))
        needed = [min(_FOLDED, max(len(word) for cell in column for word in cell.split() or [""])) for column in columns]
        return sum(needed) + 3 * len(needed) + 1 <= width


def result_cells(report: Report) -> Cells:
    """What each arm learnt: seeds, every metric (the primary first), the best epoch."""
    summary = report.summary()
    names = list(dict.fromkeys([report.primary, *(name for arm in summary.values() for name in arm.metrics)]))
    metrics = {name: report.metric(name) for name in names}
    arrows = {True: "\N{NO-BREAK SPACE}↑", False: "\N{NO-BREAK SPACE}↓", None: ""}
    better = {name: metric.higher_is_better for name, metric in metrics.items()} | {report.primary: report.higher_is_better}
    headings = [f"{metric.label}{f' ({metric.unit})' if metric.unit else ''}{arrows[better[name]]}" for name, metric in metrics.items()]
    rows = []
    for arm, found in summary.items():
        cells = [metrics[name].spread(found.metrics[name]) if name in found.metrics else NOTHING for name in names]
        best = metrics[report.primary].spread(found.best) if found.best else NOTHING
        epochs = sorted({int(result.best["epoch"]) for result in report.arms[arm] if "epoch" in result.best})
        rows.append([arm, _seeds(found.seeds), *cells, best, ", ".join(map(str, epochs)) or NOTHING])
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
    metric, summary = report.metric(report.primary), report.summary()
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
            rows.append(
                [arm, _seeds(found.seeds), metric.spread(found.metrics[report.primary]), *differences, duration(found.seconds.mean)]
            )
    return Cells(["arm", "seeds", *headings, "training time"], rows)


def _seeds(seeds: Sequence[int]) -> str:
    """Which they are; a single one says so, since a bare 0 reads as none at all."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else ", ".join(map(str, seeds))


def _difference(gain: Gain | None, metric: Metric) -> str:
    """A paired difference, below it its 95 % interval where there is one, and whether to believe it."""
    if gain is None:
        return NOTHING
    lines = [metric.spread(gain.spread, "+"), *([interval_text(gain.interval, metric)] if gain.interval else []), gain.verdict]
    return "\n".join(lines)
