"""`stillroom export --quantize int8`: the file, what it costs on the validation set, and that the report says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml

from stillroom.cli import main

DATA = ["--data", "digits", "--subset", "400", "--val-subset", "200"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "run"
    assert main(["run", "supervised", *DATA, "--student", "stillroom/convnet12", "--epochs", "3", "--out", str(folder)]) == 0
    return folder


def test_the_int8_file_answers_as_it_is_said_to(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--quantize", "int8", "--calibration", "100"]) == 0
    out = capsys.readouterr().out
    told = re.search(r"top-1 (\S+) %, \S+ points from the student's (\S+) % on 200 validation samples; .*measured on 100 training", out)
    assert told is not None, out
    own = json.loads((run / "metrics.json").read_text())
    assert float(told[2]) == pytest.approx(own["stages"]["alone"][0]["metrics"]["top1"], abs=0.06)
    file = run / "student_int8.onnx"
    assert file.stat().st_size < 0.6 * (run / "student.safetensors").stat().st_size
    session = onnxruntime.InferenceSession(file)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == [str(digit) for digit in range(10)]
    shape = session.get_inputs()[0].shape
    assert session.run(None, {"images": np.zeros((3, *shape[1:]), np.float32)})[0].shape == (3, 10)
    for _ in range(2):  # a second time the sentence is replaced
        assert sum(note.startswith("student_int8.onnx (int8): top-1") for note in own["notes"]) <= 1
        assert (run / "report.html").read_text().count("student_int8.onnx (int8): top-1") == 1
        assert main(["export", str(run), "--quantize", "int8"]) == 0
        own = json.loads((run / "metrics.json").read_text())


def test_a_run_that_was_exported_is_still_stillrooms_to_replace(run: Path) -> None:
    assert main(["export", str(run), "--quantize", "int8"]) == 0
    assert main(["run", "supervised", *DATA, "--student", "stillroom/convnet12", "--epochs", "3", "--out", str(run)]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quantize", "int4"], "--quantize: got int4, expected int8"),
        (["--quantize", "int8", "--format", "torch"], "--format: got torch, expected onnx"),
        (["--data", "digits"], "--quantize int8 beside it"),
        (["--quantize", "int8", "--calibration", "0"], "--calibration: got 0"),
        (["--quantize", "int8", "--data", "imagefolder:nowhere"], "--data"),
    ],
)
def test_what_cannot_be_quantized_is_one_line(options: list[str], message: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.rglob("*"))
    assert main(["export", str(run), *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert sorted(run.rglob("*")) == before


def test_data_that_have_moved_are_asked_for(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("student.json", "student.safetensors"):
        (moved / name).write_bytes((run / name).read_bytes())
    (moved / "config.yaml").write_text(yaml.safe_dump({**config, "data": "imagefolder:gone"}))
    assert main(["export", str(moved), "--quantize", "int8"]) == 2
    assert "gone" in capsys.readouterr().err
    assert main(["export", str(moved), "--quantize", "int8", "--data", "digits"]) == 0
