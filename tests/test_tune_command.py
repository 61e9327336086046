"""`stillroom tune` as a user types it: on small real digits, in this process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillroom.cli import main
from stillroom.commands.tune import read_budget
from stillroom.engine.room import Room
from stillroom.engine.study.space import Choice, Float
from stillroom.errors import InputError

SMALL = [
    "--data",
    "digits",
    "--subset",
    "100",
    "--val-subset",
    "60",
    "--batch-size",
    "20",
    "--student",
    "stillroom/convnet3",
    "--epochs",
    "2",
    "--lr",
    "0.1",
]
TEACHER = ["--teacher", "stillroom/convnet4"]


def metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("tune") / "run"
    space = "{temperature: {low: 1, high: 16, log: true}, batch_size: [10, 20], task_weight: null, kd_weight: null, weight_decay: null}"
    command = ["tune", "kd", *SMALL, *TEACHER, "--budget", "3trials", "--sampler", "random", "--space", space, "--out", str(run)]
    assert main(command) == 0
    return run


def test_the_winner_and_the_default_are_judged_by_images_that_the_search_never_saw(tuned: Path) -> None:
    report = metrics(tuned)
    assert list(report["stages"]) == ["teacher", "alone", "default", "tuned"]
    assert report["baseline"] == "default"
    assert set(yaml.safe_load((tuned / "space.yaml").read_text())) == {"lr", "temperature", "batch_size"}
    indices = json.loads((tuned / "search/teacher/indices.json").read_text())
    assert len(indices["train"]) == 80
    assert len(indices["held out"]) == 20
    assert not set(indices["train"]) & set(indices["held out"])
    for stage in ("default", "tuned"):  # trained on all training images
        assert len(report["stages"][stage][0]["history"]) == 2
    page = (tuned / "report.html").read_text()
    assert "The search" in page
    assert "best of many" in page


def test_trials_leave_no_weights_behind(tuned: Path) -> None:
    assert not list(tuned.glob("search/**/trials/**/*.safetensors"))


def test_the_winner_is_run_by_its_configuration_with_the_same_result(tuned: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((tuned / "winner/config.yaml").read_text())
    assert 1 <= config["temperature"] <= 16
    assert config["batch_size"] in (10, 20)
    assert main(["run", "kd", "--config", str(tuned / "winner/config.yaml"), "--out", str(tmp_path / "run")]) == 0
    mine, theirs = metrics(tmp_path / "run")["stages"]["distilled"][0], metrics(tuned)["stages"]["tuned"][0]
    assert mine["metrics"]["nll"] == pytest.approx(theirs["metrics"]["nll"], rel=1e-5)  # evaluated in batches of another size
    assert mine["history"][-1]["train/total"] == theirs["history"][-1]["train/total"]


def test_more_trials_go_on_where_it_stopped(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load((tuned / "config.yaml").read_text())
    (tuned.parent / "more.yaml").write_text(yaml.safe_dump({**settings, "budget": "4trials"}))
    assert main(["tune", "kd", "--config", str(tuned.parent / "more.yaml"), "--out", str(tuned)]) == 0
    said = capsys.readouterr().out
    assert "goes on after 3 finished trials" in said
    assert "4 of 4" in said


def test_plain_training_is_tuned_by_another_metric_and_trials_are_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--budget", "7", "--for", "nll", "--pruner", "median", "--space", "{lr: {low: 1.0e-6, high: 0.5, log: true}}"]
    small = [word for word in SMALL if word != "--accept-teacher"]
    assert main(["tune", "supervised", *small, *options, "--epochs", "4", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if " of 7: nll " in line or " of 7: given up" in line]
    assert len(lines) == 7
    best = min(float(line.split("nll ")[1].split(";")[0]) for line in lines if "given up" not in line)
    assert f"best {best:.2f}" in lines[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["kd", "--budget", "3x"], "--budget.*50trials"),
        (["kd", "--budget", "0trials"], "--budget"),
        (["kd", "--for", "nosuch"], "--for.*top1"),
        (["kd", "--space", "{nosuch: [1, 2]}"], "--space.*nosuch"),
        (["kd", "--space", "{lr: 3}"], "space.lr"),
        (["kd", "--held-out", "0"], "--held-out"),
        (["kd", "--held-out", "0.999"], "--held-out"),
        (["kd", "--sampler", "nosuch"], "--sampler"),
        (["kd", "--storage", "nosuch://there"], "--storage"),
        (["boss"], "METHOD"),
        (["nosuch"], "nosuch"),
        ([], "METHOD"),
    ],
)
def test_wrong_input_is_said_in_a_line_before_anything_is_trained(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--out", str(tmp_path / "run")] if options and options[0] == "kd" else []
    assert main(["tune", *options[:1], *(SMALL if run else []), *options[1:], *run]) == 2
    out, told = capsys.readouterr()
    assert re.search(said, told), told
    assert told.count("\n") == 1
    assert "epoch" not in out
    assert not (tmp_path / "run").exists()


def test_budgets() -> None:
    assert read_budget("50trials") == (50, None)
    assert read_budget("50") == (50, None)
    assert read_budget("1.5h") == (None, 5400.0)
    assert read_budget("90s") == (None, 90.0)
    with pytest.raises(InputError):
        read_budget("m")


def test_declared_ranges_hold_the_defaults() -> None:
    from stillroom import catalog

    declared = 0
    for method in catalog.METHODS:
        room: Room | None = catalog.load(method.name) if method.room else None
        for name, one in (room.space if room is not None else {}).items():
            assert room is not None
            value = room.options[name]
            assert isinstance(one, Choice | Float) or float(value).is_integer()
            assert one.holds(value), f"{method.name}: {name}"
            declared += 1
    assert declared > 10
