"""Effect plots: the paired difference of two arms with its interval, a row each, as tables with drawings that need no script.

What is compared, and what the paper says of it, is in `claims.yml`; every number comes from `results/`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml
from catalogue import menu_order, name_of
from mkdocs.exceptions import PluginError
from scipy.special import stdtrit

ROOT = Path(__file__).parents[1]
CLAIMS: dict[str, Any] = yaml.safe_load((ROOT / "docs/claims.yml").read_text(encoding="utf-8"))
ORDER = [*menu_order(), "teacher-precision"]  # the last is no method: what it costs its students
SIGNS = {"above": "▲", "below": "▼", "level": "="}
_SPACE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Effect:
    """What one arm has more than another, with the same seeds.

    Attributes:
        method: whose row it is.
        group: of arms, or "".
        arm, over: what is compared.
        metric: in what.
        differences: arm - over of each seed that both have.
        paper: where the paper has the arm: above, below, level, or "".
        seen: how large it is in the paper, or "".
        gain: what the overview calls the data; "" for a row that does not stand there.
    """

    method: str
    group: str
    arm: str
    over: str
    metric: str
    differences: tuple[float, ...]
    paper: str = ""
    seen: str = ""
    gain: str = ""

    @property
    def mean(self) -> float:
        """The mean difference."""
        return fmean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean; None for one seed."""
        n = len(self.differences)
        if n < 2:
            return None
        half = float(stdtrit(n - 1, 0.975)) * stdev(self.differences) / math.sqrt(n)
        return self.mean - half, self.mean + half

    @property
    def side(self) -> str:
        """Where the arm is found: above, below, or "" where the seeds cannot tell."""
        if self.interval is None or self.interval[0] == self.interval[1] or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        return "above" if self.mean > 0 else "below"

    @property
    def verdict(self) -> str:
        """Against the paper: agrees, opposite, or open; without a word of the paper, whether it is clear at all."""
        if self.paper == "level":
            return "opposite" if self.side else "open"
        if not self.side:
            return "open"
        return "agrees" if self.paper in ("", self.side) else "opposite"

    @property
    def unit(self) -> str:
        """What the difference is counted in."""
        return "nats" if self.metric.endswith("loss") else "dB" if self.metric == "PSNR" else "points"


def effect(found: dict[str, Any], group: str, row: dict[str, Any], **named: str) -> Effect:
    """One difference from a file of `results/`; an arm or a metric that the file has not stops the build."""
    arms = [found["arms"].get(f"{group}: {row[side]}" if group else row[side]) for side in ("arm", "over")]
    metric = named["metric"]
    if any(arm is None or metric not in arm for arm in arms):
        raise PluginError(f"claims.yml: {found['method']} has no {metric} of {row['arm']} and {row['over']}")
    values, others = (arm[metric]["seeds"] for arm in arms if arm is not None)
    shared = [seed for seed in values if seed in others]
    return Effect(
        group=group,
        arm=row["arm"],
        over=row["over"],
        differences=tuple(values[seed] - others[seed] for seed in shared),
        paper=row.get("paper", ""),
        seen=row.get("seen", ""),
        gain=row.get("gain", ""),
        **named,
    )


def claimed(found: dict[str, Any]) -> list[Effect]:
    """The claims about a method, in the order of `claims.yml`."""
    method = found["method"]
    said = CLAIMS.get(method, {"rows": []})
    made = []
    for row in said["rows"]:
        groups = row.get("in", "")
        for group in [groups] if isinstance(groups, str) else groups:
            made.append(effect(found, group, row, method=row.get("as", method), metric=row.get("metric", said["metric"])))
    return made


