"""The folder of a command that was given none, and a finished run that is trained for a few more epochs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.cli import main
from stillroom.commands.options import read_options
from stillroom.engine.lab import Lab
from stillroom.engine.room import setting_of
from stillroom.engine.weights import read_weights
from stillroom.methods.kd import recipe

SMALL = ["--data", "digits", "--epochs", "1", "--subset", "60", "--val-subset", "40", "--batch-size", "20", "--accelerator", "cpu"]


def metrics(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(run) / "metrics.json").read_text())
    return found


def test_another_experiment_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "kd", *SMALL]) == 0
    assert "runs/kd-2" not in capsys.readouterr().out
    other = ["run", "kd", *SMALL, "--temperature", "2"]
    assert main(other) == 0
    assert "runs/kd holds something else, so this run is in runs/kd-2" in capsys.readouterr().out
    assert main(["run", "kd", *SMALL, "--temperature", "3"]) == 0
    assert [metrics(f"runs/{name}")["settings"]["temperature"] for name in ("kd", "kd-2", "kd-3")] == [4, 2, 3]
    capsys.readouterr()
    for words, found in ((["run", "kd", *SMALL], "runs/kd"), (other, "runs/kd-2")):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert out.count("done before") == 3
        assert f"report: {found}/report.html" in out
    assert main([*other, "--out", "runs/kd"]) == 2  # what was named is not changed
    assert sorted(path.name for path in Path("runs").iterdir()) == ["kd", "kd-2", "kd-3"]


def test_a_project_s_own_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/kd").mkdir(parents=True)
    Path("runs/kd/config.yaml").write_text("lr: 0.1\n")
    assert main(["run", "kd", *SMALL]) == 0
    assert [path.name for path in Path("runs/kd").iterdir()] == ["config.yaml"]
    assert Path("runs/kd-2/report.html").exists()


def test_under_torchrun_the_devices_are_those_that_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", "6"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)

    def devices(*more: str) -> tuple[int, int]:
        lab = read_options(
            "stillroom run kd", recipe, ["--out", str(tmp_path), *more], setting=setting_of("classification", recipe), out="x"
        ).lab
        return lab["devices"], lab["num_nodes"]

    assert devices() == (2, 3)
    assert devices("--devices", "4") == (4, 1)
    assert devices("--num-nodes=1") == (1, 1)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert devices() == (1, 1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("going_on") / "run"
    assert main(["run", "kd", *SMALL, "--temperature", "3", "--seeds", "2", "--out", str(out)]) == 0
    return out


def test_a_few_more_epochs(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    starts: dict[str, dict[str, torch.Tensor]] = {}
    train = Lab._train

    def watched(lab: Lab, distiller: Any, *arguments: Any) -> Any:
        stage = f"{lab._prefix}{arguments[-1]}"
        starts[stage] = {name: value.clone() for name, value in distiller.student.state_dict().items()}
        return train(lab, distiller, *arguments)

    monkeypatch.setattr(Lab, "_train", watched)
    words = ["run", "kd", "--continue-from", str(finished), "--epochs", "2"]
    assert main(words) == 0
    assert sorted(starts) == ["seed0/alone", "seed0/distilled", "seed1/alone", "seed1/distilled"]  # the teacher is there
    for stage, start in starts.items():
        ended = read_weights(finished / stage)
        assert all(torch.equal(start[name], ended[name]) for name in ended)
    found, before = metrics("runs/kd"), metrics(str(finished))
    assert found["stages"]["teacher"][0]["metrics"] == before["stages"]["teacher"][0]["metrics"]
    assert [stage["epochs"] for stage in found["stages"]["distilled"]] == [2, 2]
    assert (found["baseline"], found["settings"]["temperature"], found["settings"]["subset"]) == ("alone", 3, 60)
    assert any(note.startswith(f"Goes on from {finished}: every arm, the student alone too") for note in found["notes"])
    starts.clear()
    assert main(words) == 0
    assert starts == {}
    assert not (finished / "runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "dkd", "--continue-from", "RUN"], "--continue-from: got RUN, a run of kd, expected a run of dkd"),
        (["run", "kd", "--continue-from", "nowhere"], "--continue-from: got nowhere, expected the folder of a finished run"),
        (
            ["run", "kd", "--continue-from", "RUN", "--seeds", "3"],
            "--continue-from: got RUN, expected a run with a finished stage seed2/alone",
        ),
        (
            ["run", "kd", "--continue-from", "RUN", "--student", "stillroom/convnet6"],
            "--continue-from: got 'RUN/seed0/alone/student.safetensors'",
        ),
    ],
)
def test_what_cannot_go_on_is_said(
    finished: Path, tmp_path: Path, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("RUN", str(finished)) for word in words]) == 2
    line = capsys.readouterr().err
    assert says.replace("RUN", str(finished)) in line
    assert line.count("\n") == 1
