"""WAD: its parts against what the paper's equations say of them, and its experiment from the outside."""

from __future__ import annotations

import csv
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import stillroom
from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Losses, Progress, Training
from stillroom.engine.loading import Together
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.wad import WAD, Contrast
from stillroom.methods.wad import knowledge as knowledge_module
from stillroom.methods.wad.contrast import released_rate
from stillroom.methods.wad.distiller import weighted_cross_entropy
from stillroom.methods.wad.knowledge import class_scores, knowledge, promoted_share, reliable, unit_rows
from stillroom.methods.wad.networks import Encoder
from stillroom.methods.wad.pool import RoundData, benchmark, own_images
from stillroom.methods.wad.recipe import ROUND
from stillroom.methods.wad.rounds import Rounds, projections, train_in_rounds, write_labels
from stillroom.methods.wad.split import mismatch_split
from stillroom.methods.wad.views import PhotoViews, ScanViews, hue_shifted
from stillroom.tasks.classification import Batch, ImageData, build_classifier
from stillroom.tasks.images.networks import ResNetSmallStem
from tests.methods import wad_job
from tests.processes import Processes
from tests.tasks.classification.miniatures import cifar100, classes_of_pictures, picture


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# What the teacher knows -----------------------------------------------------------------------------------------------------------------


