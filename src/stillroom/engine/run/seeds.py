"""Recipes: run once per seed, one report of them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from stillroom.engine.distributed import go_alone
from stillroom.engine.lab import Lab
from stillroom.engine.report.files import publish
from stillroom.engine.report.results import Report
from stillroom.engine.report.wording import duration
from stillroom.engine.run.options import LabOptions
from stillroom.engine.task import TaskData, first_lines

_TELLING = 1.0  # seconds that a seed takes at least where the others are foretold


def run_seeds(
    recipe: Callable[..., Report],
    options: LabOptions,
    data: TaskData,
    arguments: dict[str, Any],
    *,
    command: str = "",
    settings: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Report:
    """Runs a recipe once per seed, merges the reports, and writes the page.

    In a process that is not the first, answers with the last seed's report and writes nothing.

    Args:
        recipe: called as ``recipe(lab, data, **arguments)``.
        options: `options.seeds` repetitions.
        data: the task's data.
        arguments: the recipe's other arguments.
        command: what the user typed, for the report.
        settings: every argument of the run, for the report.
        notes: what the report says besides.
    """
    reports, longest = [], 0.0
    for repetition in range(options.seeds):
        started = time.perf_counter()
        lab = Lab(
            replace(options, overwrite=options.overwrite and not repetition),
            options.seed + repetition,
            settings,
            first_lines(data) if not repetition else (),
        )
        reports.append(recipe(lab, data, **arguments))
        # what all seeds share was done with the first; a seed that was done before tells nothing of those to come
        longest = max(longest, time.perf_counter() - started - lab.shared_seconds)
        if (left := options.seeds - repetition - 1) and longest >= _TELLING:
            lab.say(f"seed {lab.seed}", f"done; about {duration(left * longest)} for the {left} left")
    go_alone()
    if not lab.is_main:
        return reports[-1]
    report = Report.merge(reports)
    report.command, report.settings = command, settings or {}
    remarks = data.task.remarks(report, data) if hasattr(data.task, "remarks") else []
    report.notes += [*notes, *remarks]
    report.sections = [*report.method_sections, *data.task.sections(report, data)]
    publish(report, lab.folder, remarks)
    return report
