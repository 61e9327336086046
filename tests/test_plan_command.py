"""`stillroom plan run METHOD`: the stages, their length and their cost, from a few steps; nothing is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stillroom.cli import main

SMALL = ["--data", "digits", "--subset", "300", "--val-subset", "100", "--batch-size", "64", "--teacher", "stillroom/convnet12"]
SMALL += ["--student", "stillroom/convnet4", "--epochs", "2", "--teacher-epochs", "3"]


def stages(out: str) -> dict[str, list[str]]:
    head = next(number for number, line in enumerate(out.splitlines()) if line.startswith("stage "))
    rows = [line.split() for line in out.splitlines()[head + 1 :]]
    return {row[0]: row[1:] for row in rows[: next(number for number, row in enumerate(rows) if row[0] in ("about", "nothing"))]}


def test_a_plan_has_the_stages_of_the_run_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "run", "kd", *SMALL, "--seeds", "2", "--out", "x"]) == 0
    out = capsys.readouterr().out
    found = stages(out)
    assert {name: row[:3] for name, row in found.items()} == {
        "teacher": ["1", "3", "4"],  # once, 3 epochs, 300 // 64 steps each
        "alone": ["2", "2", "4"],
        "distilled": ["2", "2", "4"],
    }
    assert list(tmp_path.iterdir()) == []
    assert main(["run", "kd", *SMALL, "--out", "x"]) == 0  # the numbers of steps are the run's own
    told = json.loads(Path("x/metrics.json").read_text())["stages"]
    capsys.readouterr()
    assert {name: stage[0]["epochs"] for name, stage in told.items()} == {"teacher": 3, "alone": 2, "distilled": 2}
    before = {file: file.stat().st_mtime_ns for file in Path("x").rglob("*")}
    assert main(["plan", "run", "kd", *SMALL, "--seeds", "1", "--out", "x"]) == 0
    out = capsys.readouterr().out
    assert "nothing is left to do" in out
    assert out.count("done before") == 3
    assert {file: file.stat().st_mtime_ns for file in Path("x").rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kd"], "COMMAND: got kd, expected a command line of run"),
        (["run", "no-such"], "no-such"),
        (["run", "boss"], "METHOD: got boss, a search"),
        (["run", "kd", "--epochs", "0", "--data", "digits"], "epochs"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_an_epoch_of_one_step_is_timed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "run", "kd", *SMALL, "--subset", "40", "--out", str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    assert {row[2] for row in stages(out).values()} == {"1"}
    assert "nan" not in out
    assert re.search(r"about \d", out)