def spreads(method: str) -> set[str]:
    """Mean and standard deviation of every difference of a method, as its help may quote them: "+5.3 +- 2.2"."""
    path = ROOT / f"results/{method.replace('-', '_')}.json"
    rows = claimed(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []
    rows += [row for row in [*default_jobs(), *default_jobs(by_baseline=True)] if row.method == method]
    return {f"{row.mean:+.1f} +- {stdev(row.differences):.1f}" for row in rows if len(row.differences) > 1}


def default_jobs(*, by_baseline: bool = False) -> list[Effect]:
    """What every arm of the default jobs has more than the student alone where there is one, or than the job's own baseline."""
    made = []
    for path in sorted((ROOT / "results/default").glob("*.json"), key=lambda path: ORDER.index(path.stem)):
        found = json.loads(path.read_text(encoding="utf-8"))
        compared, data = found["comparison"], found["setting"]["data"].partition(",")[0]
        over = compared["baseline"] if by_baseline or "alone" not in found["arms"] else "alone"
        for arm in found["arms"]:
            if arm not in ("alone", compared["baseline"], compared["teacher"]):  # a baseline that is a method has its own job
                row = {"arm": arm, "over": over, "gain": data}
                made.append(effect(found, "", row, method=found["method"], metric=compared["primary"]))
    return made


# Words ----------------------------------------------------------------------------------------------------------------------------------


def number(value: float, decimals: int) -> str:
    """With its sign, and a minus that is one."""
    text = f"{value:+.{decimals}f}"
    return (text[1:] if float(text) == 0 else text).replace("-", "−")


def decimals_of(rows: Sequence[Effect]) -> int:
    """One for points; for losses as many as the largest needs."""
    largest = max((abs(row.mean) for row in rows), default=1.0)
    return 1 if rows[0].unit == "points" else max(1, 2 - math.floor(math.log10(largest or 1.0)))


def tally(rows: Sequence[Effect]) -> str:
    """How the claims fare, in a sentence made from the numbers alone."""
    counted = {word: sum(row.verdict == word for row in rows) for word in ("agrees", "opposite", "open")}
    parts = [
        f"**{counted['agrees']}** clearly as the paper has {'it' if counted['agrees'] == 1 else 'them'}" if counted["agrees"] else "",
        f"**{counted['opposite']}** clearly the other way" if counted["opposite"] else "",
        f"**{counted['open']}** within noise" if counted["open"] else "",
    ]
    return f"Of {len(rows)} comparison{'s' if len(rows) != 1 else ''}: {', '.join(filter(None, parts))}."


# Drawing --------------------------------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high` and about, at most so many steps apart."""
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    return [round(step * k, 10) for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def plot(rows: Sequence[Effect], label: Callable[[Effect], str], heading: Callable[[Effect], str], *, paper: bool = True) -> str:
    """A table with a drawing in every row, all on one axis.

    Args:
        rows: of one unit.
        label: HTML of a row's first cell.
        heading: HTML above rows that share it; "" for none.
        paper: whether a column, and a shade, say what the paper says.
    """
    ends = [0.0, *(end for row in rows for end in row.interval or (row.mean, row.mean))]
    marks = ticks(min(ends), max(ends))
    places, width = decimals_of(rows), 3 + paper

    def at(value: float) -> float:
        return 100 * (value - marks[0]) / (marks[-1] - marks[0])

    body = []
    for title, group in groupby(rows, heading):
        if title:
            body.append(f'<tr class="group"><th colspan="{width}">{title}</th></tr>')
        body += [_row(row, label(row), _strip(row, at, marks, paper), places, paper) for row in group]
    scale = "".join(f'<span style="left:{at(mark):.2f}%">{_tick(mark)}</span>' for mark in marks)
    axis = f'<tr class="axis"><td></td><td><div>{scale}</div></td><td>{escape(rows[0].unit)}</td>{"<td></td>" * paper}</tr>'
    columns = ["what", "difference", f"{_SPACE}", *(["the paper"] if paper else [])]
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    return f'<table class="effects"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}{axis}</tbody></table>'


def _tick(mark: float) -> str:
    return "0" if mark == 0 else f"{mark:+g}".replace("-", "−")


def _row(row: Effect, label: str, strip: str, places: int, paper: bool) -> str:
    seeds = f"{len(row.differences)} seed{'s' if len(row.differences) > 1 else ''}"
    spread = f"{number(row.interval[0], places)} to {number(row.interval[1], places)}" if row.interval else "no interval"
    cells = [f'<th scope="row">{label}</th>', f'<td class="strip">{strip}</td>']
    cells.append(f'<td class="number"><b>{number(row.mean, places)}</b> <small>{spread}, {seeds}</small></td>')
    if paper:
        said = f"{SIGNS[row.paper]}{_SPACE}{row.paper} <small>{escape(row.seen)}</small>" if row.paper else "–"
        cells.append(f'<td class="paper">{said}</td>')
    return f'<tr class="{row.verdict}">{"".join(cells)}</tr>'


def _strip(row: Effect, at: Callable[[float], float], marks: Iterable[float], shaded: bool) -> str:
    """The difference as a point on the axis, hollow where the seeds cannot tell its sign, with its interval as a line.

    Where it is `shaded`, the side on which the paper has it is.
    """
    zero, mean = at(0.0), at(row.mean)
    side = {"above": (zero, 100 - zero), "below": (0.0, zero)}.get(row.paper if shaded else "")
    drawn = [f'<rect class="side" x="{side[0]:.2f}" width="{side[1]:.2f}" y="0" height="20"/>'] if side else []
    drawn += [f'<path class="grid" d="M{at(mark):.2f} 0V20"/>' for mark in marks if mark]
    drawn.append(f'<path class="zero" d="M{zero:.2f} 0V20"/>')
    if row.interval:
        drawn.append(f'<path class="interval" d="M{at(row.interval[0]):.2f} 10H{at(row.interval[1]):.2f}"/>')
    # A line of no length with round ends stays a disc however wide the cell is.
    drawn.append(f'<path class="point" d="M{mean:.2f} 10h0"/>')
    if not row.side:
        drawn.append(f'<path class="hole" d="M{mean:.2f} 10h0"/>')
    return f'<svg viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">{"".join(drawn)}</svg>'


def scores(found: dict[str, Any]) -> str:
    """Every arm of a default job: its score with each seed as points on one axis, and the mean."""
    metric = found["comparison"]["primary"]
    arms = {arm: list(metrics[metric]["seeds"].values()) for arm, metrics in found["arms"].items()}
    values = [value for several in arms.values() for value in several]
    marks = ticks(min(values), max(values))

    def at(value: float) -> float:
        return 100 * (value - marks[0]) / (marks[-1] - marks[0])

    body = []
    for arm, several in arms.items():
        drawn = "".join(f'<path class="grid" d="M{at(mark):.2f} 0V20"/>' for mark in marks)
        drawn += "".join(f'<path class="point" d="M{at(value):.2f} 10h0"/>' for value in several)
        strip = f'<svg viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>'
        spread = f"± {stdev(several):.1f}, {len(several)} seeds" if len(several) > 1 else "one for all seeds"
        kind = "open" if arm in ("alone", found["comparison"]["teacher"]) else "agrees"
        cells = f'<th scope="row">{escape(arm)}</th><td class="strip">{strip}</td>'
        body.append(f'<tr class="{kind}">{cells}<td class="number"><b>{fmean(several):.1f}</b> <small>{spread}</small></td></tr>')
    scale = "".join(f'<span style="left:{at(mark):.2f}%">{mark:g}</span>' for mark in marks)
    axis = f'<tr class="axis"><td></td><td><div>{scale}</div></td><td>%</td></tr>'
    return f'<table class="effects"><tbody>{"".join(body)}{axis}</tbody></table>'


# Pages ----------------------------------------------------------------------------------------------------------------------------------


def claims_of(found: dict[str, Any]) -> str:
    """The plots of a file of `results/`, one for each metric, and the sentence before them."""
    rows = claimed(found)
    if not rows:
        return ""
    parts = [f"**The claim.** {CLAIMS[found['method']]['claim']}", tally(rows)]
    metrics = dict.fromkeys(row.metric for row in rows)
    for metric in metrics:
        of_metric = [row for row in rows if row.metric == metric]
        groups = list(dict.fromkeys(row.group for row in of_metric))
        of_metric.sort(key=lambda row: groups.index(row.group))
        title = {"top1": "top-1 accuracy", "mAP": "mAP", "AP": "AP"}.get(metric, metric.removesuffix(", %"))
        better = "lower is better" if metric.endswith("loss") or metric.startswith("error") else "higher is better"
        parts.append(f'<p class="metric">{escape(title[0].upper() + title[1:])} <small>{better}</small></p>')
        parts.append(plot(of_metric, _compared, lambda row: escape(row.group)))
    return "\n\n".join(parts)


def _compared(row: Effect) -> str:
    return f"{escape(row.arm)} <small>over {escape(row.over)}</small>"


def overview(files: Iterable[dict[str, Any]]) -> str:
    """What distillation gained, method by data."""
    rows = [*default_jobs(), *(row for found in files for row in claimed(found) if row.gain)]
    rows.sort(key=lambda row: ORDER.index(row.method))

    def label(row: Effect) -> str:
        arm = f"{escape(row.arm)}, " if row.arm not in ("distilled", row.method) and not row.group and row.over == "alone" else ""
        over = "the student alone" if row.over == "alone" else row.over
        return f"{arm}{escape(row.gain)} <small>over {escape(over)}</small>"

    def heading(row: Effect) -> str:
        linked = (ROOT / f"docs/methods/{row.method}.md").exists()
        return f'<a href="methods/{row.method}.html">{escape(name_of(row.method))}</a>' if linked else escape(name_of(row.method))

    return plot(rows, label, heading, paper=False)


def defaults(methods: Iterable[str] | None = None) -> str:
    """The default jobs side by side, or those of `methods`."""
    chosen = None if methods is None else set(methods)
    rows = [row for row in default_jobs() if chosen is None or row.method in chosen]
    if not rows:
        return "Nothing was measured yet."
    return plot(rows, lambda row: f"{escape(name_of(row.method))} <small>{escape(row.arm)}</small>", lambda row: "", paper=False)
