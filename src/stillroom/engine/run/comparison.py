"""A comparison: trainings that need nothing of each other, run here or several at once, and one report of them all.

One that fails says why and ends none of the others. A piece of work is called by its `Piece`, an arm with a seed; what it does is the
caller's business, except that it runs stages of a Lab, so that it goes on where it was killed and is not done twice.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from stillroom.engine.report.results import Report, StageResult
from stillroom.engine.run.console import console
from stillroom.engine.run.measure import versions
from stillroom.engine.task import TaskData
from stillroom.errors import Interrupted, StillroomError

_PATIENCE = 60.0  # seconds that processes have for saving before they are killed
_LONGEST = 300  # characters of a reason


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


@dataclass(frozen=True)
class Outcome:
    """What came of a piece: a result, or else the reason why there is none."""

    result: StageResult | None = None
    reason: str = ""


Work = Callable[[Piece], StageResult]


def reason_of(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, StillroomError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def attempt(work: Work, piece: Piece) -> Outcome:
    """Does one piece; a failure that nobody foresaw leaves its traceback on stderr.

    Raises:
        Interrupted: the user or the system asked the training to end, which is no failure of the method.
    """
    try:
        return Outcome(work(piece))
    except Interrupted:
        raise
    except Exception as error:
        if not isinstance(error, StillroomError):
            traceback.print_exc()
        return Outcome(reason=reason_of(error))


def run_here(work: Work, pieces: Sequence[Piece]) -> dict[Piece, Outcome]:
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


def run_at_once(work: Work, pieces: Sequence[Piece], jobs: int, logs: Path, primary: str) -> dict[Piece, Outcome]:
    """Does the pieces in up to `jobs` processes, which share the cores evenly and take turns on the GPUs.

    Says a line for each piece that is through. What the processes themselves say goes to a file for each piece. A process in which a
    piece failed is not given another one.

    Args:
        work: can be pickled.
        pieces: what to do, in this order.
        jobs: processes at a time.
        logs: folder for what the processes say.
        primary: the metric of a piece's line.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came. The processes have saved what they trained, and ended.
    """
    outcomes: dict[Piece, Outcome] = {}
    waiting, idle = deque(pieces), deque(range(min(jobs, len(pieces))))
    threads, devices = max(1, min(torch.get_num_threads(), _cores() // jobs)), _visible_devices()
    workers: dict[int, _Worker] = {}
    running: dict[Connection, int] = {}
    try:
        with _asked_to_end():
            while waiting or running:
                while waiting and idle:
                    slot = idle.popleft()
                    if slot not in workers:
                        workers[slot] = _Worker(work, logs, threads, devices[slot % len(devices)])
                    running[workers[slot].give(waiting.popleft())] = slot
                for connection in wait(list(running)):
                    assert isinstance(connection, Connection)
                    slot = running.pop(connection)
                    piece, outcome = workers[slot].piece, workers[slot].receive()
                    if outcome.result is None:
                        workers.pop(slot).end()
                    idle.append(slot)
                    outcomes[piece] = outcome
                    _tell(piece, outcome, primary, f"{len(outcomes)} of {len(pieces)}")
    except KeyboardInterrupt:
        message = "the comparison was stopped; everything that was trained is saved, the same command goes on from here"
        raise Interrupted(message) from None
    finally:
        _end(list(workers.values()))
    return outcomes


class _Worker:
    """A process that does one piece after the other."""

    def __init__(self, work: Work, logs: Path, threads: int, device: str | None) -> None:
        self.logs = logs
        self.piece = Piece("", 0)
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, threads, device, theirs))
        with _deaf_to_interrupts():
            self.process.start()
        theirs.close()

    def give(self, piece: Piece) -> Connection:
        """Has it do a piece; answers with what is ready once that is through."""
        self.piece = piece
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with suppress(BrokenPipeError):  # it has died: `receive` will tell
            self.connection.send((piece, self.log))
        return self.connection

    @property
    def log(self) -> Path:
        """Where it writes what it says about its piece."""
        return self.logs / f"{self.piece.arm.replace(':', '+')}-seed{self.piece.seed}.txt"

    def receive(self) -> Outcome:
        """What came of the piece, or how the process ended without a word."""
        try:
            outcome: Outcome = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            memory = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
            return Outcome(reason=f"its process {how}{memory}; {self.log} has its last words")
        return outcome

    def end(self, seconds: float = _PATIENCE) -> None:
        """Waits for it to save and end, then kills it."""
        self.process.terminate()
        self.process.join(seconds)
        self.process.kill()
        self.process.join()
        self.connection.close()


def merge(
    outcomes: Mapping[Piece, Outcome], teacher: StageResult, data: TaskData, methods: Sequence[str], *, started: str, notes: Sequence[str]
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
    arms: dict[str, list[StageResult]] = {"teacher": [replace(teacher, name="teacher")]}
    failed = {}
    for arm in ("alone", *methods):
        mine = {piece.seed: outcome for piece, outcome in outcomes.items() if piece.arm == arm}
        results = [result for seed in sorted(mine) if (result := mine[seed].result) is not None]
        agreements = [data.task.compare(result.details, teacher.details) for result in results]
        if results:
            arms[arm] = [replace(r, name=arm, metrics={**r.metrics, **more}) for r, more in zip(results, agreements, strict=True)]
        reasons = {seed: outcome.reason for seed, outcome in sorted(mine.items()) if outcome.result is None}
        if reasons:
            same = len(set(reasons.values())) == 1 and len(reasons) == len(mine)
            failed[arm] = next(iter(reasons.values())) if same else "; ".join(f"seed {seed}: {why}" for seed, why in reasons.items())
    evaluator = data.evaluator()
    report = Report(
        method="compare",
        title=f"{_listed(methods)}, compared on equal terms",
        arms=arms,
        primary=evaluator.primary,
        higher_is_better=evaluator.higher_is_better,
        baseline="alone" if "alone" in arms else None,
        reference=methods[0] if len(methods) > 1 and methods[0] in arms else None,
        failed=failed,
        metric_formats=dict(data.task.metric_formats),
        versions=versions(),
        started=started,
        finished=now(),
        notes=list(notes),
    )
    report.sections = data.task.sections(report, data)
    return report


def now() -> str:
    """The time, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _visible_devices() -> list[str | None]:
    """For each GPU what CUDA_VISIBLE_DEVICES must say to show it alone; [None] where there is nothing to choose from."""
    count = torch.cuda.device_count()
    if count < 2:
        return [None]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [*(given.split(",")[:count] if given else map(str, range(count)))]


