"""Presets of the methods with the common setting: the papers' numbers, and a step on each data set in the layout that it has on disk."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml

from stillroom import catalog
from stillroom.cli import main
from stillroom.engine.room import options_of
from tests.tasks.classification.miniatures import cifar100, imagenet, tiny_imagenet

# The methods of the common setting; those with a setting of their own test their presets beside their other tests.
COMMON = ("supervised", "kd", "dkd", "fitnets", "crd", "dot")
CASES = [(method, preset) for method in COMMON for preset in catalog.load(method).chosen(None).presets if preset.startswith("paper")]

# The specification's table: what all methods share on a data set, then each method's own numbers.
MULTISTEP = {"optimizer": "sgd", "momentum": 0.9, "nesterov": False, "schedule": "multistep", "decay": 0.1, "warmup_epochs": 0}
SHARED: dict[str, dict[str, Any]] = {
    "paper": {
        "data": "cifar100:data/cifar100",
        "teacher": "stillroom/resnet32x4",
        "student": "stillroom/resnet8x4",
        "epochs": 240,
        "batch_size": 64,
        "lr": 0.05,
        "weight_decay": 5e-4,
        "milestones": [150, 180, 210],
    },
    "paper:tiny-imagenet": {
        "data": "tiny-imagenet:data/tiny-imagenet-200",
        "teacher": "torchvision/resnet18",
        "student": "stillroom/mobilenetv2_tiny",
        "epochs": 200,
        "batch_size": 256,
        "lr": 0.2,
        "weight_decay": 5e-4,
        "milestones": [60, 120, 160],
    },
    "paper:imagenet": {
        "data": "imagenet:data/imagenet",
        "teacher": "torchvision/resnet34@pretrained",
        "student": "torchvision/resnet18",
        "epochs": 100,
        "batch_size": 512,
        "lr": 0.2,
        "weight_decay": 1e-4,
        "milestones": [30, 60, 90],
    },
}
KD = {"temperature": 4, "task_weight": 0.1, "kd_weight": 0.9}
KD_IMAGENET = {"temperature": 1, "task_weight": 0.5, "kd_weight": 0.5}
DKD = {"alpha": 1, "beta": 8, "temperature": 4, "task_weight": 1, "warmup": 20}
FITNETS = {"task_weight": 1, "hint_weight": 100}
CRD = {"embed_dim": 128, "task_weight": 1, "contrast_weight": 0.8, "contrast_temperature": 0.07, "negatives": 16384}
OWN: dict[tuple[str, str], dict[str, Any]] = {
    ("supervised", "paper"): {},
    ("supervised", "paper:tiny-imagenet"): {},
    ("supervised", "paper:imagenet"): {},
    ("kd", "paper"): KD,
    ("kd", "paper:tiny-imagenet"): KD,
    ("kd", "paper:imagenet"): KD_IMAGENET,
    ("dkd", "paper"): DKD,
    ("dkd", "paper:imagenet"): {**DKD, "beta": 0.5, "temperature": 1, "warmup": 1},
    ("fitnets", "paper"): FITNETS,
    ("fitnets", "paper:imagenet"): FITNETS,
    ("crd", "paper"): CRD,
    ("crd", "paper:imagenet"): CRD,
    ("dot", "paper"): {"host": "kd", "host_options": None, "delta": 0.075},
    ("dot", "paper:tiny-imagenet"): {"host": "kd", "host_options": None, "delta": 0.075},
    ("dot", "paper:imagenet"): {"host": "kd", "host_options": KD_IMAGENET, "delta": 0.09},
}


@pytest.mark.parametrize(("method", "preset"), CASES)
def test_the_numbers_are_the_papers(method: str, preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", method, "--preset", preset, "--print_config"])
    assert not done.value.code
    values = yaml.safe_load(capsys.readouterr().out)
    expected = MULTISTEP | SHARED[preset] | OWN[method, preset]
    if method == "supervised":
        del expected["teacher"]
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize("method", ["kd", "dkd", "fitnets"])
def test_a_host_has_the_defaults_of_its_own_recipe(method: str) -> None:
    """DOT's presets name its host's numbers only where they differ from these."""
    room = catalog.load(method)
    own, alone = options_of(room.build, {"student", "teacher", "data"}), options_of(room.recipe, {"lab", "data", "plan", "networks"})
    assert own == {name: alone[name] for name in own}


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By preset: the data set in small, as ``--data`` takes it."""
    root = tmp_path_factory.mktemp("data")
    return {
        "paper": f"cifar100:{cifar100(root / 'cifar')}",
        "paper:tiny-imagenet": f"tiny-imagenet:{tiny_imagenet(root / 'tiny')}",
        "paper:imagenet": f"imagenet:{imagenet(root / 'imagenet')}",
    }


