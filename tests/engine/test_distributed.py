"""Two processes on the CPU end with the weights of one that sees the same global batches."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stillroom.engine.distributed import average_gradients
from stillroom.engine.weights import read_weights
from tests.engine import ddp_job
from tests.processes import Processes


def environment() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK")}
    return {**kept, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}


def close(first: Path, second: Path) -> None:
    one, two = read_weights(first / "seed0/distilled"), read_weights(second / "seed0/distilled")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
    results = [json.loads((out / "seed0/distilled/stage.json").read_text())["result"] for out in (first, second)]
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], rel=1e-3)
    for row, other in zip(results[0]["history"], results[1]["history"], strict=True):
        assert row["train/ce"] == pytest.approx(other["train/ce"], rel=1e-3)


@pytest.mark.parametrize("method", ["kd", "dkd", "dot"])
def test_two_processes_equal_one(tmp_path: Path, method: str, processes: Processes) -> None:
    ddp_job.main(method, tmp_path / "one", 1)
    processes.on_two_ranks(ddp_job.main, method, tmp_path / "two", 2)
    close(tmp_path / "one", tmp_path / "two")


def test_dot_accumulates_the_same_over_two_processes(tmp_path: Path, processes: Processes) -> None:
    ddp_job.main("dot", tmp_path / "one", 1, 2)
    processes.on_two_ranks(ddp_job.main, "dot", tmp_path / "two", 2, 2)
    close(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_who_starts_the_processes_makes_no_difference(tmp_path: Path, launcher: str) -> None:
    ddp_job.main("kd", tmp_path / "one", 1)
    known = environment()
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={known['MASTER_PORT']}"]
    command = [sys.executable, *(torchrun if launcher == "torchrun" else []), ddp_job.__file__, str(tmp_path / "two"), "2"]
    done = subprocess.run(command, env=known, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    close(tmp_path / "one", tmp_path / "two")


def test_average_gradients_keeps_absent_absent_in_one_process() -> None:
    parameters = [torch.zeros(2), torch.zeros(3)]
    assert average_gradients([None, torch.ones(3)], parameters)[0] is None


def test_ctrl_c_ends_cleanly_says_how_to_go_on_and_the_next_start_finishes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stillroom.cli", "run", "kd", "--data", "digits", "--out", str(tmp_path / "run")]
    command += ["--epochs", "300", "--subset", "160"]
    command += ["--checkpoint-steps", "2"]
    running = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "run/teacher/last.ckpt"
    for _ in range(600):
        if checkpoint.exists() or running.poll() is not None:
            break
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 130, output + errors
    assert "the same command goes on from here" in errors
    assert "Traceback" not in errors
    assert torch.load(checkpoint, weights_only=False)["epoch"] >= 0
