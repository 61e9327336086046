"""A report for people: one page that asks nothing of the network.

Its style and its figures are inside, it runs no script, and its content security policy forbids both. `report.html` beside this module is
its template; names and texts are escaped there, or in `figures` where they go into a figure.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from stillroom.engine.report.figures import figures
from stillroom.engine.report.results import Report
from stillroom.engine.report.wording import LEGEND, cost_cells, headline, interval_text, result_cells

if TYPE_CHECKING:
    import jinja2

AFTERWARDS = "<!-- what was found of it afterwards -->"  # in a page: where sentences are put that are written later
_STYLES = 6  # how many colours for distilled arms the template has


def _styles_of(report: Report) -> dict[str, str]:
    """The class that gives each arm its colour and stroke."""
    styles = {arm: f"arm d{i % _STYLES}{' again' if i >= _STYLES else ''}" for i, arm in enumerate(report.distilled)}
    if report.baseline is not None:
        styles[report.baseline] = "arm baseline"
    if report.teacher in report.arms:
        styles[report.teacher] = "arm teacher"
    return {arm: styles[arm] for arm in report.arms}


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(files("stillroom.engine.report").joinpath("report.html").read_text(encoding="utf-8"))


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
        metric=report.metric(report.primary),
        results=result_cells(report),
        costs=cost_cells(report),
        comparisons=comparisons,
        legend=LEGEND,
        afterwards=AFTERWARDS,
        interval_text=interval_text,
        styles=styles,
        groups=figures(report, styles),
        banded=any(len(results) > 1 for results in report.arms.values()),
        origins={arm: origin for arm, results in report.arms.items() if (origin := results[0].origin)},
        untrained=any(not result.history for results in report.arms.values() for result in results),
        continued={arm: times for arm, results in report.arms.items() if (times := sum(result.resumed for result in results))},
    )
