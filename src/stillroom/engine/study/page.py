"""A report's part on a search: its trials and the best so far, what they cost, and how much each searched value mattered."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from itertools import accumulate
from typing import Any

from stillroom.engine.report.plots import Point, plot
from stillroom.engine.report.results import Metric, Section
from stillroom.engine.study.study import Study
from stillroom.engine.study.trial import Finished

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
    drawn = _drawing(searches, metric, higher_is_better=higher_is_better)
    note = (
        "A dot is a trial's score on held-out training images, the line the best so far; the worst fifth is left out. The validation set "
        "took no part."
    )
    return Section("The search", f'<ul class="key">{key}</ul><div class="figures"><figure>{drawn}</figure></div><p class="note">{note}</p>')


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
    return Section(
        title, f'<div class="wide"><table class="numbers"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{note}'
    )


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


def _drawing(searches: Mapping[str, Sequence[Finished]], metric: Metric, *, higher_is_better: bool) -> str:
    points: dict[str, list[Point]] = {}
    curves: dict[str, list[Point]] = {}
    known = sorted(_score(trial) for trials in searches.values() for trial in trials if math.isfinite(_score(trial)))
    # settings that learn nothing would squash all others
    place = len(known) // 5
    low, high = (-math.inf, math.inf) if not known else (known[place], math.inf) if higher_is_better else (-math.inf, known[-1 - place])
    for number, (name, trials) in enumerate(searches.items()):
        scores = [_score(trial) for trial in trials]
        so_far = list(accumulate(scores, partial(_better, higher_is_better)))
        curves[name] = [(place, score) for place, score in enumerate(so_far, 1) if low <= score <= high]
        # under no name of their own, which their curve has
        points[" " * number] = [(place, score) for place, score in enumerate(scores, 1) if low <= score <= high]
    return plot("trial", metric.label, points, curves=curves)


def _score(trial: Finished) -> float:
    return math.nan if trial.score is None else trial.score


def _better(higher_is_better: bool, first: float, second: float) -> float:
    if math.isnan(first) or math.isnan(second):
        return second if math.isnan(first) else first
    return max(first, second) if higher_is_better else min(first, second)


def _counts(trials: Sequence[Finished], warmup: int) -> str:
    states = [trial.state for trial in trials]
    others = ", ".join(f"{states.count(state)} {word}" for state, word in (("pruned", "given up"), ("failed", "failed")) if state in states)
    ahead = f", the first {warmup} a warm-up" if warmup else ""
    return f" ({len(trials)} trials{ahead}{', ' if others else ''}{others})"


def _told(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
