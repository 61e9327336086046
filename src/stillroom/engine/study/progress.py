"""What a running search says: on a terminal a table of the best trials so far, which changes in place; elsewhere a line for each trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from stillroom.engine.run.console import console
from stillroom.engine.study.trial import Finished
from stillroom.errors import printable

if TYPE_CHECKING:
    from stillroom.engine.study.study import Study

_SAID = 4  # options of a trial in its line
_BEST = 8  # trials in the table
_VALUE = 8  # characters of a value; where the terminal is too narrow for a column of each option, they share one


@contextmanager
def progress(study: Study, metric: str) -> Iterator[Callable[[Finished], None]]:
    """Inside, what this gives is to be told of every trial that was finished.

    Args:
        study: whose trials.
        metric: what their score is called.
    """
    if not console.is_interactive:
        yield lambda done: console.print(_line(study, metric, done), markup=False)
        return
    with Live(_table(study, metric, None), console=console, auto_refresh=False) as live:

        def say(done: Finished) -> None:
            if done.state == "failed":  # above the table, where it stays
                console.print(_line(study, metric, done), markup=False)
            live.update(_table(study, metric, done), refresh=True)

        yield say


def _line(study: Study, metric: str, done: Finished) -> str:
    """A trial, and the best so far."""
    finished = study.finished()
    best = next(iter(_ranked(study, finished)), None)
    so_far = f"; best {best.score:.2f} (trial {best.number})" if best is not None else ""
    tried = ", ".join(f"{name} {_short(value)}" for name, value in list(done.params.items())[:_SAID])
    return f"{study.name}: {_count(study, finished)}: {_ended(done, metric)}{so_far}  [{tried}] {done.seconds:.1f} s"


def _table(study: Study, metric: str, last: Finished | None) -> Table:
    """The best trials, and how the last one ended."""
    finished = study.finished()
    states = [trial.state for trial in finished]
    odd = [f", {states.count(state)} {word}" for state, word in (("pruned", "given up"), ("failed", "failed")) if state in states]
    title = Text(printable(f"{study.name}: {_count(study, finished)}{''.join(odd)}"))
    caption = "" if last is None else printable(f"trial {last.number}: {_ended(last, metric)}, {last.seconds:.1f} s")
    table = Table(title=title, caption=Text(caption), title_justify="left", caption_justify="left")
    names = list(study.space)
    each = sum(max(len(name), _VALUE) + 3 for name in ("trial", metric, *names, "seconds")) < console.width
    for name in ("trial", metric, *(names if each else ["options"]), "seconds"):
        number = name in ("trial", metric, "seconds")
        table.add_column(Text(printable(name)), justify="right" if number else "left", no_wrap=number, overflow="fold")
    for trial in _ranked(study, finished)[:_BEST]:
        values = {name: _short(trial.params.get(name)) for name in names}
        options = values.values() if each else [", ".join(f"{name} {value}" for name, value in values.items())]
        cells = (str(trial.number), f"{trial.score:.4g}", *options, f"{trial.seconds:.1f}")
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _ranked(study: Study, finished: Sequence[Finished]) -> list[Finished]:
    """Those with a score, the best first; of equal ones the earlier."""
    return sorted((trial for trial in finished if trial.state == "complete"), key=study.order, reverse=True)


def _count(study: Study, finished: Sequence[Finished]) -> str:
    return (
        f"{len(finished)} of {study.trials}" if study.trials else f"{len(finished)}, {sum(one.seconds for one in finished):.0f} s of trials"
    )


def _ended(done: Finished, metric: str) -> str:
    score = "" if done.score is None else f"{metric} {done.score:.2f}"
    return {"complete": score, "pruned": f"given up at {score}", "failed": f"failed: {done.reason}"}[done.state]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
