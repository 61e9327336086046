"""A comparison: trainings that need nothing of each other, run here or several at once, and one report of them all.

One that fails says why and ends none of the others. A piece of work is called by its `Piece`, an arm with a seed; what it does is the
caller's business, except that it runs stages of a Lab, so that it goes on where it was killed and is not done twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.engine.report.results import Report, StageResult
from stillroom.engine.run.console import console
from stillroom.engine.run.pool import Outcome, Pool, attempt
from stillroom.engine.run.written import complete, growing
from stillroom.engine.task import TaskData


@dataclass(frozen=True)
class Piece:
    """One training of a comparison.

    Args:
        arm: its name in the report.
        seed: its seed.
    """

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


Work = Callable[[Piece], StageResult]


Outcomes = dict[Piece, Outcome[StageResult]]


def run_here(work: Work, pieces: Sequence[Piece]) -> Outcomes:
    """Does the pieces one after the other, in this process.

    Raises:
        Interrupted: asked to end; what is trained is saved.
    """
    outcomes = {}
    for piece in pieces:
        outcomes[piece] = attempt(work, piece)
        if outcomes[piece].reason:
            console.print(f"{piece}: failed: {outcomes[piece].reason}", markup=False)
    return outcomes


def run_at_once(work: Work, pieces: Sequence[Piece], jobs: int, logs: Path, primary: str) -> Outcomes:
    """Does the pieces in up to `jobs` processes (see `Pool`), and says a line for each piece that is through.

    Args:
        work: can be pickled.
        pieces: what to do, in this order.
        jobs: processes at a time.
        logs: folder for what the processes say, a file for each piece.
        primary: the metric of a piece's line.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came. The processes have saved what they trained, and ended.
    """
    outcomes: Outcomes = {}
    files = {piece: logs / f"{piece.arm.replace(':', '+')}-seed{piece.seed}.txt" for piece in pieces}
    growing(files.values())
    with Pool(work, jobs, files.__getitem__) as pool:
        pool.add(*pieces)
        for piece, outcome in pool:
            outcomes[piece] = outcome
            complete(files[piece])
            _tell(piece, outcome, primary, f"{len(outcomes)} of {len(pieces)}")
    return outcomes


def merge(
    outcomes: Mapping[Piece, Outcome[StageResult]],
    teacher: StageResult,
    data: TaskData,
    methods: Sequence[str],
    *,
    started: str,
    notes: Sequence[str],
) -> Report:
    """One report of a comparison's pieces.

    Args:
        outcomes: of the arm `alone` and of each method, for every seed.
        teacher: the one that all share.
        data: for what compares answers with the teacher's, and for the page's own sections.
        methods: the arms besides `alone`, in the order of the report. The first is the one that the others are compared with.
        started: when, ISO 8601.
        notes: for the page.
    """
    arms, failed = {"teacher": [teacher]}, {}
    for arm in ("alone", *methods):
        mine = {piece.seed: outcome for piece, outcome in sorted(outcomes.items(), key=lambda found: found[0].seed) if piece.arm == arm}
        if results := [outcome.result for outcome in mine.values() if outcome.result is not None]:
            arms[arm] = results
        if reasons := {seed: outcome.reason for seed, outcome in mine.items() if outcome.result is None}:
            same = len(set(reasons.values())) == 1 and len(reasons) == len(mine)
            failed[arm] = next(iter(reasons.values())) if same else "; ".join(f"seed {seed}: {why}" for seed, why in reasons.items())
    report = Report.on(
        data,
        arms,
        method="compare",
        title=f"{_listed(methods)}, compared on equal terms",
        baseline="alone" if "alone" in arms else None,
        reference=methods[0] if len(methods) > 1 and methods[0] in arms else None,
        failed=failed,
        started=started,
        notes=list(notes),
    )
    report.notes += data.task.remarks(report, data) if hasattr(data.task, "remarks") else []
    report.sections = data.task.sections(report, data)
    return report


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _tell(piece: Piece, outcome: Outcome[StageResult], primary: str, place: str) -> None:
    text = f"failed: {outcome.reason}"
    if (result := outcome.result) is not None:
        text = f"{primary} {result.metrics[primary]:.2f} after {result.epochs} epochs, {result.seconds:.1f} s"
    console.print(f"{piece}: {text} ({place})", markup=False)
