"""Pieces of work side by side, each in a process of its own: what comparisons and searches do with one machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar

import torch

from stillroom.engine.run.signals import handling
from stillroom.errors import Interrupted, StillroomError

P = TypeVar("P")
R = TypeVar("R")

_PATIENCE = 60.0  # seconds that processes have for saving before they are killed
_LONGEST = 300  # characters of a reason


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What came of a piece: a result, or else the reason why there is none."""

    result: R | None = None
    reason: str = ""


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, StillroomError) else f"{type(error).__name__}: {text}"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def attempt(work: Callable[[P], R], piece: P) -> Outcome[R]:
    """Does one piece; a failure that nobody foresaw leaves its traceback on stderr.

    Raises:
        Interrupted: the user or the system asked the work to end, which is no failure of the piece.
    """
    try:
        return Outcome(work(piece))
    except Interrupted:
        raise
    except Exception as error:
        if not isinstance(error, StillroomError):
            traceback.print_exc()
        return Outcome(reason=reason_of(error))


class Pool(Generic[P, R]):
    """Up to `jobs` processes, which share the cores evenly and take turns on the GPUs; each does one piece after the other.

    A process in which a piece failed is not given another one. What the processes say goes to a file for each piece. As a context it ends
    them when it is left; on Ctrl-C or SIGTERM they save first, as far as the work itself does.

    Iterating gives each piece and its outcome once it is through, until none is left; pieces may be added meanwhile.

    Args:
        work: does a piece; can be pickled, and lives as long as its process.
        jobs: processes at a time.
        log: the file for what is said about a piece.

    Raises:
        Interrupted: on leaving, in place of a Ctrl-C or SIGTERM inside.
    """

    def __init__(self, work: Callable[[P], R], jobs: int, log: Callable[[P], Path]) -> None:
        self._work, self._log = work, log
        self._threads = max(1, min(torch.get_num_threads(), _cores() // jobs))
        self._devices = _visible_devices()
        self._waiting: deque[P] = deque()
        self._idle = deque(range(jobs))
        self._processes: dict[int, _Process] = {}
        self._running: dict[int, P] = {}
        self._handlers = ExitStack()

    def add(self, *pieces: P) -> None:
        """More to do, behind what is waiting."""
        self._waiting.extend(pieces)

    def __iter__(self) -> Iterator[tuple[P, Outcome[R]]]:
        while self._waiting or self._running:
            while self._waiting and self._idle:
                self._start(self._idle.popleft(), self._waiting.popleft())
            lines = {self._processes[slot].line: slot for slot in self._running}
            for line in connection.wait(list(lines)):
                slot = lines[line]  # type: ignore[index]  # its stub knows sockets besides
                piece = self._running.pop(slot)
                outcome: Outcome[R] = self._processes[slot].answer(self._log(piece))
                if outcome.result is None:
                    self._processes.pop(slot).end(time.monotonic() + _PATIENCE)
                self._idle.append(slot)
                yield piece, outcome

    def _start(self, slot: int, piece: P) -> None:
        if slot not in self._processes:
            self._processes[slot] = _Process(self._work, self._threads, self._devices[slot % len(self._devices)])
        log = self._log(piece)
        log.parent.mkdir(parents=True, exist_ok=True)
        self._running[slot] = piece
        self._processes[slot].line.send((piece, log))

    def __enter__(self) -> Pool[P, R]:
        self._handlers.enter_context(handling(_as_ctrl_c, signal.SIGTERM))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._handlers:
            for slot in self._running:
                self._processes[slot].ask_to_end()
            deadline = time.monotonic() + _PATIENCE
            for process in self._processes.values():
                try:
                    process.end(deadline)
                except KeyboardInterrupt:  # a second one: no more patience
                    deadline = 0.0
                    process.end(deadline)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("stopped; everything that was trained is saved, the same command goes on from here") from None


class _Process:
    """One process, which can be pinned to a device, and ended without the others.

    Attributes:
        line: takes a piece and its log, and gives the outcome; that of a process that died is at its end.
    """

    def __init__(self, work: Callable[[Any], Any], threads: int, device: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, its = context.Pipe()
        self._process = context.Process(target=_serve, args=(its, work, threads, device))
        with handling(signal.SIG_IGN, signal.SIGINT):  # a terminal's Ctrl-C is for us: we tell it to end
            self._process.start()
        its.close()

    def answer(self, log: Path) -> Outcome[Any]:
        """What came of its piece, or how it ended without a word."""
        try:
            outcome: Outcome[Any] = self.line.recv()
            return outcome
        except (EOFError, OSError):
            self._process.join()
        code = self._process.exitcode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        memory = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return Outcome(reason=f"its process {how}{memory}; {log} has its last words")

    def ask_to_end(self) -> None:
        """A training saves and ends, anything else ends."""
        self._process.terminate()

    def end(self, deadline: float) -> None:
        """Waits for it to end until a time, by `time.monotonic`; then kills it."""
        self.line.close()
        self._process.join(max(0.0, deadline - time.monotonic()))
        self._process.kill()
        self._process.join()


# In the process ---------------------------------------------------------------------------------------------------------------------------


def _serve(line: connection.Connection, work: Callable[[Any], Any], threads: int, device: str | None) -> None:
    """Does one piece after the other until nobody asks for more.

    Args:
        line: see `_Process`.
        work: what it is to do.
        threads: to compute with.
        device: for CUDA_VISIBLE_DEVICES, where that matters.
    """
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            piece, log = line.recv()
            _speak_to(log)
            line.send(_outcome(work, piece))


def _outcome(work: Callable[[Any], Any], piece: Any) -> Outcome[Any]:
    try:
        return attempt(work, piece)
    except Interrupted as error:
        return Outcome(reason=reason_of(error))
    except SystemExit as error:
        return Outcome(reason=f"its process was to end with exit code {error.code}")


def _leave(number: int, frame: FrameType | None) -> None:
    """By the way out, not by the signal: what the process shares with others (semaphores) is given back."""
    raise SystemExit(128 + number)


def _speak_to(log: Path) -> None:
    """Sends what this process says, in whatever language, to a file."""
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _end_with_parent() -> None:
    """Should the first process be killed, what it started saves and ends: another one may want to go on in the same folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


# In the first process ---------------------------------------------------------------------------------------------------------------------


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _visible_devices() -> list[str | None]:
    """For each GPU what CUDA_VISIBLE_DEVICES must say to show it alone; [None] where there is nothing to choose from."""
    count = torch.cuda.device_count()
    if count < 2:
        return [None]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [*(given.split(",")[:count] if given else map(str, range(count)))]


def _as_ctrl_c(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
