"""Processes that train together watch one another: none waits for ever for one that is gone.

What processes say to one another while they train (gradients, sums) is said in calls that nothing interrupts: if a machine dies they end
with a traceback of the library's, and if a cable is cut they end a quarter of an hour later. So every process has a line of its own to the
first one, on which both say once a second that they are there. Who is silent for `LabOptions.lost_seconds` is gone, and who was ended by a
signal says so. Then this process says one line and leaves, whatever call it is in; what it trained has its last checkpoint.

A signal is answered in the same way, where the call that the process is in lets nobody answer: before the others are there, and
`PATIENCE` seconds after a signal that asked for a clean end.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stillroom.engine.distributed import gathered, rank, when_alone, world_size
from stillroom.engine.run.machines import is_speaker
from stillroom.errors import Lost

PATIENCE = 30.0  # seconds in which a clean end that was asked for has to come
_BEAT, _DONE, _STOPPED, _GONE = b".", b"d", b"s", b"g"  # what is said on a line; behind the last one a process's number
_NUMBER = 4  # bytes of such a number
_EVERY = 1.0  # seconds between two beats
_GRACE = 5.0  # seconds in which whoever lost a connection learns whose it was

GOES_ON = "the same command goes on"


class _Line:
    """A connection to another process.

    Args:
        number: of the other.
        connection: to it.
    """

    def __init__(self, number: int, connection: socket.socket) -> None:
        self.number, self.connection = number, connection
        self.heard = time.monotonic()
        self.done = False
        connection.setblocking(False)

    def say(self, what: bytes) -> None:
        """Says something, if anybody can hear it."""
        with suppress(OSError):
            self.connection.send(what)

    def listen(self) -> bytes:
        """What was said; `_GONE` where the line was cut from the other end."""
        try:
            said = self.connection.recv(4096)
        except BlockingIOError:
            return b""
        except OSError:
            return _GONE
        self.heard = time.monotonic()
        self.done |= _DONE in said.partition(_GONE)[0]
        return said or _GONE


class Watch:
    """The lines of this process. There is one, `watch`, for as long as the processes train together."""

    def __init__(self) -> None:
        self._lines: list[_Line] = []
        self._hosts: list[str] = []
        self._seconds = 60.0
        self._thread: threading.Thread | None = None
        self._verdict: tuple[int, str] | None = None
        self._decided = threading.Event()
        self._leaving = threading.Lock()
        self._over = threading.Event()

    @property
    def active(self) -> bool:
        """Whether there are others, who were there."""
        return bool(self._lines)

    def begin(self, seconds: float) -> None:
        """Opens the lines, once the processes have met; all call it. Does nothing the second time, or in a single process.

        Args:
            seconds: of silence after which a process is taken for gone.
        """
        if self.active or world_size() < 2:
            return
        self._seconds, self._verdict = seconds, None
        self._decided.clear()
        self._over.clear()
        with socket.socket() as listening:
            if rank() == 0:
                listening.bind(("", 0))
                listening.listen(world_size())
            told = gathered((socket.gethostname(), listening.getsockname()[1] if rank() == 0 else 0))
            self._hosts = [f"{host} (process {number})" for number, (host, _) in enumerate(told)]
            if rank() == 0:
                self._lines = [self._accepted(listening) for _ in range(world_size() - 1)]
            else:
                place = (os.environ.get("MASTER_ADDR", "127.0.0.1"), told[0][1])
                connection = socket.create_connection(place, timeout=seconds)
                connection.sendall(rank().to_bytes(_NUMBER, "big"))
                self._lines = [_Line(0, connection)]
        self._thread = threading.Thread(target=self._look, daemon=True, name="watch")
        self._thread.start()

    def _accepted(self, listening: socket.socket) -> _Line:
        listening.settimeout(self._seconds)
        connection, _ = listening.accept()
        connection.settimeout(self._seconds)
        return _Line(int.from_bytes(connection.recv(_NUMBER, socket.MSG_WAITALL), "big"), connection)

    def end(self) -> None:
        """Closes the lines: the processes need one another no more. All call it."""
        self._close(_DONE)

    def leave_others(self, *, stopped: bool) -> None:
        """Closes the lines because this process ends: it was asked to stop, and so shall the others, or something is wrong with it."""
        self._close(_STOPPED if stopped else b"")

    def _close(self, message: bytes) -> None:
        self._over.set()
        for line in self._lines:
            line.say(message)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2 * _EVERY)
        for line in self._lines:
            line.connection.close()
        self._lines, self._thread = [], None

    def who_is_gone(self, error: Exception) -> Lost | None:
        """After an error, which may be that of a call among the processes: who was lost, if somebody was."""
        if not self.active:
            return _not_met(error)
        if not self._decided.wait(_GRACE):
            return None
        assert self._verdict is not None
        return Lost(self._verdict[1], self._verdict[0])

    def _look(self) -> None:
        """The thread's work."""
        said = 0.0
        while not self._over.wait(0.05):
            now = time.monotonic()
            beat = now - said >= _EVERY
            said = now if beat else said
            ready, _, _ = select.select([line.connection for line in self._lines], [], [], 0.2)
            for line in self._lines:
                if beat:
                    line.say(_BEAT)
                heard = line.listen() if line.connection in ready else b""
                if line.done:
                    continue
                words, gone, number = heard.partition(_GONE)
                if _STOPPED in words:
                    self._leave(130, f"{self._hosts[line.number]} was asked to stop; {GOES_ON}", line.number, _STOPPED)
                elif gone and len(number) >= _NUMBER:  # the first process tells of another
                    self._gone(int.from_bytes(number[:_NUMBER], "big"))
                elif gone or now - line.heard > self._seconds:
                    self._gone(line.number)

    def _gone(self, number: int) -> None:
        host = self._hosts[number] if number < len(self._hosts) else f"process {number}"
        self._leave(1, f"the process on {host} is gone; {GOES_ON}", number, _GONE + number.to_bytes(_NUMBER, "big"))

    def _leave(self, code: int, line: str, number: int, message: bytes) -> None:
        """Tells the others, and lets whoever is in a call that failed say it; leaves, where nobody does."""
        if self._over.is_set():
            return
        for other in self._lines:
            if other.number != number:
                other.say(message)
        self._verdict = code, line
        self._decided.set()
        if not self._over.wait(_EVERY):  # the call that the main thread is in does not end
            self.leave(code, line)

    def leave(self, code: int, line: str) -> None:
        """Says a line, on each machine once, and ends this process and those that it started, whatever they are doing."""
        with self._leaving:
            if is_speaker():
                with suppress(OSError, ValueError):
                    print(f"stillroom: {line}", file=sys.stderr, flush=True)
            for child in launched():
                child.kill()
            os._exit(code)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Inside, a signal that asked for a clean end is answered after `PATIENCE` where none came; at once where there is nothing to save:
        the others are not there yet, or it is the second Ctrl-C. Of the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        here, there = socket.socketpair()
        for end in (here, there):
            end.setblocking(False)
        before = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
        over = threading.Event()
        threading.Thread(target=self._answer, args=(here, over), daemon=True, name="signals").start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            over.set()
            there.close()

    def _answer(self, here: socket.socket, over: threading.Event) -> None:
        asked: list[float] = []
        presses = 0
        while not over.wait(0.05):
            with suppress(OSError):
                for number in here.recv(64):
                    if number in (signal.SIGINT, signal.SIGTERM):
                        asked.append(time.monotonic())
                        presses += number == signal.SIGINT
            if not asked:
                continue
            if not self.active:
                time.sleep(_EVERY)  # the main thread may be able to answer, after all
                if not over.is_set() and not self.active:
                    self.leave(130, f"stopped before all processes were there; {GOES_ON}")
            elif presses > 1 or time.monotonic() - asked[0] > PATIENCE:
                for line in self._lines:
                    line.say(_STOPPED)
                self.leave(130, f"stopped at once; {GOES_ON} from the last checkpoint")
        here.close()


