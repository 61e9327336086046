"""Runs that are killed for real, in every stage, end with the numbers of a run that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stillroom.cli import main
from stillroom.engine.weights import read_weights

# Twelve steps make an epoch, with a checkpoint after the third, sixth, ninth and last.
JOB = ["--subset", "200", "--val-subset", "60", "--batch-size", "16", "--epochs", "8", "--checkpoint-steps", "3", "--accelerator", "cpu"]
DIFFERENT = {"seconds", "samples_per_second", "latency_ms", "started", "finished", "resumed", "out", "command"}


def comparable(metrics: Any) -> Any:
    """`metrics` without times, dates and the run's own place."""
    if isinstance(metrics, dict):
        return {name: comparable(value) for name, value in metrics.items() if name not in DIFFERENT}
    return [comparable(value) for value in metrics] if isinstance(metrics, list) else metrics


def start(arguments: list[str]) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK")}
    command = [sys.executable, "-m", "stillroom.cli", *arguments]
    return subprocess.Popen(
        command, env={**kept, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=-1
    )


def wait_for(running: subprocess.Popen[str], what: Callable[[], Any], still: Any = None) -> Any:
    """What `what` answers once that is true and not `still`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        answer = what()
        if answer and answer != still:
            return answer
        if running.poll() is not None:
            assert running.stdout is not None
            pytest.fail(f"the run ended before it could be killed: {running.stdout.read()[-2000:]}")
        time.sleep(0.002)
    running.kill()
    return pytest.fail("the run never came to where it was to be killed")


def changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def kill_in(arguments: list[str], stage: Path, checkpoints: int, delay: float) -> None:
    """Starts the run and kills it in `stage`, some moments after a number of its checkpoints were seen."""
    running = start(arguments)
    try:
        wait_for(running, (stage / "stage.json").exists)
        seen = changed(stage / "last.ckpt")
        for _ in range(checkpoints):
            seen = wait_for(running, lambda: changed(stage / "last.ckpt"), still=seen)
        time.sleep(delay)
    finally:
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=60)
    assert not json.loads((stage / "stage.json").read_text())["finished"], "the kill came too late to test anything"


@pytest.mark.parametrize(
    ("method", "options", "stages"),
    [
        ("kd", [], ["teacher", "seed0/alone", "seed0/distilled"]),
        ("dot", ["--host", "crd", "--host-options", '{"negatives": 32}'], ["teacher", "seed0/alone", "seed0/crd", "seed0/crd+dot"]),
    ],
)
def test_killed_in_every_stage(tmp_path: Path, method: str, options: list[str], stages: list[str]) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["run", method, *JOB, *options, "--out", str(whole)]) == 0

    chance = random.Random(method)
    moments = [(stage, chance.randrange(7), chance.random() / 20) for stage in stages]
    for stage, checkpoints, delay in moments:
        kill_in(["run", method, *JOB, *options, "--out", str(killed)], killed / stage, checkpoints, delay)
    last = start(["run", method, *JOB, *options, "--out", str(killed)])
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0, output

    expected, found = (json.loads((out / "metrics.json").read_text()) for out in (whole, killed))
    assert comparable(found) == comparable(expected)
    weights, others = read_weights(whole / "student.safetensors"), read_weights(killed / "student.safetensors")
    assert weights.keys() == others.keys()
    assert all(value.equal(others[name]) for name, value in weights.items())
    for stage, checkpoints, _ in moments:  # the kills were real: what had a checkpoint went on from it
        record = json.loads((killed / stage / "stage.json").read_text())
        assert record["result"]["resumed"] == 1 or (checkpoints == 0 and record["result"]["resumed"] == 0), stage
