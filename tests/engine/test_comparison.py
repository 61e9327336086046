"""Pieces of a comparison: in this process and in several, what fails, what is stopped, and the report of it all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import synchronize
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.engine.report.files import report_json, report_table
from stillroom.engine.report.page import render
from stillroom.engine.report.results import StageResult
from stillroom.engine.run.comparison import Piece, merge, run_at_once, run_here
from stillroom.engine.run.measure import Footprint
from stillroom.engine.run.pool import Outcome, attempt, reason_of
from stillroom.errors import InputError, Interrupted, NonFiniteLoss
from stillroom.tasks.classification import ImageData
from tests.processes import Processes


def result(piece: Piece, top1: float, **details: Any) -> StageResult:
    row = {"epoch": 1.0, "val/top1": top1}
    footprint = Footprint(100, 1000, 0.1, 400)
    return StageResult(piece.arm, piece.seed, {"top1": top1}, {"epoch": 1.0, "top1": top1}, [row], footprint, 1.5, 1, "m", 0, details)


@dataclass
class Work:
    """Stands for training; arms are called by what they do."""

    folder: Path

    def __call__(self, piece: Piece) -> StageResult:
        print(f"{piece} speaks")
        if piece.arm.endswith("bad"):
            raise NonFiniteLoss(7, {"kd": float("nan")}, [1])
        if piece.arm == "worse":
            raise ZeroDivisionError("a number\nby nothing")
        if piece.arm == "stopped":
            raise Interrupted("stopped")
        if piece.arm == "dies":
            os._exit(7)
        if piece.arm == "sleeps":
            (self.folder / f"{piece.seed}.pid").write_text(str(os.getpid()))
            time.sleep(60)
        return result(piece, 90.0 + piece.seed, threads=np.array(torch.get_num_threads()), pid=np.array(os.getpid()))


def test_a_failure_is_a_reason_and_ends_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pieces = [Piece("bad", 0), Piece("worse", 0), Piece("good", 3)]
    outcomes = run_here(Work(tmp_path), pieces)
    assert "not finite at step 7" in outcomes[pieces[0]].reason
    assert outcomes[pieces[1]].reason == "ZeroDivisionError: a number by nothing"
    assert (found := outcomes[pieces[2]].result)
    assert found.metrics == {"top1": 93.0}
    said = capfd.readouterr()
    assert "bad, seed 0: failed: the loss is not finite" in said.out
    assert said.err.count("Traceback") == 1  # of what nobody foresaw


def test_being_stopped_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        attempt(Work(tmp_path), Piece("stopped", 0))


def test_reasons_are_one_short_line() -> None:
    assert reason_of(InputError("lr", -1, "more")) == "lr: got -1, expected more"
    assert len(reason_of(ValueError("x " * 1000))) == 300


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has workers fork from a process that has imported what they need; `compare --jobs 2` is tested as it is."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)


@pytest.mark.usefixtures("forked")
def test_several_processes_do_what_one_does(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # A semaphore outlives a process that is killed, and Python warns of it at the end: none is needed to hand over pieces.
    monkeypatch.setattr(synchronize.SemLock, "__init__", None)
    pieces = [Piece("good", 0), Piece("dies", 0), Piece("good", 1), Piece("good", 2), Piece("dot:bad", 0)]
    outcomes = run_at_once(Work(tmp_path), pieces, 2, tmp_path / "logs", "top1")
    assert set(outcomes) == set(pieces)
    good = [outcomes[Piece("good", seed)].result for seed in range(3)]
    assert good == [result(Piece("good", seed), 90.0 + seed) for seed in range(3)]
    assert all(one and one.details["pid"] != os.getpid() and one.details["threads"] == 1 for one in good)
    assert "ended with exit code 7" in outcomes[Piece("dies", 0)].reason
    assert "not finite" in outcomes[Piece("dot:bad", 0)].reason
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == len(pieces)  # what the processes say is not among them
    assert sorted(line[-8:] for line in lines) == [f"({n} of 5)" for n in range(1, 6)]
    assert any(line.startswith("good, seed 2: top1 92.00 after 1 epochs") for line in lines)
    assert (tmp_path / "logs/good-seed2.txt").read_text() == "good, seed 2 speaks\n"
    assert (tmp_path / "logs/dot+bad-seed0.txt").exists()


def waited_for(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except OSError:
        return False


def pids(folder: Path) -> list[int]:
    return [int(text) for path in folder.glob("*.pid") if (text := path.read_text())]


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_every_process(tmp_path: Path, number: signal.Signals) -> None:
    def stop() -> None:
        waited_for(lambda: len(pids(tmp_path)) == 2)
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Interrupted, match="same command goes on"):
        run_at_once(Work(tmp_path), [Piece("sleeps", seed) for seed in range(3)], 2, tmp_path / "logs", "top1")
    assert len(pids(tmp_path)) == 2
    assert not any(map(alive, pids(tmp_path)))
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_processes_of_a_killed_comparison_end(tmp_path: Path, processes: Processes) -> None:
    parent = processes.start(run_at_once, Work(tmp_path), [Piece("sleeps", 0)], 2, tmp_path / "logs", "top1")
    assert waited_for(lambda: len(pids(tmp_path)) == 1)
    parent.kill()
    parent.communicate()
    assert waited_for(lambda: not any(map(alive, pids(tmp_path))), 20)


class TestMerge:
    def outcomes(self) -> dict[Piece, Outcome]:
        numbers = {"alone": (90.0, 91.0), "kd": (92.0, 92.0), "dkd": (93.0, 95.0)}
        found = {
            Piece(arm, seed): Outcome(result(Piece("stage", seed), value))
            for arm, values in numbers.items()
            for seed, value in enumerate(values)
        }
        found |= {Piece("crd", seed): Outcome(reason="no such layer") for seed in range(2)}
        return found | {Piece("dot", 0): Outcome(reason="not finite"), Piece("dot", 1): Outcome(result(Piece("stage", 1), 80.0))}

    def test_arms_differences_and_failures(self, digits: ImageData) -> None:
        teacher = result(Piece("t", 0), 97.0)
        report = merge(self.outcomes(), teacher, digits, ["kd", "crd", "dkd", "dot"], started="2026-01-01T00:00:00+00:00", notes=["equal"])
        assert list(report.arms) == ["teacher", "alone", "kd", "dkd", "dot"]
        assert report.title == "kd, crd, dkd and dot, compared on equal terms"
        assert (report.baseline, report.reference) == ("alone", "kd")
        assert report.failed == {"crd": "no such layer", "dot": "seed 0: not finite"}
        data = report_json(report)
        assert {arm: gain["per_seed"] for arm, gain in data["gains"].items()} == {
            "kd": {"0": 2.0, "1": 1.0},
            "dkd": {"0": 3.0, "1": 4.0},
            "dot": {"1": -11.0},
        }
        assert data["differences"]["dkd"]["per_seed"] == {"0": 1.0, "1": 3.0}
        assert data["differences"]["dkd"]["over"] == "kd"
        assert data["differences"]["dkd"]["interval"] == pytest.approx([2 - 12.706, 2 + 12.706], abs=1e-3)
        assert "kd" not in data["differences"]
        html = render(report)
        for text in ("top-1 above alone, points", "top-1 above kd, points", "no such layer", "seed 0: not finite", "−10.7 to +14.7"):
            assert text in html

    def test_without_its_first_method_there_is_no_reference(self, digits: ImageData) -> None:
        report = merge(self.outcomes(), result(Piece("t", 0), 97.0), digits, ["crd", "kd", "dkd"], started="", notes=[])
        assert report.reference is None
        assert "dkd" in report.gains("alone")

    def test_without_the_baseline_and_with_no_method_at_all(self, digits: ImageData) -> None:
        failed = {Piece(arm, 0): Outcome(reason="no") for arm in ("alone", "kd")}
        report = merge(failed, result(Piece("t", 0), 97.0), digits, ["kd"], started="", notes=[])
        assert (report.baseline, list(report.arms), list(report.failed)) == (None, ["teacher"], ["alone", "kd"])
        assert "kd failed" in render(report)
        report_table(report)
