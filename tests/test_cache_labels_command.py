"""`stillroom cache-labels` as people meet it: written once, by one process or several, imported, exported, refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.cli import main
from stillroom.methods.ferkd.bank.reader import LabelBank
from tests.processes import Processes
from tests.torture.kill import changed, kill, wait_for

DATA = ["--data", "digits", "--subset", "60", "--val-subset", "40", "--batch-size", "20", "--accelerator", "cpu"]
SMALL = [*DATA, "--epochs", "1", "--crops", "6", "--teacher-precision", "fp32"]


def cache(out: Path, *arguments: str) -> LabelBank:
    assert main(["cache-labels", *SMALL, "--out", str(out), *arguments]) == 0
    return LabelBank(out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("command") / "bank"
    cache(out)
    return out


def test_it_stores_what_was_asked_for(finished: Path) -> None:
    bank = LabelBank(finished)
    assert (len(bank), bank.crops, bank.format.label_type, bank.format.dtype) == (60, 6, "marginal_smoothing_k5", "fp16")
    assert bank.about["input_size"] == 8
    assert bank.about["labelling"]["rule"]["flip"] == 0  # digits are not mirrored
    assert bank.result is not None
    assert bank.result.model == "stillroom/convnet24"


def test_the_same_command_again_labels_nothing_and_others_are_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*.npy")}
    cache(finished)
    output = capsys.readouterr().out
    assert f"use it: stillroom run ferkd --labels {finished}" in output.replace("\n", "")
    assert before == {file: file.stat().st_mtime_ns for file in finished.rglob("*.npy")}
    assert main(["cache-labels", *SMALL, "--out", str(finished), "--label-type", "hard"]) == 2
    assert "--label-type was 'marginal_smoothing_k5', now 'hard'" in capsys.readouterr().err


def test_exported_and_imported_it_is_the_same(finished: Path, tmp_path: Path) -> None:
    bank = cache(finished, "--export", str(tmp_path / "released"))
    again = cache(tmp_path / "bank", "--records", str(tmp_path / "released"))
    assert again.names == bank.names
    for name in ("coords", "flips", "classes", "values", "targets"):
        assert np.array_equal(again.arrays[name], bank.arrays[name])
    assert (
        main(["run", "ferkd", *DATA, "--epochs", "2", "--num-crops", "2", "--labels", str(again.path), "--out", str(tmp_path / "r")]) == 0
    )


def test_overwrite_labels_anew(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "bank"
    cache(out)
    other = cache(out, "--overwrite", "--seed", "1", "--reference", str(finished), "--label-type", "ori")
    assert np.array_equal(other.arrays["coords"], LabelBank(finished).arrays["coords"])
    assert other.format.kind == "ori"


def test_killed_and_shared_by_several_processes_it_is_the_same_bank(tmp_path: Path, processes: Processes) -> None:
    job = ["cache-labels", *SMALL, "--subset", "300", "--crops", "40", "--out"]
    assert main([*job, str(tmp_path / "whole")]) == 0
    out = tmp_path / "shared"
    victim = processes.start("stillroom.cli", *job, str(out))
    try:
        wait_for(victim, lambda: changed(out / "lanes/000.json"))
    finally:
        kill(victim)
    workers = [processes.start("stillroom.cli", *job, str(out), merged=True) for _ in range(2)]
    for worker in workers:
        output, _ = worker.communicate(timeout=240)
        assert worker.returncode == 0, output
        assert "labels: 300 images, 40 crops each" in output
    assert LabelBank(out).fingerprint() == LabelBank(tmp_path / "whole").fingerprint()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--crops", "0"], "--crops: got 0, expected a whole number of at least 1"),
        (["--label-type", "top5"], "--label-type: got top5, expected one of ori, hard"),
        (["--dtype", "bf16"], "--dtype: got bf16, expected one of fp16, fp32"),
        (["--temperature", "0"], "--temperature: got 0.0"),
        (["--crop-area", "[0.9, 0.1]"], "area: got [0.9, 0.1]"),
        (["--crop-flip", "-1"], "--crop-flip: got -1.0"),
        (["--interpolation", "nearest"], "--interpolation: got nearest, expected one of bilinear, bicubic"),
        (["--teacher", "stillroom/nothing"], "--teacher: got stillroom/nothing"),
        (["--reference", "nowhere"], "--reference: got nowhere, which is no bank of labels"),
        (["--records", "nowhere"], "--records: got nowhere, expected a folder that holds a folder train"),
        (["--devices", "2"], "--devices: got 2, expected 1"),
        (["--student", "x"], "--student"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["cache-labels", *SMALL, *arguments]) == 2
    errors = capsys.readouterr().err
    assert says in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_record_that_runs_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Run:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "it-ran",)

    records = tmp_path / "released/train/digits"
    records.mkdir(parents=True)
    for number in range(1800):
        torch.save([Run(), Run(), Run()], records / f"{number}.tar") if number < 3 else (records / f"{number}.tar").touch()
    assert main(["cache-labels", *SMALL, "--records", str(tmp_path / "released"), "--out", str(tmp_path / "bank")]) == 2
    errors = capsys.readouterr().err
    assert "stillroom: records: got" in errors or "--records: got" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "it-ran").exists()
