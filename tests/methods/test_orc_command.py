"""`stillroom run orc`: its report, its networks afterwards, its presets, and what it refuses."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml

import stillroom
from stillroom.cli import main
from stillroom.engine import Teacher
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.orc import build
from stillroom.methods.orc.recipe import PRESETS, specs_of
from stillroom.tasks.classification import ImageData, build_classifier
from tests.tasks.classification.miniatures import cifar100, imagenet

pytestmark = pytest.mark.usefixtures("kept_checkpoints")

SMALL = ["--data", "digits", "--subset", "160", "--val-subset", "60", "--batch-size", "32", "--epochs", "2", "--accelerator", "cpu"]
NETWORKS = ["--teacher", "stillroom/convnet9", "--student", "stillroom/convnet4"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two seeds; one network of the group is the user's own."""
    folder = tmp_path_factory.mktemp("run")
    own = folder / "own.py"
    own.write_text(
        "from torch import nn\n\n\n"
        "def small(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, num_classes))\n"
    )
    group = f"stillroom/convnet6,{own}:small"
    assert main(["run", "orc", *SMALL, *NETWORKS, "--group", group, "--seeds", "2", "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_the_report_compares_with_kd_and_tells_of_the_group(finished: Path) -> None:
    found = json.loads((finished / "metrics.json").read_text())
    assert list(found["stages"]) == ["teacher", "alone", "kd", "orc"]
    assert found["baseline"] == "kd"
    members = ["convnet6", "own.py_small", "target"]
    for seed, stage in enumerate(found["stages"]["orc"]):
        metrics = stage["metrics"]
        assert sum(metrics[f"promotions of {name}"] for name in members) == pytest.approx(100)
        scores = {name: metrics[f"top-1 of {name}"] for name in (*members[:-1], "pivot")}
        best = max(scores[name] for name in members[:-1])
        note = found["notes"][seed]
        assert note.startswith(f"Seed {seed}: temporary teacher in 10 iterations: convnet6 ")
        assert f"{max(best, metrics['top1']):.1f} %" in note
    page = (finished / "report.html").read_text()
    assert "top-1 of convnet6" in page
    assert found["notes"][0].partition(":")[0] in page


def test_every_network_of_the_group_is_kept(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the weights that training left them, as whose accuracy they were reported."""
    checkpoint = torch.load(finished / "seed1/orc/last.ckpt", weights_only=True)["state_dict"]
    for name, place in (("convnet6", "group.0."), ("own.py_small", "group.1."), ("pivot", "pivot.")):
        weights = read_weights(finished / f"seed1/orc-{name}")
        assert weights
        assert all(torch.equal(checkpoint[place + key], value) for key, value in weights.items())
    shipped = read_weights(finished / "student.safetensors")
    trained = torch.load(finished / "seed0/orc/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(trained[f"student.{key}"], value) for key, value in shipped.items())


def test_the_same_command_again_reads_what_is_finished(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads((finished / "metrics.json").read_text())
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    monkeypatch.setattr("stillroom.methods.orc.ORC.training_step", None)  # a single step would fail
    command = ["run", "orc", *SMALL, *NETWORKS, "--group", settings["group"], "--seeds", "2", "--out", str(finished)]
    assert main(command) == 0
    after = json.loads((finished / "metrics.json").read_text())
    assert after["stages"] == before["stages"]
    assert after["notes"] == before["notes"]


def test_the_student_can_be_used(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = stillroom.load(finished)
    assert len(student.classes) == 10
    ImageData("digits").val_image(0).save(tmp_path / "digit.png")
    assert main(["predict", str(finished), str(tmp_path / "digit.png")]) == 0
    assert main(["export", str(finished), "--format", "safetensors", "--out", str(tmp_path / "exported")]) == 0
    assert capsys.readouterr().out


def test_it_can_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = '{"group": ["stillroom/convnet6"], "promotion": "none"}'
    command = ["compare", "kd", "orc", *SMALL, *NETWORKS, "--epochs", "1", f"--options.orc={options}", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert list(found["stages"]) == ["teacher", "alone", "kd", "orc"]


def test_a_group_is_written_with_commas_or_as_a_list() -> None:
    assert specs_of("stillroom/convnet12, timm/resnet18") == specs_of(["stillroom/convnet12", "timm/resnet18"])
    assert specs_of("") == specs_of([]) == []


def test_networks_of_one_kind_have_names_of_their_own(digits: ImageData) -> None:
    networks = [build_classifier("stillroom/convnet4", num_classes=10).network for _ in range(2)]
    made = build(networks[0], Teacher(networks[1]), digits, group=["stillroom/convnet6", "stillroom/convnet6", "stillroom/convnet9"])
    assert made.names == ("convnet6", "convnet6-2", "convnet9", "target")
    assert made.pivot is not networks[1]  # which other arms still need as it is


def test_a_teacher_that_is_no_network_is_refused(digits: ImageData) -> None:
    networks = [build_classifier("stillroom/convnet4", num_classes=10).network for _ in range(3)]
    with pytest.raises(InputError, match=r"^teacher: got an ensemble of 2 networks, expected a single network"):
        build(networks[0], Teacher(networks[1:]), digits)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--num-promoted", "3"], "--num-promoted: got 3, expected a number from 0 to 2: of a group of 3 networks"),
        (["--group", ""], "--num-promoted: got 1, expected a number from 0 to 0: of a group of 1 networks"),
        (["--group", "stillroom/convnet13,stillroom/convnet6"], "--group: got stillroom/convnet13, expected a network of Stillroom"),
        (["--group", "stillroom/convnet6@none.safetensors"], "--group: got 'none.safetensors', which does not exist"),
        (["--promotion", "best"], "--promotion: got best, expected one of dynamic, fixed, none"),
        (["--mixing", "both"], "--mixing: got both, expected one of mix, feedback, train"),
        (["--balance", "1.1"], "--balance: got 1.1, expected a number from 0 to 1"),
        (["--pivot-lr-factor", "-1"], "--pivot-lr-factor: got -1.0"),
        (["--accumulate", "2"], "--accumulate: got 2, expected 1"),
        (["--fixed-index", "7", "--promotion", "fixed"], "--fixed-index: got 7, expected a number from 0 to 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_one_line_and_leave_nothing(
    options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "orc", *SMALL, *options, "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert says in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_finished_run_needs_no_checkpoint(tmp_path: Path) -> None:
    command = ["run", "orc", *SMALL, *NETWORKS, "--group", "stillroom/convnet6", "--epochs", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    before = json.loads((tmp_path / "out/metrics.json").read_text())
    (tmp_path / "out/seed0/orc/last.ckpt").unlink()
    assert main(command) == 0
    after = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (after["stages"], after["notes"]) == (before["stages"], before["notes"])
    shutil.rmtree(tmp_path / "out/seed0/orc-pivot")
    assert main(command) == 0  # the pivot was kept beside the student, and is scored again
    again = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (again["stages"], again["notes"]) == (before["stages"], before["notes"])


# The presets ---------------------------------------------------------------------------------------------------------------------------

SHARED = {"optimizer": "sgd", "momentum": 0.9, "schedule": "multistep", "decay": 0.1, "num_promoted": 1, "mixup_alpha": 1.0}
SHARED |= {"promotion": "dynamic", "feedback_temperature": 1.0, "pivot_lr_factor": 0.1, "teaching": "individual", "intensive": True}
CIFAR = {**SHARED, "epochs": 240, "lr": 0.05, "weight_decay": 5e-4, "batch_size": 64, "milestones": [150, 180, 210]}
CIFAR |= {"balance": 0.9, "temperature": 4.0}
CIFAR10 = {"data": "cifar10:data/cifar10", "teacher": "stillroom/resnet26", "group": "stillroom/resnet20,stillroom/resnet14"}
CIFAR10 |= {"student": "stillroom/resnet8"}
EARLIER = {"temperature": 5.0, "epochs": 160, "lr": 0.1, "milestones": [80, 120], "weight_decay": 1e-4, "batch_size": 128}
PAPER: dict[str, dict[str, Any]] = {
    "paper": {**CIFAR, **CIFAR10},
    "paper:cifar10": {**CIFAR, **CIFAR10, **EARLIER},
    "paper:cifar100": {**CIFAR, "data": "cifar100:data/cifar100", "teacher": "stillroom/resnet56", "student": "stillroom/resnet20"},
    "paper:imagenet": {
        **SHARED,
        "data": "imagenet:data/imagenet",
        "teacher": "torchvision/resnet34@pretrained",
        "student": "torchvision/resnet18",
        "epochs": 100,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "batch_size": 256,
        "milestones": [30, 60, 90],
        "balance": 0.5,
        "temperature": 1.0,
    },
}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_numbers_are_the_specification_s(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", "orc", "--preset", preset, "--print_config"])
    assert not done.value.code
    values = yaml.safe_load(capsys.readouterr().out)
    assert {name: values[name] for name in PAPER[preset]} == PAPER[preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_group_lies_between_the_pivot_and_the_target(preset: str) -> None:
    def size(spec: str) -> int:
        with torch.device("meta"):
            built = build_classifier(spec.partition("@")[0], num_classes=10)
        return sum(p.numel() for p in built.network.parameters())

    chain = [PRESETS[preset]["teacher"], *specs_of(PRESETS[preset]["group"]), PRESETS[preset]["student"]]
    sizes = [size(spec) for spec in chain]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4


def cifar10(root: Path) -> Path:
    """CIFAR-10's Python version: pickles of noise, of two classes."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {"data": numbers.integers(0, 256, (4, 3072), np.uint8), "labels": [0, 1, 0, 1]}
        (folder / name).write_bytes(pickle.dumps({**content, "filenames": [f"{name}_{i}.png" for i in range(4)]}, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile"]}, protocol=2))
    return root


@pytest.fixture
def resnet34(tmp_path: Path) -> Iterator[str]:
    """In the place of the published weights."""
    file = tmp_path / "resnet34.pth"
    torch.save(torchvision.models.resnet34(num_classes=2).state_dict(), file)
    yield f"torchvision/resnet34@{file}"
    file.unlink()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_step_on_the_paper_s_data(preset: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    data = {
        "paper": lambda: f"cifar10:{cifar10(tmp_path / 'data')}",
        "paper:cifar10": lambda: f"cifar10:{cifar10(tmp_path / 'data')}",
        "paper:cifar100": lambda: f"cifar100:{cifar100(tmp_path / 'data')}",
        "paper:imagenet": lambda: f"imagenet:{imagenet(tmp_path / 'data')}",
    }[preset]()
    small = [
        "--data",
        data,
        "--epochs",
        "1",
        "--batch-size",
        "4",
        "--workers",
        "0",
        "--accelerator",
        "cpu",
        "--subset",
        "5",
        "--val-subset",
        "5",
    ]
    if preset == "paper:imagenet":
        small[small.index("--batch-size") + 1] = "2"
        small[small.index("--subset") + 1 :: 2] = ["2", "2"]
        # One network of the group: its checkpoints are large.
        small += ["--teacher", request.getfixturevalue("resnet34"), "--group", PRESETS[preset]["group"].split(",")[1]]
        small += ["--accept-teacher", "true"]
    if preset in ("paper", "paper:cifar10"):
        small[small.index("--val-subset") + 1] = "4"
    out = tmp_path / "out"
    assert main(["run", "orc", "--preset", preset, *small, "--out", str(out)]) == 0
    card = json.loads((out / "student.json").read_text())
    assert card["model"] == PAPER[preset]["student"]
    stage = json.loads((out / "seed0/orc/stage.json").read_text())["result"]
    assert np.isfinite([stage["history"][0][f"train/{term}"] for term in ("intensive", "private", "group")]).all()
    for file in out.rglob("*.ckpt"):
        file.unlink()


def test_a_pivot_with_statistics_of_its_own_reads_its_own(tmp_path: Path) -> None:
    """The frozen pivot must be as good within ORC as it is as a teacher."""
    assert (
        main(["run", "supervised", *SMALL, "--student", "stillroom/convnet9", "--mean", "[0.1,0.1,0.1]", "--out", str(tmp_path / "t")]) == 0
    )
    command = [
        "run",
        "orc",
        *SMALL,
        "--teacher",
        f"stillroom/convnet9@{tmp_path / 't/student.safetensors'}",
        "--student",
        "stillroom/convnet4",
    ]
    command += ["--teacher-mean", "[0.1,0.1,0.1]", "--group", "stillroom/convnet6", "--intensive", "false", "--epochs", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    metrics = {arm: stages[0]["metrics"] for arm, stages in json.loads((tmp_path / "out/metrics.json").read_text())["stages"].items()}
    assert metrics["orc"]["top-1 of pivot"] == metrics["teacher"]["top1"]
