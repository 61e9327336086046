"""Wrapped detectors over several processes: what they learn, and shares of a batch in which there is nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from stillroom.engine.weights import read_weights
from tests.tasks.detection.boxed import coco, pictures
from tests.tasks.detection.ranks_job import KINDS, train


def test_two_processes_learn_what_one_does_though_one_has_no_objects(tmp_path: Path) -> None:
    made = pictures(12)
    for empty in made[:8:2]:
        empty.things = []
    data = f"{coco(tmp_path / 'data', made)},empty=keep"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    known = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "NODE_RANK")}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.tasks.detection.ranks_job", data, str(tmp_path / "two"), "2"],
            env={**known, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    train(data, tmp_path / "one", 1, KINDS)
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
    for kind in KINDS:
        one, two = (read_weights(tmp_path / name / "seed0" / kind) for name in ("one", "two"))
        for name, value in one.items():
            told = f"{kind}, {name}: "
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, told=told: told + text)
    noted = [json.loads((tmp_path / f"two/objects{rank}.json").read_text()) for rank in "01"]
    for kind, first in noted[0].items():
        shares = list(zip(first, noted[1][kind], strict=True))
        assert any(min(share) == 0 < max(share) for share in shares), f"{kind}: {shares}"
        assert (0, 1) in shares or (1, 0) in shares, f"{kind}: {shares}"
    denoised = read_weights(tmp_path / "two/seed0/rt-detr, denoising")
    assert all(value.isfinite().all() for value in denoised.values())
