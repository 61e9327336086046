"""`stillroom report RUN...`: one page of several runs on the same data: a table, gains, and what accuracy costs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stillroom.commands.parser import Parser
from stillroom.errors import InputError

if TYPE_CHECKING:
    from stillroom.engine.report.results import Metric, Report, StageResult
    from stillroom.engine.task import Task

PROG = "stillroom report"
_METRICS, _PAGE = "metrics.json", "report.html"
_OWN = ("out", "seed", "seeds", "overwrite", "continue_from", "devices", "num_nodes", "accelerator", "workers")  # say nothing of the result


def run(arguments: list[str], command: str) -> None:
    """Writes the page and `metrics.json` into a folder of their own, and prints the table.

    Args:
        arguments: what follows `stillroom report`.
        command: the whole line that was typed.
    """
    parser = Parser(PROG, "One page of several runs on the same data: a table, gains over the student alone, and what accuracy costs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs; NAME=FOLDER gives one a name of your own")
    parser.add_argument("--out", default="runs/report", help="the page's folder (default: runs/report)")
    parser.add_argument("--overwrite", action="store_true", help="replace a page that is there")
    given = parser.parse_args(arguments)

    from stillroom.engine.report.files import publish

    out = Path(given.out)
    if (out / "config.yaml").exists() or (any((out / name).exists() for name in (_METRICS, _PAGE)) and not given.overwrite):
        taken = "which is a run's folder" if (out / "config.yaml").exists() else "which holds a page already"
        raise InputError("--out", f"{out}, {taken}", "a folder of its own, or --overwrite where it is such a page's")
    runs: dict[str, Path] = {}
    for one in given.runs:
        name, equals, folder = one.partition("=")
        path = Path(folder if equals else one)
        name = name if equals else path.name or str(path)
        if name in runs:
            raise InputError("RUN", one, f"a name of its own, such as {name}2={path}: {runs[name]} is called {name} too")
        runs[name] = path
    made = joined({name: read(path) for name, path in runs.items()}, shlex.join(["stillroom", "report", *arguments]))
    out.mkdir(parents=True, exist_ok=True)
    publish(made, out)


def read(folder: Path) -> dict[str, Any]:
    """A run's `metrics.json`, with what its stages answered to each validation sample under "details" by arm and seed.

    Raises:
        InputError: no finished run, or one whose record cannot be read.
    """
    import numpy as np

    from stillroom.engine.report.results import SCHEMA

    file = folder / _METRICS
    if not file.is_file():
        raise InputError("RUN", str(folder), f"the folder of a finished run, which holds {_METRICS}")
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise InputError("RUN", f"{file} of schema {found['schema']}", SCHEMA)
        details: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        for arm, stages in found["stages"].items():
            for stage in stages:
                if stage.get("folder") and (kept := folder / stage["folder"] / "details.npz").is_file():  # runs of before do not say
                    with np.load(kept, allow_pickle=False) as arrays:
                        details[arm, stage["seed"]] = dict(arrays)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError("RUN", f"{file}, which cannot be read ({error})", "a run's own record") from None
    return {**found, "details": details}


def joined(runs: Mapping[str, Mapping[str, Any]], command: str) -> Report:
    """One report of several runs.

    Arms are called RUN: ARM; one that several runs share to the last number, such as a teacher or a student alone, stands once, under its
    own name. The first run's baseline is the one that all are compared with, by seeds.

    Args:
        runs: what `read` gave, by the names that their arms get.
        command: what was typed.

    Raises:
        InputError: runs that were not measured by the same metric on the same samples.
    """
    from stillroom.engine.report.results import Report, StageResult
    from stillroom.engine.run.measure import now, versions

    first, *others = runs
    for other in others:
        _check_same(first, runs[first], other, runs[other])
    arms: dict[str, list[StageResult]] = {}
    place: dict[tuple[str, str], str] = {}
    several = len(runs) > 1
    for name, one in runs.items():
        for arm, stages in one["stages"].items():
            results = [
                replace(StageResult.from_json(stage), details=one["details"].get((arm, stage["seed"]), {}), folder="") for stage in stages
            ]
            same = next((known for known, had in arms.items() if _equal(had, results)), None)
            shared = arm in (one["teacher"], one["baseline"]) and arm not in arms
            title = same or (arm if shared or not several else f"{name}: {arm}")
            arms.setdefault(title, [replace(result, name=title) for result in results])
            place[name, arm] = title
    baseline, teacher = runs[first]["baseline"], runs[first]["teacher"]
    made = Report(
        method="report",
        title=" beside ".join(runs) if several else f"{first}: {runs[first]['title']}",
        arms=arms,
        primary=runs[first]["primary"],
        higher_is_better=runs[first]["higher_is_better"],
        baseline=None if baseline is None else place[first, baseline],
        teacher=None if teacher is None else place[first, teacher],
        metric_formats=_formats(runs[first]),
        command=command,
        settings={"runs": {name: one["command"] for name, one in runs.items()}},
        versions=versions(),
        started=now(),
        finished=now(),
        notes=[*_differences(runs), *dict.fromkeys(note for one in runs.values() for note in one["notes"])],
    )
    made.sections = [section for section in [_costs(made)] if section is not None]
    return made


def _check_same(first: str, one: Mapping[str, Any], other: str, two: Mapping[str, Any]) -> None:
    """Whether two runs were measured alike.

    Raises:
        InputError: another metric, other data, or other validation samples.
    """
    for what, a, b in (
        ("primary metric", one["primary"], two["primary"]),
        ("data", one["settings"].get("data"), two["settings"].get("data")),
    ):
        if a != b:
            raise InputError("RUN", f"{other} with {what} {b}, where {first} has {a}", "runs on the same data, by the same metric")
    samples = [{tuple(part["ids"].tolist()) for part in run["details"].values() if "ids" in part} for run in (one, two)]
    if all(samples) and samples[0] != samples[1]:
        raise InputError("RUN", f"{other}, measured on other samples than {first}", "runs with the same validation set")


def _equal(one: Sequence[StageResult], other: Sequence[StageResult]) -> bool:
    """Whether these are the same trainings: model, seeds, history and numbers to the last digit; how long they took may differ."""

    def told(results: Sequence[StageResult]) -> list[Any]:
        return [(result.seed, result.model, result.epochs, sorted(result.metrics.items())) for result in results]

    return told(one) == told(other)


def _formats(one: Mapping[str, Any]) -> dict[str, Metric]:
    """How the run's task writes its metrics, where it can be told from the student's card or the method."""
    from stillroom import catalog
    from stillroom.engine.task import task_named

    method = next((method for method in catalog.METHODS if method.name == one["method"]), None)
    if method is None or not method.room:
        return {}
    tasks = catalog.load(method.name).tasks
    known: Task = task_named(tasks[0])
    return dict(known.metric_formats)


def _differences(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the runs were told that is not equal, a sentence each option; a reader must know it to believe a gain."""
    names = dict.fromkeys(name for one in runs.values() for name in one["settings"])
    told = []
    for name in names:
        if name in _OWN or not all(name in one["settings"] for one in runs.values()):
            continue
        values = {run: one["settings"][name] for run, one in runs.items()}
        if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1:
            told.append(f"--{name.replace('_', '-')}: {', '.join(f'{value} in {run}' for run, value in values.items())}.")
    return told


def _costs(report: Report) -> Any:
    """The primary metric against multiply-adds, parameters and latency of each arm; nothing where a single one is left."""
    from stillroom.engine.report.plots import plot
    from stillroom.engine.report.results import Section

    metric = report.metric(report.primary)
    up = f"{metric.label}{f' ({metric.unit})' if metric.unit else ''}"
    figures = []
    costs = {"multiply-adds (M)": ("macs", 1e6), "parameters (k)": ("parameters", 1e3), "latency (ms)": ("latency_ms", 1.0)}
    for across, (name, unit) in costs.items():
        points = {}
        for arm, results in report.arms.items():
            values = [getattr(result.footprint, name) for result in results]
            if None not in values and fmean(values) > 0:
                points[arm] = [(fmean(values) / unit, fmean(result.metrics[report.primary] for result in results))]
        if len(points) > 1:
            figures.append(f"<figure>{plot(across, up, points)}</figure>")
    return Section("What it costs", f'<div class="figures">{"".join(figures)}</div>') if figures else None
