"""Commands and methods that know no task: with a detection method they work on boxes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillroom.cli import main
from stillroom.errors import InputError
from stillroom.tasks.experiments import experiment_of

TINY = "scenes:size=32,train=16,val=8,teacher=16"
SMALL = ("--data", TINY, "--epochs", "1", "--teacher-epochs", "1", "--warmup-epochs", "0", "--batch-size", "8", "--accelerator", "cpu")


def test_dot_trains_a_detector_s_losses(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["run", "dot", "--host", "bckd", *SMALL, "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["summary"]) == ["teacher", "alone", "bckd", "bckd+dot"]
    assert metrics["primary"] == "AP"
    assert (out / "student.safetensors").is_file()


def test_plain_training_of_a_detector_makes_a_teacher(tmp_path: Path) -> None:
    alone = [option for option in SMALL if option not in ("--teacher-epochs",)]
    alone.remove("1")
    assert main(["run", "supervised", "--task", "detection", *alone, "--out", str(tmp_path / "teacher")]) == 0
    out = tmp_path / "run"
    assert main(["run", "bckd", *SMALL, "--teacher", str(tmp_path / "teacher"), "--out", str(out)]) == 0
    made, used = (json.loads((folder / "metrics.json").read_text())["stages"] for folder in (tmp_path / "teacher", out))
    assert used["teacher"][0]["metrics"] == made["alone"][0]["metrics"]
    assert used["teacher"][0]["model"] == "stillroom/gfl_24"


def test_detection_methods_are_compared(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["compare", "bckd", "dot:bckd", *SMALL, "--optimizer", "sgd", "--lr", "0.01"]
    assert main([*words, "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["summary"]) == {"teacher", "alone", "bckd", "dot:bckd"}
    assert metrics["failed"] == {}


def test_the_paper_preset_of_a_host_is_its_task_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "dot", "--host", "bckd", "--preset", "paper", "--print_config"])
    printed = capsys.readouterr().out
    assert "student: gfl/resnet50" in printed
    assert "delta: 0.075" in printed


def test_a_task_without_an_experiment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="task: got detektion, expected one of classification, detection"):
        experiment_of("detektion")
    assert main(["run", "supervised", "--task", "detektion"]) == 2
    assert main(["run", "dot", "--host", "l2d"]) == 2
    assert "host: got multi-label classification" in capsys.readouterr().err