def _tell(piece: Piece, outcome: Outcome, primary: str, place: str) -> None:
    result = outcome.result
    if result is None:
        text = f"failed: {outcome.reason}"
    else:
        text = f"{primary} {result.metrics[primary]:.2f} after {result.epochs} epochs, {result.seconds:.1f} s"
    console.print(f"{piece}: {text} ({place})", markup=False)


def _end(workers: Sequence[_Worker]) -> None:
    """Lets all processes save and end; a second Ctrl-C, or their taking too long, kills them."""
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + _PATIENCE
    for worker in workers:
        try:
            worker.end(max(0.0, deadline - time.monotonic()))
        except KeyboardInterrupt:
            deadline = 0.0
            worker.end(0.0)


@contextmanager
def _asked_to_end() -> Iterator[None]:
    """Inside, SIGTERM is what Ctrl-C is."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handler(signal.SIGTERM, stop):
        yield


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside ignore a terminal's Ctrl-C until they train: it is this process that tells them to end."""
    with _handler(signal.SIGINT, signal.SIG_IGN):
        yield


@contextmanager
def _handler(number: signal.Signals, handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals are somebody else's
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _serve(work: Work, threads: int, device: str | None, connection: Connection) -> None:
    """In the process: does the pieces that come and sends what came of each."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            piece, log = connection.recv()
        except EOFError:
            return
        _speak_to(log)
        try:
            outcome = attempt(work, piece)
        except Interrupted as error:
            outcome = Outcome(reason=reason_of(error))
        connection.send(outcome)


def _speak_to(log: Path) -> None:
    """Sends what this process says, in whatever language, to a file."""
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _end_with_parent() -> None:
    """Should the comparison be killed, what it started saves and ends: another one may want to go on in the same folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
