"""Commands and methods that know no task: with a detection method they work on boxes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from stillroom.cli import main
from stillroom.engine.task import task_named
from stillroom.errors import InputError

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


def test_a_default_warm_up_fits_into_any_run_and_a_typed_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["run", "supervised", "--task", "detection", "--data", TINY, "--epochs", "1", "--batch-size", "8", "--accelerator", "cpu"]
    assert main([*short, "--out", str(tmp_path / "run")]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["warmup_epochs"] == pytest.approx(2.6 / 27)
    capsys.readouterr()
    assert main([*short, "--warmup-epochs", "2.6", "--out", str(tmp_path / "other")]) == 2
    assert "--warmup-epochs: got 2.6, expected fewer than the run's epochs (1)" in capsys.readouterr().err


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


def test_an_unknown_task_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="task: got detektion, expected one of classification, multilabel, detection"):
        task_named("detektion")
    assert main(["run", "supervised", "--task", "detektion"]) == 2
    assert "--task: got detektion" in capsys.readouterr().err


MOSAICS = ("--subset", "32", "--val-subset", "16", "--batch-size", "16", "--epochs", "1", "--accelerator", "cpu")


def test_multilabel_methods_are_hosted_and_compared(tmp_path: Path) -> None:
    words = ["compare", "l2d", "dot:l2d", *MOSAICS, "--optimizer", "sgd", "--momentum", "0.9", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert set(metrics["summary"]) == {"teacher", "alone", "l2d", "dot:l2d"}
    assert metrics["failed"] == {}
    assert metrics["primary"] == "mAP"


def test_plain_training_of_a_multilabel_network_makes_a_teacher(tmp_path: Path) -> None:
    assert main(["run", "supervised", "--task", "multilabel", *MOSAICS, "--out", str(tmp_path / "teacher")]) == 0
    out = tmp_path / "run"
    assert main(["run", "dot", "--host", "l2d", *MOSAICS, "--teacher", str(tmp_path / "teacher"), "--out", str(out)]) == 0
    made, used = (json.loads((folder / "metrics.json").read_text())["stages"] for folder in (tmp_path / "teacher", out))
    assert used["teacher"][0]["metrics"] == made["alone"][0]["metrics"]


@pytest.mark.parametrize("method", ["wad", "crkd"])
def test_methods_of_several_stages_say_why_they_host_nothing(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "dot", "--host", method]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"stillroom: --host: got {method}, expected a method with a task and a distillation loss")
    assert "its stages are an experiment of their own" in said


@pytest.mark.parametrize(("host", "why"), [("kd3", "no task term"), ("ferkd", "labels: got nothing")])
def test_a_host_that_cannot_be_is_refused_before_anything_is_trained(
    host: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "dot", "--host", host, "--data", "digits", "--subset", "32", "--epochs", "1", "--out", str(tmp_path / "run")]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