@pytest.fixture(scope="module")
def resnet34(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """In the place of the published weights."""
    file = tmp_path_factory.mktemp("weights") / "resnet34.pth"
    torch.save(torchvision.models.resnet34(num_classes=2).state_dict(), file)
    yield f"torchvision/resnet34@{file}"
    file.unlink()


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """A run's folder that does not stay: its checkpoints are large."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.mark.parametrize(("method", "preset"), CASES)
def test_a_step_on_the_papers_data(method: str, preset: str, miniatures: dict[str, str], resnet34: str, out: Path) -> None:
    """The paper's networks, on as many classes as the miniature has; the milestones lie behind the run's end."""
    batch, subset = (4, 8) if preset == "paper" else (2, 2)
    small = ["--data", miniatures[preset], "--epochs", "1", "--batch-size", str(batch), "--workers", "0", "--accelerator", "cpu"]
    small += ["--subset", str(subset), "--val-subset", "5" if preset == "paper" else "2"]
    if preset == "paper:imagenet" and method != "supervised":
        small += ["--teacher", resnet34, "--accept-teacher", "true"]
    assert main(["run", method, "--preset", preset, *small, "--out", str(out)]) == 0
    card = json.loads((out / "student.json").read_text())
    assert card["model"] == SHARED[preset]["student"]
    assert card["image_size"] == {"paper": 32, "paper:tiny-imagenet": 64, "paper:imagenet": 224}[preset]
    stages = [json.loads(file.read_text())["result"] for file in sorted(out.rglob("stage.json"))]
    assert len(stages) == {"supervised": 1, "dot": 4}.get(method, 3)
    for stage in stages:
        assert all(math.isfinite(value) for epoch in stage["history"] for value in _numbers(epoch))
        role = "teacher" if stage["name"] == "teacher" else "student"
        assert stage["model"] == SHARED[preset][role].partition("@")[0]


def _numbers(entry: dict[str, Any]) -> Iterator[float]:
    for value in entry.values():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int | float):
            yield value


@pytest.mark.parametrize("preset", ["paper:tiny-imagenet", "paper:imagenet"])
def test_a_missing_data_set_is_named(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "kd", "--preset", preset]) == 2
    assert f"got {SHARED[preset]['data'].partition(':')[2]}, expected a folder or a zip file that exists" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_unknown_preset_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "dkd", "--preset", "papr"]) == 2
    assert "expected one of default, paper, paper:imagenet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "preset", "options"),
    [
        ("kd", "paper:imagenet", KD_IMAGENET),
        ("dkd", "paper", None),
        ("dkd", "paper:imagenet", {"alpha": 1, "beta": 0.5, "temperature": 1, "warmup": 1}),
        ("crd", "paper", {"negatives": 16384}),
        ("fitnets", "paper:tiny-imagenet", None),
        ("bckd", "paper", None),
    ],
)
def test_a_preset_brings_the_host_s_own_numbers(host: str, preset: str, options: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", "dot", "--host", host, "--preset", preset, "--print_config"])
    assert not done.value.code
    values = yaml.safe_load(capsys.readouterr().out)
    assert (values["host_options"], values["delta"]) == (options, 0.09 if preset == "paper:imagenet" else 0.075)