def told(features: Tensor, memory: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, pseudo-labels and weights as the paper writes them, one by one, in float64."""
    z, a = (rows.double() / (rows.double().norm(dim=1, keepdim=True) + 1e-8) for rows in (features, memory))
    scores = torch.tensor(
        [[max(float(u @ v) for v, label in zip(a, labels, strict=True) if label == k) for k in range(classes)] for u in z]
    )
    first, second = scores.sort(1, descending=True).values[:, :2].T
    return scores, scores.argmax(1), first * (1 - second / first)


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 9),
    classes=st.integers(2, 5),
    sizes=st.lists(st.integers(1, 40), min_size=5, max_size=5),
    chunk=st.sampled_from([1, 50, 2**23]),
    seed=st.integers(0, 1000),
)
def test_knowledge_is_the_definition_whatever_the_pieces(images: int, classes: int, sizes: list[int], chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(torch.tensor(sizes[:classes]))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    features, memory = torch.randn(images, 6, generator=generator), torch.randn(len(labels), 6, generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knowledge_module, "_AT_ONCE", chunk)
        found = knowledge(features, memory, labels, classes)
    scores, pseudo, weights = told(features, memory, labels, classes)
    torch.testing.assert_close(found.scores.double(), scores.double(), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.labels, pseudo)
    torch.testing.assert_close(found.weights.double(), weights.double(), rtol=1e-4, atol=1e-5)


def test_knowledge_knows_directions_alone_and_follows_an_order_of_classes() -> None:
    features, memory, labels = torch.randn(20, 8), torch.randn(30, 8), torch.arange(30) % 3
    found = knowledge(features, memory, labels, 3)
    longer = knowledge(features * torch.rand(20, 1) * 9, memory * torch.rand(30, 1) * 9, labels, 3)
    torch.testing.assert_close(longer.scores, found.scores)
    turned = knowledge(features, memory, (labels + 1) % 3, 3)
    assert torch.equal(turned.labels, (found.labels + 1) % 3)
    torch.testing.assert_close(turned.weights, found.weights)


def test_equal_scores_weigh_nothing_and_go_to_the_lower_class() -> None:
    memory = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = knowledge(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), memory, torch.tensor([2, 1, 0]), 3)
    assert found.labels.tolist() == [0, 0]
    assert found.weights.tolist() == [0, 0]


def test_negative_scores_still_weigh_by_their_difference() -> None:
    found = knowledge(torch.tensor([[-1.0, -0.5]]), torch.eye(2), torch.tensor([0, 1]), 2)
    assert found.labels.tolist() == [1]
    assert found.weights.item() == pytest.approx(0.5 / 1.25**0.5)


def test_an_image_without_features_is_similar_to_nothing() -> None:
    found = knowledge(torch.zeros(1, 4), torch.randn(6, 4), torch.arange(6) % 2, 2)
    assert (found.scores == 0).all()
    assert found.weights.item() == 0


def test_no_image_and_reduced_precision() -> None:
    memory, labels = torch.randn(6, 4), torch.arange(6) % 2
    assert knowledge(torch.zeros(0, 4), memory, labels, 2).scores.shape == (0, 2)
    features = torch.randn(7, 4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(class_scores(features, memory, labels, 2), class_scores(features, memory, labels, 2), rtol=0, atol=0)
        exact = (unit_rows(features) @ unit_rows(memory).T)[:, labels == 0].float()
        torch.testing.assert_close(class_scores(features, memory, labels, 2)[:, 0], exact.amax(1), rtol=0, atol=2e-2)
    inner = class_scores(features, memory, labels, 2)
    torch.testing.assert_close(inner[:, 0], (unit_rows(features) @ unit_rows(memory).T)[:, labels == 0].amax(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 1}, "num_classes: got 1"),
        ({"num_classes": 4}, "no image of class 3"),
        ({"labels": torch.tensor([0, 1, 5])}, "classes 0 .. 2"),
        ({"labels": torch.tensor([0.0, 1.0, 2.0])}, "int64"),
        ({"features": torch.full((2, 4), math.nan)}, "did the teacher's training diverge"),
        ({"memory": torch.full((3, 4), math.inf)}, "memory_MD: got features that are not finite"),
        ({"features": torch.zeros(2, 5)}, r"\[U, D\] and \[M, D\]"),
    ],
)
def test_knowledge_refuses_what_has_no_answer(change: dict[str, Any], message: str) -> None:
    given_ = {"features": torch.randn(2, 4), "memory": torch.randn(3, 4), "labels": torch.arange(3), "num_classes": 3, **change}
    with pytest.raises(InputError, match=message):
        knowledge(given_["features"], given_["memory"], given_["labels"], given_["num_classes"])


# Promotion ------------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 30), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_promotion_joins_by_id(count: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(100, generator=generator)[:count]
    labels, logits = torch.randint(0, 3, (count,), generator=generator), torch.randn(count, 3, generator=generator)
    order = torch.randperm(count, generator=generator)
    chosen, given_ = reliable(logits, ids, labels[order], ids[order], share)
    surprise = dict(zip(ids.tolist(), cross_entropy(logits, labels, reduction="none").tolist(), strict=True))
    expected = sorted(surprise, key=surprise.__getitem__)[: math.floor(share * count)]
    assert chosen.tolist() == expected
    by_id = dict(zip(ids.tolist(), labels.tolist(), strict=True))
    assert given_.tolist() == [by_id[i] for i in expected]


def test_promotion_of_nobody_and_from_nobody() -> None:
    ids = torch.arange(9)
    assert reliable(torch.randn(9, 2), ids, ids % 2, ids, 0.1)[0].tolist() == []
    assert reliable(torch.randn(0, 2), ids[:0], ids[:0], ids[:0], 1.0)[0].tolist() == []


@pytest.mark.parametrize("ids", [[0, 1, 1], [0, 1, 3], [0, 1]])
def test_promotion_refuses_other_images(ids: list[int]) -> None:
    with pytest.raises(InputError, match="each once"):
        reliable(torch.randn(3, 2), torch.arange(3), torch.zeros(len(ids), dtype=torch.int64), torch.tensor(ids), 0.5)


def test_promotions_fall_to_nothing() -> None:
    assert [promoted_share(i) for i in range(1, 8)] == pytest.approx([0.064, 0.036, 0.016, 0.004, 0, 0, 0])


# The student's loss ---------------------------------------------------------------------------------------------------------------------


def batch(ids: list[int], label: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(sum(ids))
    return Batch(torch.randn(len(ids), 3, 8, 8, generator=generator), torch.full((len(ids),), label), torch.tensor(ids))


def wad(labels: list[int], weights: list[float]) -> WAD:
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    return WAD(student, torch.tensor(labels), torch.tensor(weights))


def test_losses_read_labels_and_weights_by_id_and_no_label_of_the_batch() -> None:
    distiller = wad([0, 1, 2, 1, 0, 2], [9, 9, 0.5, 1.5, 0.2, 0.0])
    labelled, unlabelled = batch([1, 0], label=2), batch([5, 2, 3], label=1)
    losses = distiller.losses(Together(labelled=labelled, unlabelled=unlabelled))
    logits_l, logits_u = distiller.student(labelled.images), distiller.student(unlabelled.images)
    each = cross_entropy(logits_u, torch.tensor([2, 2, 1]), reduction="none")
    torch.testing.assert_close(losses.task["labelled"], cross_entropy(logits_l, torch.tensor([1, 0])))
    torch.testing.assert_close(losses.distill["unlabelled"], (torch.tensor([0.0, 0.5, 1.5]) * each).sum() / 3)


def test_each_batch_has_statistics_of_its_own() -> None:
    distiller = wad([0, 1, 2, 1], [1.0] * 4)
    alone = distiller.losses(Together(labelled=batch([0, 1]))).task["labelled"]
    beside = distiller.losses(Together(labelled=batch([0, 1]), unlabelled=batch([2, 3]))).task["labelled"]
    torch.testing.assert_close(alone, beside)


def test_without_unlabelled_images_it_is_supervised() -> None:
    losses = wad([0, 1], [1.0, 1.0]).losses(Together(labelled=batch([0, 1])))
    assert set(losses.terms) == {"labelled"}


@pytest.mark.parametrize("images", [4, 0])
def test_weights_of_zero_and_no_images_give_zero_and_no_gradient(images: int) -> None:
    logits = torch.randn(images, 3, requires_grad=True)
    loss = weighted_cross_entropy(logits, torch.arange(images) % 3, torch.zeros(images))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_no_gradient_reaches_the_weights() -> None:
    weights = torch.ones(4, requires_grad=True)
    loss = weighted_cross_entropy(torch.randn(4, 3, requires_grad=True), torch.arange(4) % 3, weights)
    assert torch.autograd.grad(loss, weights, allow_unused=True) == (None,)


# Splits ---------------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(labelled=st.integers(3, 60), mismatch=st.floats(0, 0.6), even=st.booleans(), seed=st.integers(0, 99))
def test_a_split_s_parts_are_disjoint_and_have_the_mismatch(labelled: int, mismatch: float, even: bool, seed: int) -> None:
    labels, targets = np.arange(600) % 6, [4, 0, 2]
    assume(even or labelled >= 40)  # a small draw may leave a class out
    split = mismatch_split(labels, targets, labelled, mismatch, even=even, seed=seed)
    both = np.concatenate([split.labelled, split.unlabelled])
    assert len(np.unique(both)) == len(both)
    assert len(split.labelled) == labelled
    assert np.isin(labels[split.labelled], targets).all()
    known = np.isin(labels[split.unlabelled], targets)
    assert known.sum() == 300 - labelled
    assert (~known).sum() == min(300, math.ceil(mismatch * (300 - labelled) / (1 - mismatch)))
    if even:
        counts = np.bincount(labels[split.labelled], minlength=6)[targets]
        assert counts.max() - counts.min() <= 1


def test_a_draw_that_leaves_a_class_out_is_refused() -> None:
    labels = np.array([0] * 100 + [1])
    with pytest.raises(InputError, match="class 1 has no labelled image in this draw"):
        mismatch_split(labels, [0, 1], 2, 0.0)
    assert mismatch_split(labels, [0, 1], 2, 0.0, even=True).labelled[1] == 100


@pytest.mark.parametrize(
    ("labelled", "mismatch", "message"),
    [
        (1, 0.5, "labelled: got 1"),
        (400, 0.5, "labelled: got 400"),
        (20, 1.0, "mismatch: got 1"),
        (20, -0.1, "mismatch"),
        (20, math.nan, "mismatch"),
    ],
)
def test_impossible_splits(labelled: int, mismatch: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mismatch_split(np.arange(600) % 6, [0, 1], labelled, mismatch)
    with pytest.raises(InputError, match="every image is of a target class"):
        mismatch_split(np.arange(60) % 2, [0, 1], 10, 0.5)


def test_the_pool_holds_no_true_label_of_an_unlabelled_image(digits: ImageData) -> None:
    pool = benchmark(digits, ["3", "0", "8"], 12, 0.5, seed=1)
    assert pool.data.classes == ("3", "0", "8")
    assert (pool.data.train_labels[pool.unlabelled] == 0).all()
    origin = pool.data.indices["train"]
    assert pool.truth is not None
    names = np.array(["3", "0", "8", "unknown"])
    true = [name if name in "308" else "unknown" for name in (digits.classes[k] for k in ImageData("digits").train_labels[origin].tolist())]
    assert names[pool.truth].tolist() == true
    assert (pool.data.train_labels.numpy()[pool.labelled] == pool.truth[pool.labelled]).all()
    assert pool.data.val_labels.max() == 2
    assert len(pool.data.val_labels) == int(torch.isin(digits.val_labels, torch.tensor([0, 3, 8])).sum())


@pytest.mark.parametrize("targets", [["3"], ["3", "3"], ["3", "eleven"], ["3", "10"]])
def test_target_classes_that_there_are_not(digits: ImageData, targets: list[str]) -> None:
    with pytest.raises(InputError, match="known_classes"):
        benchmark(digits, targets, 12, 0.5)


# Views and networks ---------------------------------------------------------------------------------------------------------------------


def pixels(count: int = 6, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.07, 0.3])
def test_hues_turn_as_torchvision_turns_them(turn: float) -> None:
    images = torch.cat((pixels(), torch.full((1, 3, 16, 16), 0.4)))
    torch.testing.assert_close(hue_shifted(images, torch.full((7, 1, 1, 1), turn)), F.adjust_hue(images, turn), atol=1e-5, rtol=0)


def test_views_that_change_nothing_change_nothing() -> None:
    images = pixels()
    torch.testing.assert_close(PhotoViews(mirror=0, strength=0, hue=0, grey=0)._coloured(images), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(ScanViews(0, 0, 0, 0)(images), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("views", [PhotoViews(), ScanViews()])
def test_rows_have_views_of_their_own_and_seeds_repeat_them(views: nn.Module) -> None:
    same = pixels(1).expand(8, -1, -1, -1)
    torch.manual_seed(4)
    first = views(same)
    torch.manual_seed(4)
    torch.testing.assert_close(views(same), first, rtol=0, atol=0)
    assert first.shape == same.shape
    assert len({row.numpy().tobytes() for row in first}) == 8


def test_crops_have_the_area_and_the_shape_that_they_are_to_have() -> None:
    across = ((torch.arange(32) + 0.5) / 32).expand(500, 1, 32, 32)  # each pixel says where it is
    images = torch.cat((across, across.mT, across), 1)
    out = PhotoViews(mirror=0, jitter=0, grey=0)(images)
    width, height = ((out[:, 0, 16, 20] - out[:, 0, 16, 12]) * 4, (out[:, 1, 20, 16] - out[:, 1, 12, 16]) * 4)
    inside = (width < 0.98) & (height < 0.98)  # longer ones are cut
    assert inside.sum() > 300
    area, shape = (width * height)[inside], (width / height)[inside]
    assert 0.079 < area.min() < 0.12
    assert area.max() > 0.8
    assert 0.74 < shape.min() < 0.78
    assert 1.28 < shape.max() < 1.35


def test_photo_views_stay_in_range_and_some_are_grey_or_mirrored() -> None:
    out = PhotoViews(mirror=0, jitter=0, area=1.0)(pixels(400))
    grey = (out[:, 0] == out[:, 1]).flatten(1).all(1).float().mean()
    assert 0.1 < grey < 0.3
    assert 0 <= out.min() <= out.max() <= 1
    ramp = torch.linspace(0, 1, 16).expand(200, 3, 16, 16)
    mirrored = PhotoViews(jitter=0, grey=0)(ramp)
    assert 0.3 < (mirrored[..., 0] > mirrored[..., -1]).float().mean() < 0.7


def test_the_encoder_reads_what_the_student_reads() -> None:
    encoder = Encoder(nn.Flatten(), (0.1, 0.2, 0.3), (0.5, 0.4, 0.3), hidden=12, dim=5)
    images = pixels(4, 2)
    normalised = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(encoder(normalised), encoder.project(images))
    torch.testing.assert_close(encoder.project(images), encoder.projection(((images - 0.5) / 0.5).flatten(1)))


def test_the_paper_s_teacher() -> None:
    with torch.device("meta"):
        encoder = Encoder(ResNetSmallStem((2, 2, 2, 2), num_classes=512, initialise=False), (0.5,) * 3, (0.5,) * 3)
        assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 128)
        assert encoder.trunk.layer4(torch.zeros(2, 256, 8, 8)).shape == (2, 512, 4, 4)
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 17 + 3  # three shortcuts
    heads = [tuple(module.weight.shape) for module in encoder.modules() if isinstance(module, nn.Linear)]
    assert heads == [(512, 512), (128, 512)]


def contrast(**options: Any) -> Contrast:
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(192, 8)), (0.5,) * 3, (0.5,) * 3, hidden=8, dim=4)
    return Contrast(encoder, ScanViews(), lambda: [batch([0, 1, 2])._replace(labels=torch.arange(3))], 3, **options)


def test_contrast_answers_with_the_similarity_to_each_class_s_images() -> None:
    distiller = contrast(contrast_temperature=0.25).eval()
    memory, asked = batch([0, 1, 2]), batch([7, 8])
    expected = class_scores(distiller.student(asked.images), distiller.student(memory.images), torch.arange(3), 3) / 0.25
    torch.testing.assert_close(distiller.predict(asked), expected)
    with torch.no_grad():
        distiller.encoder.projection[1].weight.neg_()
    distiller.progress = Progress(step=9)  # trained on since: what is remembered is not the old features
    distiller.predict(asked)
    assert distiller._known is not None
    torch.testing.assert_close(distiller._known[1], distiller.student(memory.images))


def test_contrast_trains_the_whole_encoder_without_labels() -> None:
    distiller = contrast()
    losses = distiller.losses(batch([0, 1, 2, 3])._replace(labels=torch.full((4,), 999)))
    losses.total.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in distiller.parameters())


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0.1), (5, 0.55), (10, 1.0), (60, 0.5), (110, 0.0)])
def test_the_released_learning_rate_is_that_of_the_step_before(epoch: int, rate: float) -> None:
    assert released_rate(0.1, Progress(epochs=100, step=7 * epoch + 1, steps_per_epoch=7)) == pytest.approx(rate, abs=1e-9)


def test_a_released_schedule_starts_at_the_rate_that_was_asked_for(tmp_path: Path, digits: ImageData) -> None:
    rates: list[float] = []

    class Watched(Contrast):
        def losses(self, batch: Any) -> Losses:
            rates.append(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
            return super().losses(batch)

    encoder = Encoder(build_classifier("stillroom/convnet4", num_classes=8).network, digits.mean, digits.std, hidden=8, dim=4)
    distiller = Watched(encoder, ScanViews(), digits.train_eval_loader, digits.num_classes)
    steps = digits.train_size // digits.batch_size
    Lab(LabOptions(out=tmp_path, accelerator="cpu")).fit(distiller, digits, Training(epochs=1, lr=0.1, schedule="constant"), name="teacher")
    assert rates == pytest.approx([0.1 * (1 + 0.9 * max(step - 1, 0) / steps) for step in range(steps)])


# Rounds ---------------------------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill: nothing of the run's own handles it."""


def rounds(out: Path, data: ImageData, **how: Any) -> tuple[Any, Any, Any]:
    """Three short rounds from the same beginning; answers pool, stage and logs."""
    pool = benchmark(data, ["0", "1", "2"], 6, 0.5, even=True)
    torch.manual_seed(5)
    student = build_classifier("stillroom/convnet4", num_classes=3).network
    encoder = Encoder(build_classifier("stillroom/convnet4", num_classes=8).network, data.mean, data.std, hidden=8, dim=8)
    lab = Lab(LabOptions(out=out, checkpoint_steps=2, accelerator="cpu"))
    chosen = Rounds(**{"iterations": 4, "rounds": 2, "promote": 0.4, **how})
    return pool, *train_in_rounds(lab, pool, encoder, ScanViews(), student, ROUND, chosen)


def test_promoted_images_change_sides_and_nobody_is_on_both(tmp_path: Path, digits: ImageData) -> None:
    pool, trained, logs = rounds(tmp_path, digits)
    assert [len(log.promoted) for log in logs] == [math.floor(0.1 * len(pool.unlabelled)), 0, 0]
    assert set(logs[0].promoted.tolist()) <= set(pool.unlabelled.tolist())
    assert set(logs[1].unlabelled.tolist()) == set(pool.unlabelled.tolist()) - set(logs[0].promoted.tolist())
    shown = [json.loads((tmp_path / f"seed0/round{i}/indices.json").read_text()) for i in (1, 2, 3)]
    for sets in shown:
        assert not set(sets["labelled"]) & set(sets["unlabelled"])
    origin = pool.data.indices["train"]
    assert shown[1]["labelled"] == shown[0]["labelled"] + origin[logs[0].promoted].tolist()
    assert trained.result.epochs == 3
    assert [row["epoch"] for row in trained.result.history] == [1, 2, 3]


def test_the_table_says_who_was_promoted_and_as_what(tmp_path: Path, digits: ImageData) -> None:
    pool, _, logs = rounds(tmp_path, digits)
    write_labels(tmp_path / "table.csv", pool.data, logs)
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(pool.unlabelled)
    assert sum(row["promoted in round"] == "1" for row in rows) == len(logs[0].promoted)
    names = [pool.data.train_name(i) for i in logs[0].promoted.tolist()]
    place = torch.searchsorted(logs[0].unlabelled, logs[0].promoted)
    as_what = {row["image"]: row["pseudo-label"] for row in rows}
    assert [as_what[name] for name in names] == [pool.data.classes[k] for k in logs[0].labels[place].tolist()]


def test_promoted_images_keep_their_pseudo_label(tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[WAD] = []
    fit = Lab.fit
    monkeypatch.setattr(Lab, "fit", lambda lab, distiller, *rest, **more: seen.append(distiller) or fit(lab, distiller, *rest, **more))
    pool, _, logs = rounds(tmp_path, digits)
    place = torch.searchsorted(logs[0].unlabelled, logs[0].promoted)
    for distiller in seen[1:]:
        assert torch.equal(distiller.labels_N[logs[0].promoted], logs[0].labels[place])
        assert torch.equal(distiller.labels_N[pool.labelled], pool.data.train_labels[pool.labelled])


def test_hard_pseudo_labels_weigh_one(tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[Tensor] = []
    fit = Lab.fit
    monkeypatch.setattr(Lab, "fit", lambda lab, made, *rest, **more: weights.append(made.weights_N) or fit(lab, made, *rest, **more))
    rounds(tmp_path, digits, weighted=False, rounds=1)
    assert all((weight == 1).all() for weight in weights)


@pytest.mark.usefixtures("kept_checkpoints")
def test_the_student_of_a_round_begins_where_the_last_one_ended(tmp_path: Path, digits: ImageData) -> None:
    rounds(tmp_path, digits)
    starts = [json.loads((tmp_path / f"seed0/round{i}/stage.json").read_text())["fingerprint"]["initial weights"] for i in (1, 2, 3)]
    assert len(set(starts)) == 3
    assert [torch.load(tmp_path / f"seed0/round{i}/last.ckpt", weights_only=False)["global_step"] for i in (1, 2, 3)] == [4, 4, 4]


def without_unlabelled(tmp_path: Path, digits: ImageData) -> tuple[Any, Any]:
    part = digits.restricted(train=torch.arange(40))
    pool = benchmark(part, list(digits.classes), 40, 0.0)
    student = build_classifier("stillroom/convnet4", num_classes=10).network
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(192, 8)), digits.mean, digits.std, hidden=8, dim=8)
    return pool, train_in_rounds(
        Lab(LabOptions(out=tmp_path, accelerator="cpu")), pool, encoder, ScanViews(), student, ROUND, Rounds(iterations=3, rounds=1)
    )


def test_an_empty_pool_goes_on_supervised(tmp_path: Path, digits: ImageData, caplog: pytest.LogCaptureFixture) -> None:
    _, (trained, logs) = without_unlabelled(tmp_path, digits)
    assert "no unlabelled image" in caplog.text
    assert [len(log.promoted) for log in logs] == [0, 0]
    assert set(trained.result.history[0]) & {"train/labelled", "train/unlabelled"} == {"train/labelled"}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_features_are_those_of_each_image_by_number(digits: ImageData, count: int) -> None:
    pool = benchmark(digits, ["0", "1", "2"], 6, 0.5, even=True)
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(192, 8)), digits.mean, digits.std, hidden=8, dim=8)
    found = projections(encoder, pool.data, ScanViews(0, 0, 0, 0), count, torch.device("cpu"), (0, 1))
    inputs = torch.cat([batch.inputs for batch in pool.data.train_eval_loader()])
    expected = encoder(inputs).detach()
    torch.testing.assert_close(found, unit_rows(expected) if count > 1 else expected, atol=1e-4, rtol=1e-3)


