"""A forked process is to a test what one is that was started by hand."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from tests.processes import ROOT, Process, Processes

ENDINGS = {
    "nothing": "pass",
    "exit code": "raise SystemExit(3)",
    "last words": "raise SystemExit('wrong')",
    "error": "1 / 0",
    "signal": "os.kill(os.getpid(), signal.SIGTERM)",
    "interrupt": "os.kill(os.getpid(), signal.SIGINT)",
    "thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
    "handler": "import atexit; atexit.register(print, 'last')",
}


@pytest.mark.parametrize("statement", ENDINGS.values(), ids=list(ENDINGS))
def test_it_says_and_ends_as_a_real_one(statement: str, monkeypatch: pytest.MonkeyPatch, processes: Processes) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SAID", "something")
    running = processes.start("tests.echo", statement)
    output, errors = running.communicate(timeout=60)
    command = [sys.executable, "-m", "tests.echo", statement]
    real = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert (running.returncode, output) == (real.returncode, real.stdout)
    assert errors.splitlines()[-1:] == real.stderr.splitlines()[-1:]  # of a traceback the words; the way there is another


def sleep(begun: Path) -> None:
    try:
        begun.touch()
        time.sleep(60)
    except KeyboardInterrupt:
        print("pressed")
        raise SystemExit(130) from None


def asleep(processes: Processes, folder: Path) -> Process:
    running = processes.start(sleep, folder / "begun")
    while not (folder / "begun").exists():
        time.sleep(0.01)
    assert running.poll() is None
    return running


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGINT, (130, "pressed\n")), (signal.SIGKILL, (-signal.SIGKILL, ""))])
def test_signals_reach_it(tmp_path: Path, processes: Processes, number: int, ends: tuple[int, str]) -> None:
    running = asleep(processes, tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        running.communicate(timeout=0.1)
    running.send_signal(number)
    output, _ = running.communicate(timeout=60)
    assert (running.returncode, output) == ends


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_does_not_outlive_who_waits_for_it(tmp_path: Path, processes: Processes) -> None:
    running = asleep(processes, tmp_path)
    pid = running.pid
    del running
    deadline = time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)


def rank_and_sum(number: float) -> dict[str, float]:
    distributed.init_process_group("gloo")
    total = torch.tensor([number * (1 + distributed.get_rank())])
    distributed.all_reduce(total)
    return {"rank": distributed.get_rank(), "sum": total.item(), "drawn": np.random.random(), "hash": hash("a word")}  # noqa: NPY002


def test_two_ranks_meet_and_each_answers(processes: Processes) -> None:
    for number in (1.0, 2.0):  # one meeting after the other
        first, second = processes.on_two_ranks(rank_and_sum, number)
        assert (first["rank"], second["rank"]) == (0, 1)
        assert first["sum"] == second["sum"] == 3 * number
        for different in ("drawn", "hash"):
            assert first[different] != second[different]


def fail_on_the_second() -> None:
    print("here is rank", os.environ["RANK"], flush=True)
    if os.environ["RANK"] == "1":
        raise ValueError("no rank for me")
    time.sleep(60)


def test_a_rank_that_fails_ends_both_and_is_told(processes: Processes) -> None:
    begun = time.monotonic()
    with pytest.raises(AssertionError, match=r"rank 0: exit code -9\nhere is rank 0\n(?s:.*)rank 1: exit code 1(?s:.*)ValueError: no rank"):
        processes.on_two_ranks(fail_on_the_second)
    assert time.monotonic() - begun < 30
