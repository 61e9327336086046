"""FerKD: the rule that adapts labels, SelfMix, the loss, and what a user relies on in `stillroom run ferkd`."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Losses, Progress, Teacher, Training
from stillroom.engine.cache.bank import LabelBank
from stillroom.engine.cache.labels import LabelFormat, SoftLabels
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError, StillroomError
from stillroom.methods.ferkd import Calibration, FerKD, adapted_bank
from stillroom.methods.ferkd.adaptation import HARD, IMPORTANT, UNINFORMATIVE, Thresholds, adapt
from stillroom.methods.ferkd.distiller import epoch_rate
from stillroom.methods.ferkd.loss import soft_cross_entropy
from stillroom.methods.ferkd.mixing import Mix, cutmix, cutmix_box, draw_mix, draw_partners, mixed
from stillroom.tasks.classification import ImageData, build_classifier, load
from stillroom.tasks.classification.bank import CropBatch, CropEpochs
from stillroom.tasks.classification.crops import CropRule
from stillroom.tasks.classification.labelling import Labelling, label_images
from tests.engine.test_distributed import environment
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


def copied(bank: LabelBank, to: Path) -> LabelBank:
    shutil.copytree(bank.path, to)
    return LabelBank(to)


# The rule (section 4)


def stored(top: list[float], classes: int = 10) -> tuple[SoftLabels, LabelFormat]:
    """Labels whose largest probabilities are these, of class 3."""
    form = LabelFormat.of("smoothing", classes, "fp32")
    return SoftLabels(torch.full((len(top), 1), 3, dtype=torch.int16), torch.tensor(top)[:, None]), form


def test_on_the_thresholds() -> None:
    labels, form = stored([0.1499, 0.15, 0.2999, 0.3, 0.95, 0.9501])
    low, middle, top = torch.tensor([0.15, 0.3, 0.95]).tolist()  # as float32 has them
    new = adapt(labels, form, torch.full((6,), 7), Thresholds(low, middle, top), epsilon=0.2)
    assert new.categories.tolist() == [UNINFORMATIVE, HARD, HARD, IMPORTANT, IMPORTANT, UNINFORMATIVE]
    assert new.keep.tolist() == [False, True, True, True, True, False]
    dense = new.format.dense(new.labels)
    torch.testing.assert_close(dense[1, 7], torch.tensor(0.8))
    torch.testing.assert_close(dense[1, [0, 3]], torch.full((2,), 0.2 / 9))
    assert torch.equal(dense[[0, 3, 4, 5]], form.dense(labels)[[0, 3, 4, 5]])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(TYPES), st.sampled_from(["max", "truth"]), st.integers(0, 50), st.tuples(*[st.floats(0, 1)] * 3))
def test_every_label_is_soft_or_smoothed_truth(kind: str, score: Any, seed: int, numbers: tuple[float, float, float]) -> None:
    form = LabelFormat.of(kind, 9, "fp32")
    labels = form.encode((3 * torch.randn(24, 9, generator=torch.Generator().manual_seed(seed))).softmax(1))
    targets, images = torch.arange(24) % 9, torch.arange(24) // 4
    new = adapt(labels, form, targets, Thresholds(*sorted(numbers)), epsilon=0.1, score=score, images_R=images)
    dense, soft = new.format.dense(new.labels), form.dense(labels)
    truth = torch.full((24, 9), 0.1 / 8).scatter(1, targets[:, None], 0.9)
    expected = torch.where((new.categories == HARD)[:, None], truth, soft)
    torch.testing.assert_close(dense, expected, atol=1e-6, rtol=1e-4)
    u = soft.amax(1) if score == "max" else soft.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(new.score, u)
    left = torch.zeros(6).index_add_(0, images, new.keep.float())
    assert (left >= 1).all()  # an image always keeps a crop


def test_where_everything_is_discarded_the_most_confident_crop_stays_as_it_is() -> None:
    labels, form = stored([0.4, 0.6, 0.6, 0.9, 0.8, 0.7])
    thresholds = Thresholds(0.95, 0.97, 0.99)
    images = torch.tensor([0, 0, 0, 1, 1, 1])
    new = adapt(labels, form, torch.zeros(6), thresholds, images_R=images)
    assert new.categories.tolist() == [0, IMPORTANT, 0, IMPORTANT, 0, 0]
    assert torch.equal(new.format.dense(new.labels), form.dense(labels))
    assert not adapt(labels, form, torch.zeros(6), thresholds).keep.any()  # crops of nobody knows which images
    there = torch.tensor([True, False, True, False, False, True])
    assert adapt(labels, form, torch.zeros(6), thresholds, images_R=images, kept_R=there).keep.nonzero()[:, 0].tolist() == [2, 5]


@pytest.mark.parametrize("label_type", [*TYPES, "hard"])
def test_a_whole_bank_is_adapted_by_its_quantiles(tmp_path: Path, bank: LabelBank, label_type: str) -> None:
    torch.manual_seed(0)
    teacher = Teacher(build_classifier("stillroom/convnet4", num_classes=10).network, precision="fp32")
    own = label_images(tmp_path / "bank", teacher, digits(), Labelling(crops=8, label_type=label_type, dtype="fp32"))
    new = adapted_bank(own, Calibration((0.1, 0.3, 0.9), epsilon=0.2))
    said = new.about["adaptation"]
    if label_type != "hard":  # all of them equally sure
        assert said["shares"] == pytest.approx({"discarded": 0.2, "hard": 0.2, "important": 0.6}, abs=0.01)
    assert sum(part["share"] for part in said["teacher"]) == pytest.approx(1)
    kept = new.kept(np.arange(160))
    assert kept.any(1).all()
    images, crops = np.nonzero(kept)
    soft = own.format.dense(own.soft(images, crops))
    truth = torch.full_like(soft, 0.2 / 9).scatter(1, torch.from_numpy(new.targets[images].astype(np.int64))[:, None], 0.8)
    y = new.format.dense(new.soft(images, crops))
    hard = (y - truth).abs().amax(1) < 1e-5
    torch.testing.assert_close(y[~hard], soft[~hard], atol=1e-6, rtol=1e-4)
    assert hard.float().mean() == pytest.approx(said["shares"]["hard"] / (1 - said["shares"]["discarded"]), abs=0.02)
    for name in ("coords", "flips", "targets"):
        assert np.array_equal(new.arrays[name], own.arrays[name])
    again = adapted_bank(own, Calibration((0.1, 0.3, 0.9), epsilon=0.2))
    assert again.path == new.path
    assert adapted_bank(own, Calibration()).path != new.path


def test_the_teacher_is_counted_right_where_it_is(bank: LabelBank) -> None:
    parts = adapted_bank(bank, Calibration()).about["adaptation"]["teacher"]
    images, crops = (rows.reshape(-1) for rows in np.indices((160, 8)))
    dense = bank.format.dense(bank.soft(images, crops))
    right = dense.argmax(1).numpy() == bank.targets[images]
    sure = dense.amax(1).numpy()
    for part in parts:
        here = (sure >= part["from"]) & ((sure < part["to"]) | (part["to"] == 1))
        assert part["share"] == pytest.approx(here.mean())
        assert part["right"] == (pytest.approx(right[here].mean()) if here.any() else None)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"thresholds": (0.3, 0.2, 0.9)}, r"thresholds: got \[0.3, 0.2, 0.9\], expected three numbers 0 <= T_L <= T_M <= T_T <= 1"),
        ({"thresholds": (0.1, 0.2, float("nan"))}, "thresholds: got"),
        ({"epsilon": 1.5}, "epsilon: got 1.5"),
        ({"score": "gt"}, "score: got gt, expected one of max, truth"),
    ],
)
def test_calibrations_that_cannot_be_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}"):
        Calibration(**options)
    with pytest.raises(ValueError):
        Thresholds(0.3, 0.2, 0.9)


# Mixing (sections 6 and 7)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.booleans(), st.integers(0, 1000))
def test_partners_are_other_crops_of_the_same_image(crops: int, images: int, similar: bool, seed: int) -> None:
    torch.manual_seed(seed)
    labels = torch.rand(crops * images, 7).softmax(1) if similar else None
    partners = draw_partners(crops, images, labels)
    rows = torch.arange(crops * images)
    assert (partners % images == rows % images).all()
    assert (partners != rows).all()
    if not similar:
        assert sorted(partners.tolist()) == rows.tolist()  # a shift: every crop is somebody's partner


def test_the_similar_partner_has_the_most_similar_label() -> None:
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.4], [0.5, 0.5], [0.9, 0.1], [0.0, 1.0]])  # three crops of two images
    assert draw_partners(3, 2, labels).tolist() == [4, 5, 4, 1, 0, 1]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 9))
def test_the_share_of_the_label_is_the_share_of_the_image(seed: int, height: int, width: int) -> None:
    torch.manual_seed(seed)
    mix = draw_mix(height, width)
    ones = torch.tensor([0.0, 1.0])
    images, labels = mixed(ones[:, None, None, None].expand(-1, 3, height, width), torch.eye(2), torch.tensor([1, 0]), mix)
    torch.testing.assert_close(images.mean((1, 2, 3)), labels[:, 1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(labels.sum(1), torch.ones(2))


def test_boxes_are_clipped_at_the_borders() -> None:
    assert cutmix_box((8, 8), 0.75, (0, 7)) == (0, 2, 5, 8)
    assert cutmix_box((8, 6), 0.0, (4, 3)) == (0, 8, 0, 6)
    assert cutmix_box((8, 8), 1.0, (4, 4)) == (4, 4, 4, 4)
    images = torch.rand(2, 3, 8, 8)
    same, labels, share = cutmix(images, torch.eye(2), torch.tensor([1, 0]), cutmix_box((8, 8), 1.0, (4, 4)))
    assert torch.equal(same, images)
    assert torch.equal(labels, torch.eye(2))
    assert share == 1
    assert mixed(images, torch.eye(2), torch.tensor([1, 0]), Mix(1.0, None))[0].equal(images)


def test_selfmix_leaves_other_images_alone_and_single_crops_as_they_are(bank: LabelBank) -> None:
    distiller = FerKD(nn.Identity(), bank, num_crops=3, mix="selfmix")
    torch.manual_seed(1)
    images = torch.arange(2.0).repeat(3)[:, None, None, None].expand(-1, 3, 4, 4)  # the image's number in every pixel
    labels = torch.eye(10)[:2].repeat(3, 1)
    for _ in range(10):
        new_images, new_labels = distiller.mixed(images, labels, 3)
        torch.testing.assert_close(new_images, images)
        torch.testing.assert_close(new_labels, labels)
    one = torch.rand(6, 3, 4, 4)
    assert distiller.mixed(one, labels, 1)[0] is one
    assert not torch.equal(distiller.mixed(one, labels, 3)[0], one)
    with pytest.warns(UserWarning, match="SelfMix has nothing to mix"):
        FerKD(nn.Identity(), bank, num_crops=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FerKD(nn.Identity(), bank, num_crops=1, mix="none")


def test_a_batch_of_one_image_is_mixed(bank: LabelBank) -> None:
    torch.manual_seed(0)
    images, labels = FerKD(nn.Identity(), bank).mixed(torch.rand(4, 3, 6, 6), torch.eye(10)[:4], 4)
    assert images.shape == (4, 3, 6, 6)
    torch.testing.assert_close(labels.sum(1), torch.ones(4))


# The loss (section 5)


def test_the_loss_is_the_divergence_up_to_a_constant_of_the_labels() -> None:
    numbers = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 9, generator=numbers, requires_grad=True), torch.randn(6, 9, generator=numbers).softmax(1)
    loss = soft_cross_entropy(logits, labels, 2.0)
    divergence = nn.functional.kl_div((logits / 2).log_softmax(1), labels, reduction="batchmean")
    entropy = -(labels * labels.log()).sum(1).mean()
    torch.testing.assert_close(loss, divergence + entropy)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, ((logits / 2).softmax(1) - labels) / 12)  # no factor of the temperature squared
    torch.testing.assert_close(soft_cross_entropy(logits + 5, labels, 2.0), loss)


def test_hard_labels_make_it_cross_entropy_and_labels_get_no_gradient() -> None:
    logits, labels = torch.randn(4, 5), nn.functional.one_hot(torch.arange(4), 5).float().requires_grad_()
    loss = soft_cross_entropy(logits.requires_grad_(), labels)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, torch.arange(4)))
    loss.backward()
    assert labels.grad is None
    assert soft_cross_entropy(logits.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize("labels", [torch.rand(4, 6), torch.rand(3, 5), torch.rand(5)])
def test_other_shapes_are_refused(labels: Tensor) -> None:
    with pytest.raises(InputError, match="labels_RC: got labels"):
        soft_cross_entropy(torch.rand(4, 5), labels)
    with pytest.raises(InputError, match="temperature"):
        soft_cross_entropy(torch.rand(4, 5), torch.rand(4, 5), 0.0)


# The training step and its schedule (section 8)


def first_batch(bank: LabelBank, distiller: FerKD) -> CropBatch:
    distiller.plan = Training(epochs=8)
    batch: CropBatch = next(iter(distiller.shown(digits()).train_loader(seed=0)))
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

    plan = Training(epochs=12, lr=0.1, schedule="cosine", warmup_epochs=1)
    distiller = Watched(build_classifier("stillroom/convnet4", num_classes=10).network, bank, num_crops=4, single_first=1, lr_floor=0.01)
    distiller.plan = plan
    Lab(LabOptions(out=tmp_path, accelerator="cpu")).fit(distiller, distiller.shown(digits()), plan, name="watched")
    for epoch, rates in seen.items():
        begins = CropEpochs(12, 4, 1).at(epoch).epoch
        assert rates == {epoch_rate(plan, 0.1, begins, 5, floor=0.01)}
    assert len({next(iter(rates)) for rates in seen.values()}) == 7
    assert next(iter(seen[1])) == pytest.approx(0.1)
    assert epoch_rate(plan, 0.1, 12, 5, floor=0.01) == pytest.approx(0.01)


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
        ({"lr_floor": -1}, "lr_floor: got -1"),
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
    stage = Lab(LabOptions(out=out, checkpoint_steps=2, accelerator="cpu")).fit(distiller, distiller.shown(digits()), plan, name="ferkd")
    record = json.loads((stage.folder / "stage.json").read_text())["result"]
    return record["metrics"], read_weights(stage.folder)


def test_killed_and_continued_it_is_the_same_student(tmp_path: Path, bank: LabelBank, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, weights = trained(tmp_path / "whole", bank)
    for step in (1, 8, 15, 16, 27, 38):  # within a pass, at its first step, between passes, in the single ones
        monkeypatch.setattr(Falling, "fall_at", step)
        with pytest.raises(Killed):
            trained(tmp_path / "killed", bank)
    monkeypatch.setattr(Falling, "fall_at", None)
    again, same = trained(tmp_path / "killed", bank)
    assert again == metrics
    assert all(torch.equal(value, same[name]) for name, value in weights.items())


def test_two_processes_equal_one(tmp_path: Path, bank: LabelBank) -> None:
    for devices in (1, 2):
        job = [sys.executable, str(Path(__file__).with_name("ferkd_job.py")), str(bank.path), str(tmp_path / str(devices)), str(devices)]
        done = subprocess.run(job, env=environment(), capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_weights(tmp_path / devices / "seed0/ferkd") for devices in ("1", "2"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5)


# The experiment

SMALL = ["--subset", "120", "--val-subset", "40", "--batch-size", "24", "--accelerator", "cpu", "--epochs", "6"]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_WARM_UP_SECONDS", "_TIMED_SECONDS"):
        monkeypatch.setattr(f"stillroom.engine.measure.{limit}", 0.0)


@pytest.mark.usefixtures("hasty")
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
        (["--flip", "2"], "--flip: got 2.0"),
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
COMMON = {"temperature": 1, "epsilon": 0.1, "thresholds": [0.03, 0.2, 0.97], "mix": "selfmix", "mix_probability": 1, "score": "max"}


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
        "flip": 0.5,
        "interpolation": "bicubic",
        "teacher": "timm/tf_efficientnet_l2.ns_jft_in1k_475@pretrained",
    }
    assert {name: values[name] for name in expected} == expected


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("preset", NUMBERS)
def test_a_step_on_the_papers_data_from_released_records(preset: str, tmp_path: Path) -> None:
    """ImageNet's layout, FKD's records of it, imported; two epochs of ResNet-50."""
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
    small = ["--epochs", "3", "--batch-size", "2", "--num-crops", "2", "--labels", str(tmp_path / "bank")]
    small += ["--warmup-epochs", "1", "--single-first", "1"] if preset == "paper:adamw" else []
    out = tmp_path / "run"
    assert main(["run", "ferkd", "--preset", preset, *small, *data, str(out)]) == 0
    stages = json.loads((out / "metrics.json").read_text())["stages"]
    assert list(stages) == ["alone", "fkd", "ferkd"]
    for stage in stages.values():
        assert stage[0]["model"] == "torchvision/resnet50"
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
