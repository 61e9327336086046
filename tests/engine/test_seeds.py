"""Recipes run once per seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillroom import cli
from stillroom.engine.run import seeds


def test_after_each_seed_a_run_says_how_long_the_others_will_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(seeds, "_TELLING", 0.0)
    words = ["run", "supervised", "--data", "digits", "--subset", "64", "--val-subset", "32", "--epochs", "1", "--seeds", "3"]
    assert cli.main([*words, "--accelerator", "cpu", "--out", str(tmp_path / "run")]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if ": done; about" in line]
    assert [line.partition(";")[0] for line in told] == ["seed 0: done", "seed 1: done"]
    assert [line.rpartition(" for ")[2] for line in told] == ["the 2 left", "the 1 left"]
