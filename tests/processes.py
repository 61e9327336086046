"""Processes for tests that need more than one: each has torch, Lightning and Stillroom imported before it starts.

Importing them takes a process eight seconds of processor time, and a case takes one. So two servers import them once for all of pytest's
workers, on first use, and each process that a test asks for is forked from one of them: as untouched as one that was started by hand (with
an environment, folder, arguments, streams, signals and exit code of its own), and there in milliseconds. The two servers hash strings
differently, as unrelated processes do: what hangs on the order of a set differs between two ranks.

The fixture `processes` (a `Processes`) is the way in. What is about starting itself takes real processes: torchrun, Lightning's launcher,
what is imported when, what a shell sees.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import pickle
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).parents[1]
PRELOADED = (
    "pytest",
    "torch._dynamo",  # which DistributedDataParallel imports when it is made
    "torch.utils.tensorboard",
    "lightning.pytorch",
    "sklearn.datasets",
    "stillroom.commands.run",
    "stillroom.tasks.classification",
    "stillroom.tasks.detection",
    "stillroom.tasks.harmonization",
    "stillroom.tasks.imagetext",
    "stillroom.tasks.multilabel",
    "stillroom.tasks.nuclei",
    "stillroom.tasks.segmentation",
    "stillroom.tasks.video",
)
PATIENCE = 240.0  # seconds for a case on two ranks
_NUMBER = struct.Struct("q")
_FAILED = "the server of processes has failed: "


@dataclass
class Job:
    """What a process does, and where.

    Args:
        target: ``module:function``; or a module, which is run as by ``python -m``.
        arguments: of the function; or the words of the command.
        answer: the file for what the function returns.
        environment: all of it; a rank in it is the process's rank from the start.
        folder: where it is.
    """

    target: str
    arguments: tuple[Any, ...]
    answer: str
    environment: dict[str, str]
    folder: str

    def run(self) -> None:
        """Makes this process what the job asks for, and does it."""
        import numpy as np  # a server is there before it imports what takes long
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)
        np.random.seed()  # noqa: NPY002 - else all would draw what the server would have drawn; Python's own generator sees to itself
        rank_zero_only.rank = int(self.environment.get("LOCAL_RANK", 0))
        module, _, function = self.target.partition(":")
        if function:
            answer = getattr(importlib.import_module(module), function)(*self.arguments)
            Path(self.answer).write_bytes(pickle.dumps(answer))
        else:
            sys.argv, sys.path[0] = [module, *self.arguments], self.folder
            sys.modules.pop(module, None)  # it was imported, and shall run
            runpy.run_module(module, run_name="__main__", alter_sys=True)


# The server -----------------------------------------------------------------------------------------------------------------------------


def _serve(place: str) -> bytes:
    """Forks a process for each job that comes to the socket `place`, and ends with the last of its clients. The fork returns its job."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place)
        listening.listen(64)
        for name in PRELOADED:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()  # or collections in the forks would copy every page
        clients: list[socket.socket] = []
        while True:
            ready, _, _ = select.select([listening, *clients], [], [])
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            for connection in set(ready) - {listening}:
                clients.remove(connection)
                connection.close()
            if listening in ready:
                connection, _ = listening.accept()
                length, streams, _, _ = socket.recv_fds(connection, _NUMBER.size, 2)
                if not streams:
                    connection.sendall(b"!")
                    clients.append(connection)
                    continue
                if not os.fork():
                    job = _received(connection, *_NUMBER.unpack(length))
                    _keep(connection)
                    for stream, number in zip(streams, (1, 2), strict=True):
                        os.dup2(stream, number)
                        os.close(stream)
                    connection.close()
                    return job
                connection.close()
                for stream in streams:
                    os.close(stream)
            elif not clients:
                os.unlink(place)
                sys.exit()


def _keep(connection: socket.socket) -> None:
    """Forks once more and returns in the fork. What stays tells the client its number and how it ended, and kills it if the client goes."""
    pid = os.fork()
    if not pid:
        return
    connection.sendall(_NUMBER.pack(pid))
    ended, status = 0, 0
    while not ended:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended and select.select([connection], [], [], 0.01)[0]:
            os.kill(pid, signal.SIGKILL)
            os._exit(0)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


class _End:
    """Registered first, it is called last: leaves as the interpreter would, but does not spend two seconds on taking all modules apart."""

    code = 0

    def __call__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if self.code == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(self.code)


