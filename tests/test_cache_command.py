"""`stillroom cache` as people meet it, and runs whose teacher is what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.cli import main
from stillroom.commands.cache import run
from stillroom.engine.cache import CachedTeacher
from stillroom.engine.weights import read_weights
from stillroom.errors import StillroomError

DATA = ("--data", "digits", "--subset", "60", "--val-subset", "40", "--batch-size", "20", "--accelerator", "cpu")
SMALL = (*DATA, "--epochs", "2", "--teacher-precision", "fp32")


def cache(out: Path, *arguments: str) -> None:
    run([*SMALL, "--out", str(out), *arguments], "stillroom cache")


def refused(out: Path, *arguments: str) -> str:
    with pytest.raises(StillroomError) as caught:
        cache(out, *arguments)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of a teacher that was trained for it."""
    out = tmp_path_factory.mktemp("command") / "cache"
    cache(out, "--dtype", "fp32", "--views", "2", "--taps", "middle, pooled")
    return out


def test_help_shows_its_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        run(["--help"], "stillroom cache --help")
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for option in ("--views", "--dtype", "--top", "--rest", "--taps", "--teacher", "--data", "--augment", "--teacher-precision"):
        assert option in text


def test_it_stores_what_was_asked_for(finished: Path) -> None:
    cached = CachedTeacher(finished)
    assert (cached.samples, cached.views.count) == (60, 2)
    assert cached.stored == ("layer3", "pool")
    assert cached.about["classes"] == [str(number) for number in range(10)]
    assert cached.result.model == "stillroom/convnet24"
    assert len(cached.result.details["ids"]) == 40


def test_the_same_command_again_builds_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*.npy")}
    cache(finished, "--dtype", "fp32", "--views", "2", "--taps", "middle, pooled")
    output = capsys.readouterr().out
    assert "cache: done before" in output
    assert f"--teacher cache:{finished}" in output.replace("\n", "")
    assert before == {file: file.stat().st_mtime_ns for file in finished.rglob("*.npy")}


def test_a_student_of_the_cache_is_the_student_of_the_network(finished: Path, tmp_path: Path) -> None:
    weights, reports = [], []
    for name, teacher in (("cache", f"cache:{finished}"), ("network", f"stillroom/convnet24@{finished / 'teacher'}")):
        assert main(["run", "kd", *SMALL, "--teacher", teacher, "--out", str(tmp_path / name)]) == 0
        weights.append(read_weights(tmp_path / name))
        reports.append(json.loads((tmp_path / name / "metrics.json").read_text()))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-4, atol=1e-5)
    teachers: list[dict[str, Any]] = [report["stages"]["teacher"][0] for report in reports]
    assert teachers[0]["metrics"] == teachers[1]["metrics"]
    assert teachers[0]["footprint"]["parameters"] == teachers[1]["footprint"]["parameters"]
    assert reports[0]["stages"]["alone"][0]["metrics"] == reports[1]["stages"]["alone"][0]["metrics"]
    found = [report["stages"]["distilled"][0]["metrics"]["agreement"] for report in reports]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "arguments",
    [["fitnets", "--teacher-layer", "layer3"], ["crd", "--teacher-layer", "pool", "--negatives", "8"], ["dkd"], ["dot", "--host", "dkd"]],
    ids=lambda arguments: arguments[0],
)
def test_every_method_runs_with_it(finished: Path, tmp_path: Path, arguments: list[str]) -> None:
    assert main(["run", *arguments, *SMALL, "--epochs", "1", "--teacher", f"cache:{finished}", "--out", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["stages"]["teacher"][0]["model"] == "stillroom/convnet24"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--augment", "none"], ["--teacher: got", "augment was 'digits', now 'none'"]),
        (["--subset", "61"], ["--teacher: got", "subset was 60, now 61"]),
        (["--teacher", "cache:nowhere"], ["--teacher: got nowhere, which is no cache", "stillroom cache"]),
        (["--student", "cache:nowhere"], ["--student: got"]),
    ],
)
def test_a_run_on_other_data_is_refused(
    finished: Path, tmp_path: Path, arguments: list[str], says: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["run", "kd", *SMALL, "--teacher", f"cache:{finished}", "--out", str(out), *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert all(words in output.err for words in says)
    assert not out.exists()


def test_a_layer_must_be_named_and_stored(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = ["run", "fitnets", *SMALL, "--teacher", f"cache:{finished}", "--out", str(tmp_path / "run")]
    assert main(job) == 2
    assert "--teacher-layer: got nothing" in capsys.readouterr().err
    assert main([*job, "--teacher-layer", "layer2"]) == 2
    assert "--teacher-layer: got 'layer2', expected one of those that the cache stores: layer3, pool" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--views", "0"], "--views: got 0"),
        (["--views", "3", "--augment", "none"], "--views: got 3, expected 1: without augmentation"),
        (["--dtype", "int8"], "--dtype: got int8, expected one of fp32, fp16, bf16"),
        (["--top", "0"], "--top: got 0"),
        (["--taps", "layer99"], "--taps: got 'layer99'"),
        (["--taps", "pool,pool"], "--taps: got"),
        (["--teacher", "cache:nowhere"], "--teacher: got cache:nowhere, expected a network"),
        (["--teacher", "stillroom/resnet9"], "--teacher: got stillroom/resnet9"),
        (["--devices", "2"], "--devices: got 2, expected 1"),
        (["--seeds", "3"], "--seeds: got 3, expected 1"),
        (["--student", "stillroom/convnet4"], "--student"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path: Path, arguments: list[str], says: str) -> None:
    assert says in refused(tmp_path / "cache", *arguments)
    assert not (tmp_path / "cache").exists()


def test_other_arguments_are_refused_and_overwrite_builds_anew(tmp_path: Path) -> None:
    out = tmp_path / "cache"
    cache(out, "--epochs", "1")
    assert (CachedTeacher(out).views.count, CachedTeacher(out).samples) == (8, 60)
    assert "--views was None, now 3" in refused(out, "--epochs", "1", "--views", "3")
    cache(out, "--epochs", "1", "--augment", "none", "--top", "3", "--overwrite")
    assert CachedTeacher(out).views.count == 1
    arrays = {"logits.top.npy", "logits.classes.npy", "logits.rest.npy"}
    assert {file.name for file in (out / "rows").iterdir()} == {*arrays, *(f"sum.{name}" for name in arrays)}