def _not_met(error: Exception) -> Lost | None:
    """What an error says that came while the processes met: one that is started anew may meet one that is about to end."""
    places = {(Path(frame.filename).parent.name, frame.name) for frame in traceback.extract_tb(error.__traceback__)}
    meeting = any(folder == "distributed" for folder, _ in places) or ("run", Watch.begin.__name__) in places
    if not isinstance(error, RuntimeError | OSError) or not meeting:
        return None
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return Lost(f"the processes did not meet ({reason}): one is gone, or does not reach the others; {GOES_ON}")


watch = Watch()
when_alone.append(watch.end)
atexit.register(lambda: watch.leave_others(stopped=False) if hasattr(sys, "last_value") else watch.end())
_children: list[Any] = []


def launched() -> list[Any]:
    """The processes that this one started, to train together with it."""
    return _children


def look_after(children: list[Any]) -> None:
    """In the place of Lightning's observer, which ends all processes by a signal when one has ended: `watch` tells of those that met.

    One that ends before they have met, whose own line says why, ends this one too.
    """
    _children[:] = children

    def look() -> None:
        while not watch.active:
            time.sleep(0.2)
            if any(child.poll() for child in children) and not watch.active:
                code = next(child.returncode for child in children if child.returncode)
                time.sleep(_EVERY)  # this one may know as well what is wrong, and say it
                watch.leave(code if code in (1, 2, 3, 130) else 1, f"a process that this one started has ended; {GOES_ON}")

    threading.Thread(target=look, daemon=True, name="children").start()
