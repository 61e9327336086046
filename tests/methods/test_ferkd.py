"""FerKD as a user runs it: a step, its schedule, kills, processes, the experiment, the paper's setting."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Losses, Progress, Teacher, Training
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError, StillroomError
from stillroom.methods.ferkd import FerKD
from stillroom.methods.ferkd.bank.reader import LabelBank
from stillroom.methods.ferkd.crops import CropRule
from stillroom.methods.ferkd.labelling import Labelling, label_images
from stillroom.methods.ferkd.loss import soft_cross_entropy
from stillroom.methods.ferkd.replay import CropBatch, CropEpochs
from stillroom.tasks.classification import ImageData, build_classifier, load
from tests.methods import ferkd_job
from tests.processes import Processes
from tests.tasks.classification.miniatures import imagenet

TYPES = ["ori", "smoothing", "marginal_smoothing_k5", "marginal_renorm_k5"]


def digits(**options: Any) -> ImageData:
    return ImageData("digits", **{"batch_size": 32, "subset": 160, "val_subset": 75, "augment": "none", **options})


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> LabelBank:
    torch.manual_seed(0)
    network = build_classifier("stillroom/convnet4", num_classes=10).network
    with torch.no_grad():
        network.fc.weight.mul_(30)  # type: ignore[union-attr, operator]
    labelling = Labelling(crops=8, rule=CropRule(area=(0.4, 1.0), flip=0.0))
    return label_images(tmp_path_factory.mktemp("bank"), Teacher(network, precision="fp32"), digits(), labelling)


# The training step and its schedule (section 8)


def first_batch(bank: LabelBank, distiller: FerKD) -> CropBatch:
    distiller.plan = Training(epochs=8)
    batch: CropBatch = next(iter(distiller.training_data(digits()).train_loader(seed=0)))
    return batch


def test_a_step_asks_no_teacher_and_reaches_the_whole_student(bank: LabelBank) -> None:
    torch.manual_seed(0)
    distiller = FerKD(build_classifier("stillroom/convnet4", num_classes=10).network, bank, mix="none")
    batch = first_batch(bank, distiller)
    losses = distiller.losses(batch)
    expected = soft_cross_entropy(distiller.student(batch.images), bank.format.dense(batch.soft))
    torch.testing.assert_close(losses.total, expected)
    assert distiller.teacher is None
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert distiller.losses(batch).total.dtype == torch.float32


def test_the_rate_changes_where_a_pass_begins(bank: LabelBank, tmp_path: Path) -> None:
    seen: dict[int, set[float]] = {}

    class Watched(FerKD):
        def losses(self, batch: CropBatch) -> Losses:
            seen.setdefault(self.progress.epoch - 1, set()).add(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
            return super().losses(batch)

    plan = Training(epochs=12, lr=0.1, schedule="cosine", warmup_epochs=1, lr_floor=0.01)
    distiller = Watched(build_classifier("stillroom/convnet4", num_classes=10).network, bank, num_crops=4, single_first=1)
    distiller.plan = plan
    Lab(LabOptions(out=tmp_path, accelerator="cpu")).fit(distiller, distiller.training_data(digits()), plan, name="watched")
    for epoch, rates in seen.items():
        begins = CropEpochs(12, 4, 1).at(epoch).epoch
        [rate] = rates
        assert rate == pytest.approx(0.01 + 0.09 * (1 + math.cos(math.pi * (begins - 1) / 11)) / 2 if begins else 0.01)
    assert len({next(iter(rates)) for rates in seen.values()}) == 6
    assert next(iter(seen[1])) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mix": "mixup"}, "mix: got mixup, expected one of"),
        ({"partner": "any"}, "partner: got any"),
        ({"num_crops": 0}, "crops: got 0"),
        ({"single_first": -1}, "single_first: got -1"),
        ({"mix_probability": 1.5}, "mix_probability: got 1.5"),
        ({"mixup_alpha": 0}, "mixup_alpha: got 0"),
        ({"temperature": 0}, "temperature: got 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(bank: LabelBank, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}"):
        FerKD(nn.Identity(), bank, **options)


# Kills and processes


class Killed(Exception):
    """Stands for a kill."""


class Falling(FerKD):
    fall_at: int | None = None

    def losses(self, batch: CropBatch) -> Losses:
        if self.progress.step == type(self).fall_at:
            raise Killed
        return super().losses(batch)


def trained(out: Path, bank: LabelBank) -> tuple[dict[str, Any], dict[str, Tensor]]:
    torch.manual_seed(5)
    student = build_classifier("stillroom/convnet4", num_classes=10).network
    distiller = Falling(student, bank, num_crops=3)
    distiller.plan = plan = Training(epochs=8, schedule="cosine")
    stage = Lab(LabOptions(out=out, checkpoint_steps=2, accelerator="cpu")).fit(
        distiller, distiller.training_data(digits()), plan, name="ferkd"
    )
    record = json.loads((stage.folder / "stage.json").read_text())["result"]
    return record["metrics"], read_weights(stage.folder)


def test_killed_and_continued_it_is_the_same_student(tmp_path: Path, bank: LabelBank, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, weights = trained(tmp_path / "whole", bank)
    for step in (1, 5, 12, 15, 24, 31):  # within a pass, at its first step, between passes, in the single ones
        monkeypatch.setattr(Falling, "fall_at", step)
        with pytest.raises(Killed):
            trained(tmp_path / "killed", bank)
    monkeypatch.setattr(Falling, "fall_at", None)
    again, same = trained(tmp_path / "killed", bank)
    assert again == metrics
    assert all(torch.equal(value, same[name]) for name, value in weights.items())


def test_two_processes_equal_one(tmp_path: Path, bank: LabelBank, processes: Processes) -> None:
    ferkd_job.main(bank.path, tmp_path / "1", 1)
    processes.on_two_ranks(ferkd_job.main, bank.path, tmp_path / "2", 2)
    one, two = (read_weights(tmp_path / devices / "seed0/ferkd") for devices in ("1", "2"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5)


# The experiment

SMALL = ["--data", "digits", "--subset", "120", "--val-subset", "40", "--batch-size", "24", "--accelerator", "cpu", "--epochs", "6"]


def test_a_run_of_its_own_and_one_from_its_bank(tmp_path: Path) -> None:
    own = tmp_path / "own"
    assert main(["run", "ferkd", *SMALL, "--crops", "6", "--out", str(own)]) == 0
    report = json.loads((own / "metrics.json").read_text())
    assert list(report["stages"]) == ["teacher", "alone", "fkd", "ferkd"]
    assert report["baseline"] == "alone"
    assert "stored crops" in " ".join(report["notes"])
    assert load(own).classify(ImageData("digits").val_image(0))[0] in "0123456789"
    assert main(["run", "ferkd", *SMALL, "--labels", str(own / "labels"), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again/metrics.json").read_text())
    assert list(again["stages"]) == ["teacher", "alone", "fkd", "ferkd"]
    for arm in ("teacher", "alone", "fkd", "ferkd"):
        assert again["stages"][arm][0]["metrics"] == report["stages"][arm][0]["metrics"]
    assert not (tmp_path / "again/teacher").exists()
    options = json.dumps({"labels": str(own / "labels"), "mix": "none"})
    assert main(["compare", "kd", "ferkd", *SMALL, "--options.ferkd", options, "--out", str(tmp_path / "compare")]) == 0
    assert set(json.loads((tmp_path / "compare/metrics.json").read_text())["stages"]) == {"teacher", "alone", "kd", "ferkd"}
    assert main(["export", str(own), "--format", "torch"]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--labels", "nowhere"], "--labels: got nowhere, which is no bank of labels"),
        (["--thresholds", "[0.5, 0.2, 0.9]"], "--thresholds: got [0.5, 0.2, 0.9], expected three numbers"),
        (["--label-type", "top5"], "--label-type: got top5, expected one of ori"),
        (["--crops", "0"], "--crops: got 0"),
        (["--num-crops", "0"], "--crops: got 0"),
        (["--mix", "cutout"], "--mix: got cutout"),
        (["--crop-area", "[0.5, 2]"], "area: got [0.5, 2.0]"),
        (["--crop-flip", "2"], "--crop-flip: got 2.0"),
        (["--student", "stillroom/nothing"], "--student: got stillroom/nothing"),
        (["--missing", "perhaps"], "--missing: got perhaps"),
        (["--temperature", "0"], "--temperature: got 0.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "ferkd", *SMALL, *arguments]) == 2
    errors = capsys.readouterr().err
    assert says in errors
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_dot_says_at_once_that_it_cannot_host_ferkd(
    bank: LabelBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data", "digits", "--subset", "160", "--val-subset", "75", "--augment", "none", "--accelerator", "cpu"]
    assert main(["run", "dot", "--host", "ferkd", "--host-options", json.dumps({"labels": str(bank.path)}), *data]) == 2
    assert "--host: got FerKD, which has no task term" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# The paper's setting

SHARED = {"data": "imagenet:data/imagenet", "student": "torchvision/resnet50", "batch_size": 1024, "num_crops": 4, "epochs": 300}
NUMBERS: dict[str, dict[str, Any]] = {
    "paper": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "cosine", "single_first": 0},
    "paper:step": {"optimizer": "sgd", "lr": 0.1, "weight_decay": 1e-4, "schedule": "multistep", "milestones": [120, 240], "decay": 0.1},
    "paper:adamw": {
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 0.05,
        "warmup_epochs": 5,
        "single_first": 5,
        "lr_floor": 1e-5,
        "schedule": "cosine",
        "clip_norm": None,
    },
}
COMMON = {"temperature": 1, "label_smoothing": 0.1, "thresholds": [0.03, 0.2, 0.97], "mix": "selfmix", "mix_probability": 1, "score": "max"}


@pytest.mark.parametrize("preset", NUMBERS)
def test_the_numbers_are_the_papers(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "ferkd", "--preset", preset, "--print_config"])
    values = yaml.safe_load(capsys.readouterr().out)
    expected = {**SHARED, **COMMON, **NUMBERS[preset]}
    assert {name: values[name] for name in expected} == expected


def test_the_labeller_s_numbers_are_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cache-labels", "--preset", "paper", "--print_config"])
    values = yaml.safe_load(capsys.readouterr().out)
    expected = {"crops": 500, "batch_size": 50, "crop_area": [0.08, 0.936], "label_type": "marginal_smoothing_k5", "temperature": 1}
    expected |= {
        "image_size": 475,
        "crop_flip": 0.5,
        "interpolation": "bicubic",
        "teacher": "timm/tf_efficientnet_l2.ns_jft_in1k_475@pretrained",
    }
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize("preset", NUMBERS)
def test_a_step_on_the_papers_data_from_released_records(preset: str, tmp_path: Path) -> None:
    """ImageNet's layout, FKD's records of it, imported; the paper's student once, the others' schedules with a quick one."""
    root = imagenet(tmp_path / "imagenet")
    numbers = torch.Generator().manual_seed(0)
    for file in sorted(root.glob("train/*/*.JPEG")):
        record = tmp_path / "released/train" / file.parent.name / f"{file.stem}.tar"
        record.parent.mkdir(parents=True, exist_ok=True)
        boxes = torch.rand(5, 4, generator=numbers) / 3 + 0.1
        labels = torch.rand(5, 2, generator=numbers).softmax(1)
        torch.save([boxes, torch.rand(5, generator=numbers) < 0.5, labels], record)
    data = ["--data", f"imagenet:{root}", "--workers", "0", "--accelerator", "cpu", "--out"]
    imported = ["--records", str(tmp_path / "released"), "--crops", "5", "--label-type", "ori"]
    assert main(["cache-labels", *imported, *data, str(tmp_path / "bank")]) == 0
    small = ["--batch-size", "2", "--num-crops", "2", "--labels", str(tmp_path / "bank"), "--image-size", "64"]
    small += ["--epochs", "1"] if preset == "paper" else ["--epochs", "4", "--student", "stillroom/convnet4"]
    small += ["--warmup-epochs", "1", "--single-first", "1"] if preset == "paper:adamw" else []
    out = tmp_path / "run"
    assert main(["run", "ferkd", "--preset", preset, *small, *data, str(out)]) == 0
    stages = json.loads((out / "metrics.json").read_text())["stages"]
    assert list(stages) == ["alone", "fkd", "ferkd"]
    for stage in stages.values():
        assert stage[0]["model"] == ("torchvision/resnet50" if preset == "paper" else "stillroom/convnet4")
        assert all(math.isfinite(value) for row in stage[0]["history"] for name, value in row.items() if name.startswith("train/"))
    shutil.rmtree(out)


def test_a_missing_bank_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    root = imagenet(tmp_path / "imagenet")
    assert main(["run", "ferkd", "--preset", "paper", "--data", f"imagenet:{root}"]) == 2
    assert "--labels: got labels/imagenet, which is no bank of labels" in capsys.readouterr().err


def test_a_compared_arm_without_a_bank_is_refused_in_one_line(bank: LabelBank) -> None:
    from stillroom.methods.ferkd import build

    teacher = Teacher(nn.Identity())
    with pytest.raises(StillroomError, match="labels: got nothing, expected the folder of a bank"):
        build(nn.Identity(), teacher, digits())
    distiller = build(nn.Identity(), teacher, digits(), labels=str(bank.path))
    distiller.progress = Progress()
    assert "adaptation" in distiller.bank.about
