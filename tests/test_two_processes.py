"""The whole command on two processes, for every task and for a comparison: its numbers, and a page that the first process makes alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests import two_processes_job as job
from tests.processes import Processes


def metrics(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> Path:
    """What two processes wrote."""
    out = tmp_path_factory.mktemp("two")
    processes.on_two_ranks(job.run, out, 2)
    return out


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this process wrote."""
    out = tmp_path_factory.mktemp("one")
    job.run(out, 1)
    return out


@pytest.mark.parametrize("name", job.COMMANDS)
def test_a_command_on_two_processes_ends_with_the_numbers_of_one(one: Path, two: Path, name: str) -> None:
    assert (two / name / "report.html").exists()
    alone, shared = metrics(one / name)["stages"], metrics(two / name)["stages"]
    assert alone.keys() == shared.keys()
    for arm, (stage,) in alone.items():
        other = shared[arm][0]
        assert other["metrics"] == pytest.approx(stage["metrics"], rel=1e-3, abs=1e-3), arm
        for row, theirs in zip(stage["history"], other["history"], strict=True):
            losses = {key: value for key, value in row.items() if key.startswith("train/")}
            assert {key: theirs[key] for key in losses} == pytest.approx(losses, rel=1e-3, abs=1e-5), arm


def test_parameters_that_take_no_part_in_the_loss_stay_as_they_are(one: Path, two: Path) -> None:
    shipped = [load_file(out / "unused" / "student.safetensors") for out in (one, two)]
    assert torch.equal(shipped[0]["spare.weight"], shipped[1]["spare.weight"])
    torch.testing.assert_close(shipped[0]["network.1.weight"], shipped[1]["network.1.weight"])


def test_the_detectors_found_something_to_make_a_page_of(two: Path) -> None:
    with np.load(two / "detection/seed0/bckd/details.npz") as details:
        assert len(details["ids"]) > 0  # else precision by class asks no metric