def test_knowledge_asks_anew_in_every_round_and_repeats_with_the_seed(digits: ImageData) -> None:
    pool = benchmark(digits, ["0", "1", "2"], 6, 0.5, even=True)
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(192, 8)), digits.mean, digits.std, hidden=8, dim=8)
    asked = [projections(encoder, pool.data, ScanViews(), 1, torch.device("cpu"), seeds) for seeds in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert torch.equal(asked[0], asked[1])
    assert not torch.equal(asked[0], asked[2])
    assert not torch.equal(asked[0], asked[3])


def test_killed_rounds_end_with_the_same_numbers(tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rounds(tmp_path / "whole", digits)
    losses, steps = WAD.losses, {"left": 0}

    def falling(distiller: WAD, given_: Any) -> Losses:
        steps["left"] -= 1
        if steps["left"] == 0:
            raise Killed
        return losses(distiller, given_)

    monkeypatch.setattr(WAD, "losses", falling)
    for left in (3, 6, 4):  # in the first round, in the second, in the last
        steps["left"] = left
        with pytest.raises(Killed):
            rounds(tmp_path / "killed", digits)
    steps["left"] = 0
    again = rounds(tmp_path / "killed", digits)
    for log, other in zip(whole[2], again[2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(vars(log).values(), vars(other).values(), strict=True))
    one, two = (read_weights(tmp_path / name / "seed0/round3") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert whole[1].result.metrics == again[1].result.metrics


def test_what_the_teacher_said_is_read_again_not_asked(tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    first = rounds(tmp_path, digits)
    monkeypatch.setattr(Encoder, "project", None)
    monkeypatch.setattr(WAD, "losses", None)
    assert rounds(tmp_path, digits)[1].result.metrics == first[1].result.metrics


def test_two_processes_equal_one(tmp_path: Path, processes: Processes) -> None:
    wad_job.main(tmp_path / "1", 1)
    processes.on_two_ranks(wad_job.main, tmp_path / "2", 2)
    for stage in ("round1", "round2", "round3"):
        one, two = (tmp_path / str(devices) / "seed0" / stage for devices in (1, 2))
        promoted = [np.load(folder / "promoted.npz")["ids"] for folder in (one, two)]
        assert np.array_equal(*promoted)
        assert len(promoted[0]) == (14 if stage == "round1" else 0)
        weights = [read_weights(folder) for folder in (one, two)]
        for name in weights[0]:
            torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)


def test_short_passes_are_kept_but_not_a_single_image(digits: ImageData) -> None:
    data = RoundData(digits, np.arange(5), np.arange(10, 43), 6, 1)  # batches of 32: 5; 32 and 1, which is left out
    seen = [(len(batch["labelled"].ids), len(batch["unlabelled"].ids)) for batch in data.train_loader(seed=0)]
    assert seen == [(5, 32)] * 6
    for batch_ in data.train_loader(seed=0):
        assert set(batch_["labelled"].ids.tolist()) == set(range(5))
        assert set(batch_["unlabelled"].ids.tolist()) <= set(range(10, 43))


def test_rounds_show_their_images_in_orders_of_their_own(digits: ImageData) -> None:
    orders = [[b.ids.tolist() for b in RoundData(digits, np.arange(60), np.arange(60, 160), 3, n).train_loader(seed=0)] for n in (1, 2)]
    assert orders[0] != orders[1]
    prints = {
        RoundData(digits, np.arange(k), np.arange(60, 160), s, n).fingerprint
        for k, s, n in ((60, 3, 1), (59, 3, 1), (60, 4, 1), (60, 3, 2))
    }
    assert len(prints) == 4


# The command ----------------------------------------------------------------------------------------------------------------------------

SHORT = ["--teacher-epochs", "1", "--iterations", "3", "--accelerator", "cpu", "--workers", "0"]
SMALL = ["--teacher", "stillroom/convnet4", "--student", "stillroom/convnet4", "--hidden", "8", "--embed-dim", "8"]
DIGITS = [*SHORT, *SMALL, "--subset", "160", "--val-subset", "80", "--batch-size", "16", "--rounds", "1"]


def test_the_command_reports_and_ships_a_student_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "asked.png", size=(8, 8))
    assert main(["run", "wad", *DIGITS, "--out", "run", "--known-classes", "[7, 3, 1]", "--labelled", "9"]) == 0
    found = json.loads(Path("run/metrics.json").read_text())
    assert list(found["stages"]) == ["teacher", "alone", "distilled"]
    assert found["stages"]["alone"][0]["epochs"] == found["stages"]["distilled"][0]["epochs"] == 2
    assert stillroom.load("run").classes == ("7", "3", "1")
    assert main(["predict", "run", "asked.png"]) == 0
    assert main(["export", "run", "--format", "safetensors"]) == 0
    capsys.readouterr()
    assert main(["run", "wad", *DIGITS, "--out", "run", "--known-classes", "[7, 3, 1]", "--labelled", "9"]) == 0
    assert "round1: done before" in capsys.readouterr().out


def test_one_s_own_photographs_beside_a_folder_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.chdir(tmp_path)
    classes_of_pictures(Path("photos"), count=5)
    for i in range(12):
        picture(Path("more", "deep" if i % 2 else "", f"{i}.jpg"), (20 * i, 0, 90), (16, 12))
    Path("more/broken.jpg").write_bytes(b"no image")
    own = ["--data", "imagefolder:photos", "--unlabelled", "more", *SHORT, *SMALL, "--rounds", "1", "--batch-size", "4"]
    assert main(["run", "wad", *own, "--out", "run"]) == 0
    assert "broken.jpg" in caplog.text
    shown = json.loads(Path("run/seed0/round1/indices.json").read_text())
    assert (len(shown["labelled"]), len(shown["unlabelled"])) == (8, 12)
    assert stillroom.load("run").classes == ("cat", "dog")
    with Path("run/seed0/round2/pseudo-labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["image"] for row in rows} == {f"deep/{i}.jpg" if i % 2 else f"{i}.jpg" for i in range(12)}
    assert {row["pseudo-label"] for row in rows} <= {"cat", "dog"}
    larger = [*own, "--image-size", "72", "--augment", "imagenet", "--out", "large"]  # read from their files
    assert main(["run", "wad", *larger]) == 0


def test_own_images_are_numbered_behind_the_labelled_ones_and_told_apart(tmp_path: Path) -> None:
    classes_of_pictures(tmp_path / "photos", count=5)
    for i in range(3):
        picture(tmp_path / "more" / f"{i}.png", (0, 0, 80 * i))
    data = ImageData(f"imagefolder:{tmp_path / 'photos'}", batch_size=4)
    pool = own_images(data, str(tmp_path / "more"))
    assert pool.labelled.tolist() == list(range(8))
    assert pool.unlabelled.tolist() == [8, 9, 10]
    images = torch.cat([batch_.images for batch_ in pool.data.train_eval_loader()])
    blue = (images[8:, 2].mean((1, 2)) * data.std[2] + data.mean[2]) * 255
    torch.testing.assert_close(blue, torch.tensor([0.0, 80.0, 160.0]), atol=1.0, rtol=0)
    picture(tmp_path / "more" / "3.png")
    assert own_images(data, str(tmp_path / "more")).data.fingerprint != pool.data.fingerprint
    assert len(own_images(data, f"imagefolder:{tmp_path / 'more'}").unlabelled) == 4
    assert len(own_images(data, "shapes,train=1,val=1").unlabelled) == 60  # other data, without their labels


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--labelled", "2"], "labelled: got 2"),
        (["--mismatch", "1"], "mismatch: got 1"),
        (["--known-classes", "[seven, 3]"], "known_classes: got seven"),
        (["--iterations", "0"], "iterations: got 0"),
        (["--knowledge-views", "-1"], "knowledge_views: got -1"),
        (["--promote", "2"], "promote: got 2"),
        (["--unlabelled", "nowhere"], "unlabelled: got nowhere"),
        (["--unlabelled", "empty"], "unlabelled: got empty"),
        (["--unlabelled", "restyled"], "unlabelled: got restyled"),
        (["--unlabelled", "broken"], "image that can be decoded"),
        (["--unlabelled", "empty", "--known-classes", "[1, 2]"], "known_classes"),
        (["--student", "stillroom/wrn_28_2_whitened", "--image-size", "128"], "image_size: got 128"),
        (["--jitter-each"], "a whitened student"),
        (["--teacher", "resnet19"], "teacher: got resnet19"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_leaves_nothing(
    more: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"no image")
    assert main(["run", "wad", *DIGITS, "--out", "run", *more]) == 2
    error = capsys.readouterr().err.strip()
    assert message.replace("_", "-") in error.replace("_", "-")
    assert len(error.splitlines()) == 1
    assert not Path("run").exists()


def cifar10(root: Path) -> Path:
    """CIFAR-10's Python version, of noise: forty training images and ten test images."""
    folder, numbers = root / "cifar-10-batches-py", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        count = 10 if name == "test_batch" else 8
        content = {
            "data": numbers.integers(0, 256, (count, 3072), np.uint8),
            "labels": [i % 4 for i in range(count)],
            "filenames": [f"{name}_{i}.png" for i in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile", "bird", "cat"]}, protocol=2))
    return root


PAPER = {
    "optimizer": "adam",
    "schedule": "constant",
    "lr": 5e-4,
    "weight_decay": 0,
    "batch_size": 32,
    "labelled": 800,
    "contrast_temperature": 0.5,
    "hidden": 512,
    "embed_dim": 128,
    "promote": 0.1,
    "rounds": 5,
    "epochs": 1,
    "teacher": "resnet18",
    "teacher_lr": 0.1,
    "teacher_schedule": "paper",
    "student": "stillroom/wrn_28_2_whitened",
    "knowledge_views": 1,
    "jitter_each": False,
    "even": False,
}


@pytest.mark.parametrize(
    ("preset", "own"),
    [
        ("paper", {"known_classes": ["airplane", "automobile"], "teacher_epochs": 700, "iterations": 1500}),
        (
            "paper:cifar100",
            {
                "known_classes": [
                    str(number) for number in (3, 42, 43, 88, 97, 15, 19, 21, 32, 39, 35, 63, 64, 66, 75, 37, 50, 65, 74, 80)
                ],
                "teacher_epochs": 2000,
                "iterations": 2000,
            },
        ),
    ],
)
def test_the_presets_have_the_specification_s_numbers(preset: str, own: dict[str, Any], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["run", "wad", "--preset", preset, "--print_config"])
    values = yaml.safe_load(capsys.readouterr().out)
    expected = PAPER | own
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize("preset", ["paper", "paper:cifar100"])
def test_the_paper_s_networks_on_its_data_in_small(preset: str, tmp_path: Path) -> None:
    data = f"cifar10:{cifar10(tmp_path / 'data')}" if preset == "paper" else f"cifar100:{cifar100(tmp_path / 'data', 40)}"
    few = [] if preset == "paper" else ["--known-classes", "[0, 4]"]
    small = ["--data", data, *SHORT, "--labelled", "6", "--batch-size", "4", "--rounds", "1", "--image-size", "8", *few]
    out = tmp_path / "run"
    assert main(["run", "wad", "--preset", preset, *small, "--out", str(out)]) == 0
    card = json.loads((out / "student.json").read_text())
    assert card["model"] == "stillroom/wrn_28_2_whitened"
    assert len(card["classes"]) == 2
    loaded = stillroom.load(out)
    white = loaded.network.whitening.matrix  # type: ignore[union-attr]
    assert not torch.equal(white, torch.eye(192))
    assert loaded.probabilities(Image.new("RGB", (32, 32), (200, 30, 60))).isfinite().all()
