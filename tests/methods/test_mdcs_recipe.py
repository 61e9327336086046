"""MDCS from the command line: a user's own images and networks, what is refused, and the papers' presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image

import stillroom
from stillroom.cli import main
from stillroom.engine.weights import read_weights
from stillroom.methods.mdcs.recipe import PRESETS
from stillroom.tasks.images.networks import ExpertNetwork
from tests.tasks.classification.miniatures import cifar100


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's unbalanced folder: noise of another size and colour for each of three classes of 24, 8 and 4 images."""
    root, numbers = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label, (name, count) in enumerate({"cat": 24, "dog": 8, "owl": 4}.items()):
        (root / name).mkdir()
        for i in range(count):
            noise = numbers.integers(0, 120, (40 + i, 50, 3), np.uint8)
            noise[..., label] += 100
            Image.fromarray(noise).save(root / name / f"{i}.jpg")
    return root


def test_a_users_own_unbalanced_folder(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["run", "mdcs", "--data", f"imagefolder:{photos}", "--image-size", "32", "--epochs", "2", "--batch-size", "8"]
    command += ["--workers", "0", "--few-below", "4", "--many-above", "10", "--accelerator", "cpu", "--out", str(out)]
    assert main(command) == 0
    written = json.loads((out / "metrics.json").read_text())
    assert set(written["stages"]) == {"alone", "diverse", "distilled"}
    assert written["baseline"] == "alone"
    names = {"top1", "many", "medium", "few"}
    for (stage,) in written["stages"].values():
        assert names | {f"expert{e}_{name}" for e in (1, 2, 3) for name in names} <= stage["metrics"].keys()
        assert stage["metrics"]["expert_divergence"] > 0
    assert "many-shot 1 (more than 10); medium-shot 1 (4 to 10); few-shot 1 (fewer than 4)" in " ".join(written["notes"])
    assert "expert 3 few-shot" in (out / "report.html").read_text()

    loaded = stillroom.load(out)
    assert isinstance(loaded.network, ExpertNetwork)
    assert loaded.classes == ("cat", "dog", "owl")
    assert main(["predict", str(out), str(photos / "owl")]) == 0
    for format in ("onnx", "torch", "safetensors"):
        assert main(["export", str(out), "--format", format]) == 0


def test_experts_of_ones_own(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "from stillroom.tasks.images.networks import ExpertNetwork\n"
        "def build(num_classes):\n"
        "    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())\n"
        "    branches = [nn.Sequential(nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()) for _ in range(2)]\n"
        "    return ExpertNetwork(trunk, branches, 8, num_classes)\n"
    )
    command = [
        "run",
        "mdcs",
        "--data",
        f"imagefolder:{photos}",
        "--image-size",
        "16",
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--workers",
        "0",
    ]
    command += ["--student", f"{tmp_path / 'nets.py'}:build", "--lambdas", "[0,2]", "--accelerator", "cpu", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert stillroom.load(tmp_path / "run", trust_pickle=True).network(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--student", "stillroom/convnet4"], "student: got ConvNet, expected a network of experts"),
        (["--lambdas", "[0,1]"], "lambdas: got [0.0, 1.0], expected one number for each of the student's 3 experts"),
        (["--consistency-weight", "-1"], "consistency_weight: got -1.0, expected a finite number of at least 0"),
        (["--temperature", "0"], "temperature: got 0.0, expected a finite number above 0"),
        (["--few-below", "300"], "few_below: got 300, expected a number from 0 to 101"),
        (["--data", "digits,imbalance=exp:5000"], "data: got imbalance=exp:5000, expected a ratio of at most"),
        (["--pretrained", "resnet.pth"], "student: got stillroom/convnet_experts, expected a ResNet for photographs"),
        (["--pretrained", "none.pth", "--student", "stillroom/resnet50_experts"], "pretrained: got 'none.pth', which does not exist"),
        (["--view-style", "cifr"], "view_style: got cifr, expected one of small, cifar, imagenet"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_before_anything_is_trained(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "mdcs", *options, "--out", str(tmp_path / "run")]) == 2
    errors = capsys.readouterr().err.strip()
    assert said.replace("_", "-") in errors.replace("_", "-")
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "run/seed0").exists()


def test_it_can_be_compared_with_other_methods(tmp_path: Path) -> None:
    command = ["compare", "mdcs", "kd", "--student", "stillroom/convnet_experts", "--data", "digits,imbalance=exp:4", "--subset", "200"]
    command += ["--val-subset", "50", "--epochs", "2", "--accelerator", "cpu", "--out", str(tmp_path)]
    assert main(command) == 0
    assert set(json.loads((tmp_path / "metrics.json").read_text())["stages"]) >= {"alone", "mdcs", "kd"}


# Presets: the specification's table -------------------------------------------------------------------------------------------------------

SHARED = {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "lambdas": [-0.5, 1.0, 2.5], "consistency_weight": 0.6, "temperature": 1.0}
SHARED |= {"ramp_epochs": 20, "confident_only": True, "decay": 0.1, "step_per": "epoch"}
CIFAR = {"student": "stillroom/resnet32_experts", "batch_size": 64, "lr": 0.1, "weight_decay": 5e-4, "epochs": 400, "view_style": "cifar"}
CIFAR |= {"schedule": "multistep", "warmup_epochs": 20, "milestones": [200, 320, 380], "std": [0.2023, 0.1994, 0.201]}
IMAGENET = {"student": "stillroom/resnet50_experts", "image_size": 224, "view_style": "imagenet", "epochs": 400, "backbone_lr": None}
TABLE: dict[str, dict[str, Any]] = {
    "paper": {**CIFAR, "data": "cifar100:data/cifar100,imbalance=exp:100"},
    "paper:cifar10": {**CIFAR, "data": "cifar10:data/cifar10,imbalance=exp:100"},
    "paper:imagenet-lt": {**IMAGENET, "batch_size": 256, "lr": 0.1, "weight_decay": 5e-4, "schedule": "cosine", "warmup_epochs": 0},
    "paper:inaturalist": {
        **IMAGENET,
        "batch_size": 512,
        "lr": 0.2,
        "weight_decay": 2e-4,
        "warmup_epochs": 5,
        "milestones": [200, 300, 380],
        "schedule": "multistep",
    },
    "paper:places-lt": {
        **IMAGENET,
        "student": "stillroom/resnet152_experts_full",
        "pretrained": "data/resnet152.pth",
        "batch_size": 64,
        "lr": 0.01,
        "epochs": 30,
        "backbone_lr": 0.001,
        "weight_decay": 4e-4,
        "schedule": "multistep",
        "milestones": [10, 20],
        "warmup_epochs": 0,
    },
}


@pytest.mark.parametrize("preset", PRESETS)
def test_the_numbers_are_the_papers(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", "mdcs", "--preset", preset, "--print_config"])
    assert not done.value.code
    values = yaml.safe_load(capsys.readouterr().out)
    expected = SHARED | TABLE[preset]
    assert {name: values[name] for name in expected} == expected


def test_a_step_of_the_papers_on_cifar(tmp_path: Path) -> None:
    folder = cifar100(tmp_path / "cifar", train=40)
    command = ["run", "mdcs", "--preset", "paper", "--data", f"cifar100:{folder},imbalance=exp:4", "--batch-size", "8", "--epochs", "1"]
    command += ["--warmup-epochs", "0", "--workers", "0", "--accelerator", "cpu", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    assert json.loads((tmp_path / "run/student.json").read_text())["model"] == "stillroom/resnet32_experts"


def test_a_step_of_the_papers_on_places_from_a_trained_network(photos: Path, tmp_path: Path) -> None:
    """With a ResNet of one block in each stage in the place of ResNet-152."""
    plain = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], width_per_group=4)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    (tmp_path / "nets.py").write_text(
        "from stillroom.tasks.images.networks import ExpertBottleneckResNet\n"
        "def build(num_classes):\n"
        "    return ExpertBottleneckResNet((1, 1, 1, 1), num_classes=num_classes, widths=(64, 128, 256, 512), group_width=4)\n"
    )
    command = ["run", "mdcs", "--preset", "paper:places-lt", "--data", f"imagefolder:{photos}", "--image-size", "32", "--epochs", "1"]
    command += ["--student", f"{tmp_path / 'nets.py'}:build", "--pretrained", str(tmp_path / "plain.pth"), "--batch-size", "8"]
    command += ["--subset", "8", "--val-subset", "4", "--workers", "0", "--lr", "0", "--backbone-lr", "0"]
    assert main([*command, "--accelerator", "cpu", "--out", str(tmp_path / "run")]) == 0
    weights = read_weights(tmp_path / "run")
    torch.testing.assert_close(weights["trunk.layer2.0.conv1.weight"], plain.layer2[0].conv1.weight)
    for expert in range(3):
        torch.testing.assert_close(weights[f"branches.{expert}.layer4.0.conv3.weight"], plain.layer4[0].conv3.weight)
