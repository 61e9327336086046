"""The table of a report that has a figure of each class for each arm: of boxes and of points alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from stillroom.engine.report.results import Report, Section, StageResult
from stillroom.tasks.images.page_parts import change_cell, changes, figure, heads, mean_over_seeds, note, row, table


def class_section(
    report: Report,
    arms: Mapping[str, Sequence[StageResult]],
    classes: Sequence[str],
    *,
    values: str,
    counts: str,
    title: str,
    counted: str,
    notes: Callable[[np.ndarray], list[str]],
) -> Section:
    """Each class's figure, mean over seeds, and its change from the baseline to the leading arm.

    Args:
        report: whose arms they are.
        arms: their results that kept details.
        classes: names.
        values, counts: names of the details: figures [C] in %, and how much of each class there was, int [C].
        title: of the table.
        counted: the head of the counts.
        notes: sentences below, of the counts.
    """
    found = {name: {result.seed: result.details[values] for result in results} for name, results in arms.items()}
    changes_SC = changes(found.get(report.baseline or "", {}), found.get(report.leading or "", {}))
    means = {name: mean_over_seeds(list(by_seed.values())) for name, by_seed in found.items()}
    first = next((results[0] for results in arms.values()), None)
    counts_C = first.details[counts] if first is not None else np.zeros(len(classes), np.int64)
    rows = []
    for number, name in enumerate(classes):
        cells = f"<td>{counts_C[number]}</td>" + "".join(f"<td>{figure(float(mean_C[number]))}</td>" for mean_C in means.values())
        if changes_SC is not None:
            cells += change_cell(float(changes_SC[:, number].mean()), changes_SC[:, number])
        rows.append(row(name, cells))
    said = notes(counts_C)
    if changes_SC is not None:
        said.append(f"The change is that of {escape(report.leading or '')} over {escape(report.baseline or '')}.")
    columns = heads(["class", counted, *arms], change=changes_SC is not None)
    return Section("By class", f"{table(title, columns, rows)}{note(said)}")
