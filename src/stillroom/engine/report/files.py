"""A report as people and programs get it: a table for the terminal, `report.html` and `metrics.json`."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.engine.report import page, wording
from stillroom.engine.report.gains import Gain
from stillroom.engine.report.results import SCHEMA, Report, plain
from stillroom.engine.run.console import console
from stillroom.engine.run.written import write_atomic
from stillroom.errors import printable

if TYPE_CHECKING:
    from rich.table import Table


def report_json(report: Report) -> dict[str, Any]:
    """Everything but the task's sections as plain data, in the schema at the top of `results`."""
    return {
        "schema": SCHEMA,
        "method": report.method,
        "title": report.title,
        "headline": wording.headline(report),
        "primary": report.primary,
        "higher_is_better": report.higher_is_better,
        "teacher": report.teacher if report.teacher in report.arms else None,
        "baseline": report.baseline,
        "summary": {arm: plain(asdict(summary)) for arm, summary in report.summary().items()},
        "gains": {arm: _gain_json(gain) for arm, gain in report.gains(report.baseline).items()},
        "reference": report.reference,
        "differences": {arm: _gain_json(gain) for arm, gain in report.gains(report.reference).items()},
        "failed": dict(report.failed),
        "stages": {arm: [result.to_json() for result in results] for arm, results in report.arms.items()},
        "command": report.command,
        "settings": plain(report.settings),
        "versions": plain(report.versions),
        "started": report.started,
        "finished": report.finished,
        "notes": list(report.notes),
    }


def report_table(report: Report, width: int = 0) -> Table:
    """The comparison for a terminal, the headline below it.

    Args:
        report: what to show.
        width: columns of the terminal: where they are too few for all figures, only those that decide are shown, and that is said; 0 for
            as many as it takes.
    """
    from rich.table import Table
    from rich.text import Text

    cells = wording.comparison_cells(report) if report.reference or report.failed else wording.table_cells(report)
    narrow = bool(width) and not cells.fits(width)
    cells = wording.comparison_cells(report) if narrow else cells
    below = ["The terminal is too narrow for all figures: report.html has them."] if narrow else []
    below += [f"{arm} failed{' with ' if arm in report.arms else ': '}{reason}" for arm, reason in report.failed.items()]
    if report.gains(report.reference):
        below.append(f"Differences are paired by seed, with their 95 % intervals. {wording.LEGEND}")
    table = Table(
        title=Text(report.title), caption=Text("\n".join(map(printable, [*below, wording.headline(report)]))), caption_justify="left"
    )
    for i, column in enumerate(cells.columns):
        table.add_column(Text(printable(column)), justify="left" if i == 0 else "right", overflow="fold")
    for row in cells.rows:
        table.add_row(*map(Text, map(printable, row)))
    return table


def write_report(report: Report, folder: Path | str) -> Path:
    """Writes `metrics.json` and `report.html` into `folder`, each whole or not at all.

    Returns:
        The page's path.
    """
    folder = Path(folder)
    write_atomic(folder / "metrics.json", json.dumps(report_json(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(folder / "report.html", page.render(report))
    return folder / "report.html"


def add_remark(folder: Path | str, remark: str) -> None:
    """Writes a sentence into the page and the notes of a finished run, such as what an export costs; nothing where there is no such run.

    Args:
        folder: of the run.
        remark: plain text; one that begins with the same word takes the place of what was said before.
    """
    page_file, numbers = Path(folder) / "report.html", Path(folder) / "metrics.json"
    if not (page_file.is_file() and numbers.is_file()):
        return
    subject = remark.split(" ", 1)[0]
    found = json.loads(numbers.read_text(encoding="utf-8"))
    found["notes"] = [note for note in found["notes"] if not note.startswith(f"{subject} ")] + [remark]
    text = page_file.read_text(encoding="utf-8")
    head, mark, rest = text.partition(page.AFTERWARDS)
    if not mark:  # a page of a version before
        return
    lines = [line for line in rest.splitlines(keepends=True) if not line.startswith(f'<p class="note">{html.escape(subject)} ')]
    write_atomic(numbers, json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomic(page_file, f'{head}{mark}\n<p class="note">{html.escape(remark)}</p>{"".join(lines)}')


def publish(report: Report, folder: Path, remarks: Sequence[str] = ()) -> None:
    """Writes it, prints its table, what is remarkable, and where it is."""
    written = write_report(report, folder)
    console.print(report_table(report, console.width))
    for remark in remarks:
        console.print(remark, markup=False, style="bold")
    console.print(f"report: {written}", markup=False)


def _gain_json(gain: Gain) -> dict[str, Any]:
    told = ("metric", "over", "per_seed", "interval", "clear", "verdict", "images", "image_error", "images_interval")
    found: dict[str, Any] = plain({"mean": gain.spread.mean, "std": gain.spread.std, **{name: getattr(gain, name) for name in told}})
    return found