def _received(connection: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer where there come no more."""
    found = b""
    while len(found) < count and (more := connection.recv(count - len(found))):
        found += more
    return found


# Pytest's side --------------------------------------------------------------------------------------------------------------------------


class Process:
    """A running job, with the part of `subprocess.Popen` that tests use. It is killed when nobody holds this any more.

    Args:
        server: the socket of the server that forks it.
        job: what it does.
        files: the folder of its streams.
        merged: stderr goes where stdout goes.
    """

    def __init__(self, server: str, job: Job, files: Path, *, merged: bool = False) -> None:
        self.returncode: int | None = None
        self._streams = (files / "stdout", files / ("stdout" if merged else "stderr"))
        message = pickle.dumps(job)
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(server)
        with self._streams[0].open("ab") as out, self._streams[1].open("ab") as err:
            socket.send_fds(self._connection, [_NUMBER.pack(len(message))], [out.fileno(), err.fileno()])
        self._connection.sendall(message)
        self.pid = self._number()

    def poll(self) -> int | None:
        """The exit code, -N where signal N ended it, or None while it runs."""
        return self._ended(0.0)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote to stdout and stderr, once it has ended; stderr is empty where it was merged."""
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        out, err = self._streams
        return out.read_text(), "" if err == out else err.read_text()

    def send_signal(self, number: int) -> None:
        """Sends it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it by a signal that cannot be caught."""
        self.send_signal(signal.SIGKILL)

    def fileno(self) -> int:
        """For `select`: readable once it has ended."""
        return self._connection.fileno()

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self], [], [], timeout)[0]:
            self.returncode = self._number()
            self._connection.close()
        return self.returncode

    def _number(self) -> int:
        number: int = _NUMBER.unpack(_received(self._connection, _NUMBER.size))[0]
        return number


class Processes:
    """Starts processes for the tests of one of pytest's workers.

    Args:
        shared: a folder that all of pytest's workers share, for the servers.
        files: another, for what the processes say and answer.
    """

    def __init__(self, shared: Path, files: Path) -> None:
        self.shared, self.files = shared, files
        self._presences: dict[Path, socket.socket] = {}
        self._started: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, target: str | Callable[..., Any], *arguments: Any, merged: bool = False) -> Process:
        """Starts a process in this one's folder and environment, and does not wait for it.

        Args:
            target: a module to run as by ``python -m``; or a function of a module.
            arguments: the words of the command line, or what the function takes.
            merged: what it says on stderr goes where stdout goes.
        """
        (server,) = self._servers(1)
        job = self._job(target, arguments, {})
        return Process(server, job, Path(job.answer).parent, merged=merged)

    def on_two_ranks(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Calls a function of a module in two processes that know their rank by the environment, and gives what each returns.

        Lightning finds the other one itself; without Lightning, ``init_process_group("gloo")`` does.

        Raises:
            AssertionError: a process failed, or took longer than `PATIENCE`; with what both said.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2", "NODE_RANK": "0"}
        jobs = [self._job(function, arguments, {**meeting, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
        ranks = [Process(server, job, Path(job.answer).parent) for server, job in zip(self._servers(2), jobs, strict=True)]
        deadline = time.monotonic() + PATIENCE
        while running := [process for process in ranks if process.poll() is None]:
            if time.monotonic() > deadline:
                for process in running:
                    process.kill()
            select.select(running, [], [], 0.5)
            if any(process.returncode for process in ranks):  # the other one may say why too, or waits in vain
                deadline = min(deadline, time.monotonic() + 3)
        told = "\n".join(f"rank {i}: exit code {p.returncode}\n{''.join(p.communicate())[-3000:]}" for i, p in enumerate(ranks))
        assert not any(process.returncode for process in ranks), told
        return [pickle.loads(Path(job.answer).read_bytes()) for job in jobs]

    def _job(self, target: str | Callable[..., Any], arguments: tuple[Any, ...], more: dict[str, str]) -> Job:
        if not isinstance(target, str):
            target = f"{target.__module__}:{target.__qualname__}"
        kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK")}
        files = Path(tempfile.mkdtemp(dir=self.files))
        return Job(target, arguments, str(files / "answer"), {**kept, **more}, os.getcwd())

    def _servers(self, count: int) -> list[str]:
        """The sockets of so many servers. Those that are not there yet are started, and import at the same time."""
        places = [self.shared / f"server{number}" for number in range(1, count + 1)]
        new = {place: self._connected(place) for place in places if place not in self._presences}
        for place, connection in new.items():
            assert connection.recv(1), f"{_FAILED}{place.with_suffix('.txt').read_text()[-3000:]}"
        self._presences |= new
        return [str(place) for place in places]

    def _connected(self, place: Path) -> socket.socket:
        """A connection to the server at that socket, which lives as long as one of its clients is there."""
        connection = socket.socket(socket.AF_UNIX)
        with FileLock(place.with_suffix(".lock")):
            while True:
                try:
                    connection.connect(str(place))
                    connection.sendall(_NUMBER.pack(0))
                    return connection
                except (FileNotFoundError, ConnectionRefusedError):
                    if place not in self._started:
                        self._started[place] = self._server(place)
                    assert self._started[place].poll() is None, f"{_FAILED}{place.with_suffix('.txt').read_text()[-3000:]}"
                    time.sleep(0.01)

    def _server(self, place: Path) -> subprocess.Popen[bytes]:
        place.unlink(missing_ok=True)
        known = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": place.name.removeprefix("server")}
        command = [sys.executable, "-m", __name__, str(place)]
        # A session of its own: a terminal's Ctrl-C is for pytest, and when that has gone the server goes.
        with place.with_suffix(".txt").open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env=known, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


if __name__ == "__main__":
    end = _End()
    atexit.register(end)
    try:
        pickle.loads(_serve(sys.argv[1])).run()
    except BaseException as error:
        end.code = {SystemExit: 0, KeyboardInterrupt: -signal.SIGINT}.get(type(error), 1)
        if isinstance(error, SystemExit) and error.code is not None:
            end.code = error.code if isinstance(error.code, int) else 1
        raise
