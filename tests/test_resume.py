"""Runs that are killed for real, in every stage, end with the numbers of a run that was left alone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from stillroom.cli import main
from tests.processes import Processes
from tests.torture.kill import CRD_DOT, JOB, differences, kill_in, start


@pytest.mark.parametrize(
    ("method", "options", "stages"),
    [
        ("kd", [], ["teacher", "seed0/alone", "seed0/distilled"]),
        ("dot", CRD_DOT, ["teacher", "seed0/alone", "seed0/crd", "seed0/crd+dot"]),
    ],
)
def test_killed_in_every_stage(tmp_path: Path, method: str, options: list[str], stages: list[str], processes: Processes) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["run", method, *JOB, *options, "--out", str(whole)]) == 0

    chance = random.Random(method)
    moments = [(stage, chance.randrange(7), chance.random() / 20) for stage in stages]
    command = ["run", method, *JOB, *options, "--out", str(killed)]
    for stage, checkpoints, delay in moments:
        alone = (method, stage) == ("kd", "seed0/distilled")  # once a process that was started by hand, which takes longer
        running = start(command) if alone else processes.start("stillroom.cli", *command)
        kill_in(running, killed / stage, checkpoints, delay)
    last = processes.start("stillroom.cli", *command, merged=True)
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0, output

    assert differences(whole, killed) == []
    for stage, checkpoints, _ in moments:  # the kills were real: what had a checkpoint went on from it
        record = json.loads((killed / stage / "stage.json").read_text())
        assert record["result"]["resumed"] == 1 or (checkpoints == 0 and record["result"]["resumed"] == 0), stage
