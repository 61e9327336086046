"""FerKD: the rule that adapts labels, SelfMix, the loss."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stillroom.engine import Teacher
from stillroom.errors import InputError
from stillroom.methods.ferkd import Calibration, FerKD, adapted_bank
from stillroom.methods.ferkd.adaptation import HARD, IMPORTANT, UNINFORMATIVE, Thresholds, adapt
from stillroom.methods.ferkd.bank.labels import LabelFormat, SoftLabels
from stillroom.methods.ferkd.bank.reader import LabelBank
from stillroom.methods.ferkd.crops import CropRule
from stillroom.methods.ferkd.labelling import Labelling, label_images
from stillroom.methods.ferkd.loss import soft_cross_entropy
from stillroom.methods.ferkd.mixing import Mix, cutmix, cutmix_box, draw_mix, draw_partners, mixed
from stillroom.tasks.classification import ImageData, build_classifier

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
    new = adapted_bank(own, Calibration((0.1, 0.3, 0.9), label_smoothing=0.2))
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
    again = adapted_bank(own, Calibration((0.1, 0.3, 0.9), label_smoothing=0.2))
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
        ({"label_smoothing": 1.5}, "label_smoothing: got 1.5"),
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
