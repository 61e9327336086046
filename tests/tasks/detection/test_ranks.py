"""Wrapped detectors over several processes: what they learn, and shares of a batch in which there is nothing."""

from __future__ import annotations

from pathlib import Path

import torch

from stillroom.engine.weights import read_weights
from tests.processes import Processes
from tests.tasks.detection.boxed import coco, pictures
from tests.tasks.detection.ranks_job import KINDS, train


def test_two_processes_learn_what_one_does_though_one_has_no_objects(tmp_path: Path, processes: Processes) -> None:
    made = pictures(12)
    for empty in made[:8:2]:
        empty.things = []
    data = f"{coco(tmp_path / 'data', made)},empty=keep"
    train(data, tmp_path / "one", 1, KINDS)
    noted = processes.on_two_ranks(train, data, tmp_path / "two", 2, (*KINDS, "rt-detr, denoising"))
    for kind in KINDS:
        one, two = (read_weights(tmp_path / name / "seed0" / kind) for name in ("one", "two"))
        for name, value in one.items():
            told = f"{kind}, {name}: "
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, told=told: told + text)
    for kind, first in noted[0].items():
        shares = list(zip(first, noted[1][kind], strict=True))
        assert any(min(share) == 0 < max(share) for share in shares), f"{kind}: {shares}"
        assert (0, 1) in shares or (1, 0) in shares, f"{kind}: {shares}"
    denoised = read_weights(tmp_path / "two/seed0/rt-detr, denoising")
    assert all(value.isfinite().all() for value in denoised.values())
