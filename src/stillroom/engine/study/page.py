"""A report's part on a search: its trials and the best so far, what they cost, and how much each searched value mattered."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from stillroom.engine.report.figures import svg, tick_texts, ticks
from stillroom.engine.report.results import Metric, Section
from stillroom.engine.study.study import Finished, Study

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 260, 54, 10, 10, 30  # of the drawing, in SVG units
_NUMBER = 1000  # of its title: those of the report's own figures are smaller
_STYLES = 6
_SHOWN = 15  # trials of the table
_ENOUGH = 4  # scored trials, below which nothing is said of importances


def search_section(
    searches: Mapping[str, Sequence[Finished]], metric: Metric, *, higher_is_better: bool = True, warmup: Mapping[str, int] | None = None
) -> Section:
    """What the trials of one or several searches reached, in their order: a dot each, and a line at the best so far.

    Args:
        searches: finished trials by the search's name.
        metric: what they are scored by.
        higher_is_better: its direction.
        warmup: by name, how many of the first trials are a search's warm-up.
    """
    styles = {name: f"arm d{i % _STYLES}" for i, name in enumerate(searches)}
    key = "".join(
        f'<li><svg viewBox="0 0 30 10" aria-hidden="true"><path class="line {styles[name]}" d="M1 5H29"/></svg>{escape(name)}'
        f"{_counts(trials, (warmup or {}).get(name, 0))}</li>"
        for name, trials in searches.items()
    )
    drawn = _drawing(searches, styles, metric, higher_is_better=higher_is_better)
    note = "A dot is a trial's score on held-out training images, the line the best so far; the validation set took no part."
    return Section("The search", f'<ul class="key">{key}</ul><div>{drawn}</div><p class="note">{note}</p>')


def trials_section(title: str, trials: Sequence[Finished], metric: Metric, *, higher_is_better: bool = True) -> Section:
    """The best trials of a search in a table, with what they tried, and those that failed with their reasons."""
    scored = sorted(
        (trial for trial in trials if trial.score is not None and math.isfinite(trial.score)),
        key=lambda trial: trial.score or 0.0,
        reverse=higher_is_better,
    )
    failed = [trial for trial in trials if trial.state == "failed"]
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    head = "".join(f"<th>{escape(column)}</th>" for column in ("trial", metric.label, *names, "seconds"))
    rows = "".join(
        f"<tr><th>{trial.number}{' (given up)' if trial.state == 'pruned' else ''}</th><td>{metric.number(trial.score or 0.0)}</td>"
        + "".join(f"<td>{escape(_told(trial.params.get(name)))}</td>" for name in names)
        + f"<td>{trial.seconds:.1f}</td></tr>"
        for trial in scored[:_SHOWN]
    )
    more = f"The best {_SHOWN} of {len(scored)} trials with a score. " if len(scored) > _SHOWN else ""
    reasons = "; ".join(f"trial {trial.number}: {trial.reason}" for trial in failed[:5])
    more += f"{len(failed)} failed ({reasons}{'; ...' if len(failed) > 5 else ''})." if failed else ""
    note = f'<p class="note">{escape(more)}</p>' if more else ""
    return Section(title, f'<div class="wide"><table class="numbers"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}')


def importance_section(study: Study) -> Section | None:
    """How much of the scores' spread each searched value explains, by Optuna's PED-ANOVA; None where there are too few trials for that."""
    found = importances(study)
    if not found:
        return None
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td>{100 * share:.0f} %</td><td class="text"><svg viewBox="0 0 200 10" width="200" height="10">'
        f'<rect class="band d0" x="0" y="1" height="8" width="{200 * share:.0f}" style="fill-opacity:.7"/></svg></td></tr>'
        for name, share in found.items()
    )
    note = "What sets the best tenth of the trials apart from all (PED-ANOVA). Of few trials this is a hint at most."
    table = f'<div class="wide"><table class="numbers"><tbody>{rows}</tbody></table></div><p class="note">{note}</p>'
    return Section("How much each value mattered", table)


def importances(study: Study) -> dict[str, float]:
    """Shares by the names of the searched values, the largest first; empty where there are too few trials to tell."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    if sum(trial.state == "complete" for trial in study.finished()) < _ENOUGH or not study.space:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that few trials say little
            found = get_param_importances(study.of_optuna(), evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError):  # all scores are equal, say
        return {}
    return {name: float(share) for name, share in found.items()}


def _drawing(
    searches: Mapping[str, Sequence[Finished]], styles: Mapping[str, str], metric: Metric, *, higher_is_better: bool
) -> str:
    scores = {name: [trial.score for trial in trials] for name, trials in searches.items()}
    known = sorted(score for values in scores.values() for score in values if score is not None and math.isfinite(score))
    if not known:
        return ""
    # settings that learn nothing would squash all others
    low, high = (known[len(known) // 5], known[-1]) if higher_is_better else (known[0], known[-1 - len(known) // 5])
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
    low, high, last = low - margin, high + margin, max(map(len, scores.values()))

    def x(place: float) -> str:
        return f"{_LEFT + (_WIDTH - _LEFT - _RIGHT) * ((place - 1) / (last - 1) if last > 1 else 0.5):.1f}"

    def y(value: float) -> str:
        return f"{_TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - min(max(value, low), high)) / (high - low):.1f}"

    parts, marks = [], ticks(low, high)
    for tick, text in zip(marks, tick_texts(marks), strict=True):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(tick)}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y(tick)}" dy=".35em" text-anchor="end">{text}</text>')
    for place in [1, *(int(tick) for tick in (ticks(1, last) if last > 2 else [last]) if tick >= 2 and tick == int(tick))]:
        anchor = "start" if place == 1 else "end" if place == last else "middle"
        parts.append(f'<text x="{x(place)}" y="{_HEIGHT - 10}" text-anchor="{anchor}">{"trial " if place == 1 else ""}{place}</text>')
    told = []
    for name, values in scores.items():
        best: float | None = None
        line = []
        for place, score in enumerate(values, 1):
            if score is not None and math.isfinite(score):
                parts.append(f'<circle class="{styles[name]}" cx="{x(place)}" cy="{y(score)}" r="2.5"/>')
                best = score if best is None else max(best, score) if higher_is_better else min(best, score)
            if best is not None:
                line.append(f"{x(place)} {y(best)}")
        if line:
            parts.append(f'<path class="line {styles[name]}" d="M{"L".join(line)}{"h0" if len(line) == 1 else ""}"/>')
            told.append(f"{name}: best {metric.number(best or 0.0)} of {len(values)} trials")
    title = f"{metric.label} by trial, and the best so far"
    return svg(_NUMBER, _HEIGHT, title, "; ".join(told) + ".", parts, _WIDTH)


def _counts(trials: Sequence[Finished], warmup: int) -> str:
    states = [trial.state for trial in trials]
    others = ", ".join(f"{states.count(state)} {word}" for state, word in (("pruned", "given up"), ("failed", "failed")) if state in states)
    ahead = f", the first {warmup} a warm-up" if warmup else ""
    return f" ({len(trials)} trials{ahead}{', ' if others else ''}{others})"


def _told(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
