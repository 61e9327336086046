"""CrKD: equations, matching, heads, both stages; and the experiment as a command."""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import stillroom
from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Losses, Progress
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.crkd import Discovery, NovelClassData, Pretraining
from stillroom.methods.crkd.distiller import Answers
from stillroom.methods.crkd.evaluator import DiscoveryEvaluator
from stillroom.methods.crkd.loss import discovery_targets, joint_logits, relation_loss, relation_weight, swapped_prediction
from stillroom.methods.crkd.metrics import clustering, match, split_clustering
from stillroom.methods.crkd.networks import DiscoveryNetwork, train_only
from stillroom.methods.crkd.novel import KnownClassifier, Prototypes
from stillroom.methods.crkd.recipe import SHORT
from stillroom.methods.crkd.views import crops
from stillroom.tasks.classification import Batch
from stillroom.tasks.images.views import ViewBatch
from tests.methods import crkd_job
from tests.processes import Processes
from tests.tasks.classification.miniatures import cifar100, classes_of_pictures

KNOWN, NOVEL, HEADS, BATCH = 4, 3, 2, 12


def cosines(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def labels(size: int = BATCH) -> tuple[Tensor, Tensor]:
    """Every other image is labelled."""
    numbers = torch.arange(size) % (KNOWN + NOVEL)
    return numbers, numbers < KNOWN


# The losses -----------------------------------------------------------------------------------------------------------------------------


def test_weights_have_the_mean_one_and_leave_out_labelled_images() -> None:
    _, labelled = labels()
    eta, weight = relation_weight(cosines(2, HEADS, BATCH, KNOWN + NOVEL), labelled, KNOWN, 0.4)
    assert ((eta > 0) & (eta < 1)).all()
    torch.testing.assert_close(weight[..., ~labelled].mean(), torch.tensor(1.0))
    assert (weight[..., labelled] == 0).all()


def test_relation_is_the_papers_sum_sample_by_sample() -> None:
    _, labelled = labels()
    student, teacher = cosines(2, HEADS, BATCH, KNOWN + NOVEL).double(), cosines(2, 1, BATCH, KNOWN, seed=1).double()
    unlabelled = (~labelled).nonzero().flatten().tolist()
    mass = {(v, h, b): (student[v, h, b] / 0.4).softmax(0)[:KNOWN].sum() for v in range(2) for h in range(HEADS) for b in unlabelled}
    mean = torch.stack(list(mass.values())).mean()
    expected = []
    for h in range(HEADS):
        terms = []
        for v, b in itertools.product(range(2), unlabelled):
            p, q = (teacher[v, 0, b] / 0.4).softmax(0), (student[v, h, b, :KNOWN] / 0.4).softmax(0)
            terms.append(16 * mass[v, h, b] / mean * -(p * q.log()).sum())
        expected.append(torch.stack(terms).mean())
    torch.testing.assert_close(relation_loss(student, teacher, labelled), torch.stack(expected))


@pytest.mark.parametrize("weighting", ["learnable", "constant"])
def test_gradient_reaches_the_novel_logits_through_the_weight_alone(weighting: Any) -> None:
    _, labelled = labels()
    student = cosines(2, HEADS, BATCH, KNOWN + NOVEL).requires_grad_()
    teacher = cosines(2, 1, BATCH, KNOWN, seed=1).requires_grad_()
    loss = relation_loss(student, teacher, labelled, weighting=weighting).mean()
    gradient, of_teacher = torch.autograd.grad(loss, [student, teacher], allow_unused=True)
    assert of_teacher is None
    assert bool(gradient[..., KNOWN:].any()) == (weighting == "learnable")
    assert not gradient[:, :, labelled].any()
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(2, HEADS, BATCH), atol=1e-5, rtol=0)  # a constant added changes nothing


def test_a_student_like_its_teacher_has_no_divergence() -> None:
    _, labelled = labels()
    student = cosines(2, HEADS, BATCH, KNOWN + NOVEL)
    loss = relation_loss(student, student[..., :KNOWN], labelled, divergence="kl")
    torch.testing.assert_close(loss, torch.zeros(HEADS), atol=1e-5, rtol=0)
    p = (student[..., ~labelled, :KNOWN] / 0.4).softmax(-1)
    entropy = -16 * (p * p.log()).sum(-1).mean((0, 2))
    torch.testing.assert_close(relation_loss(student, student[..., :KNOWN], labelled, weighting="constant"), entropy)


def test_divergences_differ_by_the_entropy_under_a_constant_weight_only_in_value() -> None:
    _, labelled = labels()
    student, teacher = cosines(2, HEADS, BATCH, KNOWN + NOVEL).requires_grad_(), cosines(2, 1, BATCH, KNOWN, seed=1)

    def gradient(**options: Any) -> Tensor:
        return torch.autograd.grad(relation_loss(student, teacher, labelled, **options).sum(), student)[0]

    constant = [gradient(weighting="constant", divergence=each) for each in ("cross-entropy", "kl")]
    learnable = [gradient(divergence=each) for each in ("cross-entropy", "kl")]
    torch.testing.assert_close(*constant)
    assert (learnable[0] - learnable[1]).abs().max() > 1e-3


def test_without_unlabelled_images_there_is_no_relation_and_nothing_breaks() -> None:
    student = cosines(2, HEADS, BATCH, KNOWN + NOVEL).requires_grad_()
    loss = relation_loss(student, cosines(2, 1, BATCH, KNOWN), torch.ones(BATCH, dtype=torch.bool))
    assert torch.equal(loss, torch.zeros(HEADS))
    assert not torch.autograd.grad(loss.sum(), student)[0].any()


def test_a_student_that_sees_no_known_class_at_all_keeps_finite_gradients() -> None:
    student = cosines(2, HEADS, BATCH, KNOWN + NOVEL)
    student[..., :KNOWN] -= 1000
    student.requires_grad_()
    loss = relation_loss(student, cosines(2, 1, BATCH, KNOWN), labels()[1])
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


def test_targets() -> None:
    numbers, labelled = labels()
    novel = cosines(2, HEADS, BATCH, NOVEL)
    targets = discovery_targets(novel, numbers, labelled, KNOWN)
    torch.testing.assert_close(targets.sum(-1), torch.ones(2, HEADS, BATCH))
    assert (targets[:, :, labelled].argmax(-1) == numbers[labelled]).all()
    assert not targets[:, :, labelled][..., KNOWN:].any()
    assert not targets[:, :, ~labelled][..., :KNOWN].any()
    other = torch.where(labelled, numbers, -7)
    assert torch.equal(discovery_targets(novel, other, labelled, KNOWN), targets)


@pytest.mark.parametrize("wrong", [-1, KNOWN, 99])
def test_a_labelled_image_of_no_known_class_is_named(wrong: int) -> None:
    numbers, labelled = labels()
    numbers[0] = wrong
    with pytest.raises(InputError, match=f"labels_B: got {wrong}, expected .* 0 to 3"):
        discovery_targets(cosines(2, HEADS, BATCH, NOVEL), numbers, labelled, KNOWN)


@pytest.mark.parametrize(("views", "large"), [(2, 1), (2, 2), (4, 2)])
def test_swapped_prediction_is_the_papers_sum(views: int, large: int) -> None:
    logits, targets = cosines(views, HEADS, 5, 6), cosines(large, HEADS, 5, 6, seed=1).softmax(-1)
    expected = torch.zeros(HEADS)
    for h, v, w in itertools.product(range(HEADS), range(large), range(views)):
        if v != w:
            expected[h] += -(targets[v, h] * (logits[w, h] / 0.1).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(swapped_prediction(logits, targets, 0.1), expected / (large * (views - 1)))


@pytest.mark.parametrize(("views", "large"), [(1, 1), (2, 0), (2, 3)])
def test_swapping_needs_another_view(views: int, large: int) -> None:
    with pytest.raises(InputError, match="views"):
        swapped_prediction(cosines(views, 1, 2, 3), cosines(large, 1, 2, 3), 0.1)


def test_known_and_novel_compete() -> None:
    joint = joint_logits(cosines(3, BATCH, KNOWN), cosines(3, HEADS, BATCH, NOVEL))
    assert joint.shape == (3, HEADS, BATCH, KNOWN + NOVEL)
    assert torch.equal(joint[:, 0, :, :KNOWN], joint[:, 1, :, :KNOWN])


# Matching and the schedule --------------------------------------------------------------------------------------------------------------

numbered = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@settings(deadline=None)  # the first call imports scikit-learn
@given(numbered)
def test_the_matching_is_the_best_of_all(pairs: list[tuple[int, int]]) -> None:
    predictions, truth = map(np.array, zip(*pairs, strict=True))
    best = max(float((np.array(order)[predictions] == truth).mean()) for order in itertools.permutations(range(5)))
    assert clustering(predictions, truth).accuracy == pytest.approx(best)


@settings(deadline=None)
@given(numbered, st.integers(1, 4), st.permutations(range(5)))
def test_accuracies_of_the_two_protocols(pairs: list[tuple[int, int]], known: int, order: list[int]) -> None:
    predictions, truth = map(np.array, zip(*pairs, strict=True))
    free, fixed = (split_clustering(predictions, truth, known, matching) for matching in ("all", "novel"))  # type: ignore[arg-type]
    assert fixed.all <= free.all + 1e-12
    renamed = split_clustering(np.array(order)[predictions], truth, known)
    assert renamed.all == pytest.approx(free.all)
    for found in (free, fixed):
        parts = [(found.known, (truth < known).mean()), (found.novel, (truth >= known).mean())]
        assert sum(value * share for value, share in parts if share) == pytest.approx(found.all)
        assert math.isnan(found.novel) == (not (truth >= known).any())
    seen = truth < known
    if seen.any():
        assert fixed.known == pytest.approx((predictions[seen] == truth[seen]).mean())


def test_perfect_clusters_under_other_names() -> None:
    truth = np.repeat([5, 6, 7], 4)
    found = clustering(np.repeat([2, 0, 1], 4), truth)
    assert (found.accuracy, found.nmi, found.ari) == (1.0, 1.0, 1.0)
    assert np.array_equal(match(np.repeat([2, 0, 1], 4), np.repeat([0, 1, 2], 4)), [1, 2, 0])


def test_more_clusters_than_classes_and_an_unused_one() -> None:
    assert clustering(np.array([0, 0, 5, 9]), np.array([0, 0, 1, 1])).accuracy == 0.75


@pytest.mark.parametrize(("predictions", "truth"), [([], []), ([0, -1], [0, 1]), ([0.5, 1.0], [0, 1]), ([0, 1], [0]), ([[0, 1]], [[0, 1]])])
def test_matching_refuses(predictions: list[Any], truth: list[Any]) -> None:
    with pytest.raises(InputError):
        clustering(np.array(predictions), np.array(truth))


# Networks and stages --------------------------------------------------------------------------------------------------------------------


def supervised(width: int = 6) -> KnownClassifier:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return KnownClassifier(backbone, Prototypes(width, KNOWN))


def discovery(**options: Any) -> Discovery:
    student = DiscoveryNetwork(supervised(), NOVEL, novel_heads=HEADS, hidden=8, projection=5)
    return Discovery(student, supervised(), **options)


def shown(views: tuple[int, ...] = (8, 8), size: int = BATCH) -> ViewBatch:
    images = [torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(i)) for i, side in enumerate(views)]
    return ViewBatch(tuple(images), labels(size)[0], torch.arange(size))


def test_true_labels_of_novel_classes_do_not_reach_the_loss() -> None:
    batch = shown()
    for other in (KNOWN, 99, -1):
        hidden = batch._replace(labels=torch.where(batch.labels < KNOWN, batch.labels, other))
        assert torch.equal(discovery().losses(hidden).total, discovery().losses(batch).total)


def test_the_step_is_the_sum_of_the_papers_terms_over_crops_of_two_sizes() -> None:
    distiller, batch = discovery(relation_weight=0.3), shown((8, 8, 5))
    losses = distiller.losses(batch)
    again = discovery(relation_weight=0.3)
    again.student.normalise_prototypes()
    known, novel = zip(*[again.student.cosines(view) for view in batch.views], strict=True)
    logits, labelled = joint_logits(torch.stack(known), torch.stack(novel)), batch.labels < KNOWN
    targets = discovery_targets(torch.stack(novel[:2]), batch.labels, labelled, KNOWN)
    cluster = swapped_prediction(logits, targets, 0.1)
    taught = supervised().eval()
    teacher = torch.stack([taught.known(taught.backbone(view)) for view in batch.views[:2]])[:, None]
    torch.testing.assert_close(losses.task["cluster"], cluster.mean())
    torch.testing.assert_close(losses.distill["relation"], 0.3 * relation_loss(logits[:2], teacher, labelled).mean(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(distiller.student.head_losses, cluster.detach())


def test_the_best_head_is_that_of_the_smallest_sum_over_the_whole_training() -> None:
    distiller = discovery()
    first = distiller.losses(shown()), distiller.student.head_losses.clone()
    distiller.losses(shown())
    assert (distiller.student.head_losses > first[1]).all()
    before = distiller.student.head_losses.clone()
    distiller.eval()
    distiller.losses(shown())
    assert torch.equal(distiller.student.head_losses, before)
    distiller.student.head_losses.copy_(torch.tensor([2.0, 1.0]))
    best = distiller.student.best().eval()
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(best(images), distiller.student.eval()(images)[1])


def test_uno_does_not_ask_the_teacher() -> None:
    def asked(batch: Any) -> Tensor:
        raise AssertionError

    distiller = discovery(relation_weight=0.0)
    distiller.teacher = asked  # type: ignore[assignment]
    assert set(distiller.losses(shown()).terms) == {"cluster"}


def test_prototypes_have_unit_length_in_every_forward_and_are_free_after_a_step() -> None:
    distiller = discovery()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1.0)
    for _ in range(2):
        loss = distiller.losses(shown()).total
        for prototypes in (distiller.student.known, *[head.prototypes for head in distiller.student.novel]):  # type: ignore[union-attr]
            torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(len(prototypes.weight)))  # type: ignore[operator, union-attr, arg-type]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (distiller.student.known.weight.norm(dim=1) - 1).abs().max() > 1e-3


def test_the_teacher_is_as_the_pre_training_left_it() -> None:
    distiller, batch = discovery(), shown()
    before = distiller.teacher(batch.inputs)
    for _ in range(3):
        distiller.losses(batch).total.backward()
        torch.optim.SGD(distiller.parameters(), lr=0.5).step()
    assert torch.equal(distiller.teacher(batch.inputs), before)
    assert not any(name.startswith("teacher") for name in distiller.state_dict())


def test_frozen_layers_are_left_as_they_are_but_for_their_statistics() -> None:
    distiller = discovery(trained_layers=("1",))
    backbone = distiller.student.backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    distiller.losses(shown()).total.backward()
    torch.optim.SGD(distiller.parameter_groups(), lr=0.5).step()
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    with pytest.raises(InputError, match="trained_layers: got blocks"):
        train_only(backbone, ["blocks.11"], "trained_layers")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision(dtype: torch.dtype) -> None:
    distiller = discovery()
    with torch.autocast("cpu", dtype):
        losses = distiller.losses(shown())
    assert losses.total.dtype == torch.float32
    torch.testing.assert_close(losses.total, discovery().losses(shown()).total, rtol=0.05, atol=0)
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters())


@pytest.mark.parametrize("of", ["known", "novel", "one novel"])
def test_batches_of_one_kind(of: str) -> None:
    batch = shown()
    only = {"known": batch.labels % KNOWN, "novel": batch.labels * 0 + KNOWN, "one novel": torch.where(batch.ids == 0, KNOWN, 0)}[of]
    losses = discovery().losses(batch._replace(labels=only))
    assert losses.total.isfinite()
    assert (float(losses.distill["relation"].detach()) == 0) == (of == "known")


def test_a_batch_of_one_image_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size: got 1"):
        discovery().losses(shown(size=1))


def test_a_loop_of_one_s_own_lowers_the_loss() -> None:
    distiller = discovery()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9)
    totals = []
    for _ in range(40):
        loss = distiller.losses(shown()).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.8 * totals[0]


def test_pre_training_averages_over_all_views() -> None:
    distiller, batch = Pretraining(supervised()), shown((8, 8, 5))
    batch = batch._replace(labels=batch.labels % KNOWN)
    with torch.no_grad():
        distiller.student.known.weight *= 3
    loss = distiller.losses(batch).task["ce"]
    torch.testing.assert_close(distiller.student.known.weight.norm(dim=1), torch.ones(KNOWN))
    each = [nn.functional.cross_entropy(distiller.student(view), batch.labels) for view in batch.views]
    torch.testing.assert_close(loss, torch.stack(each).mean())


def test_the_papers_schedule_is_that_of_whole_epochs() -> None:
    distiller = discovery()
    distiller.plan = replace(SHORT, epochs=6, lr=0.2, warmup_epochs=2, lr_floor=0.01)
    optimizer = distiller.configure_optimizers()
    distiller.optimizers = lambda: optimizer  # type: ignore[method-assign, assignment]
    rates = []
    for epoch, step in itertools.product(range(1, 7), range(2)):
        distiller.progress = Progress(epoch, 6, 2 * (epoch - 1) + step, 2)
        distiller.on_train_batch_start(None, step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[::2] == rates[1::2]
    falling = [0.01 + 0.19 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert rates[::2] == pytest.approx([0.01, 0.2, *falling])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"relation_weight": -1.0}, "relation_weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"large_views": 0}, "large_views"),
        ({"large_views": 3}, "large_views"),
        ({"sinkhorn_epsilon": 0.0}, "sinkhorn_epsilon"),
        ({"sinkhorn_iterations": 0}, "sinkhorn_iterations"),
        ({"weighting": "none"}, "weighting"),
        ({"divergence": "mse"}, "divergence"),
    ],
)
def test_what_discovery_refuses(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: got"):
        discovery(**options).losses(shown())


# Evaluation, data, views ----------------------------------------------------------------------------------------------------------------


def test_the_evaluator_tells_the_sets_and_the_heads_apart() -> None:
    """Head 0 is right everywhere, head 1 swaps two novel classes on some images; the tracker prefers head 1."""
    evaluator = DiscoveryEvaluator(2, 8)
    truth = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 2, 2, 3, 3])  # 8 validation images, then 4 unlabelled training images
    answers = torch.stack([truth, truth.where(torch.arange(12) != 9, 3)])
    logits = nn.functional.one_hot(answers, 4).float()
    evaluator.reset()
    for part in (slice(0, 5), slice(5, 12)):
        batch = Batch(torch.zeros(0), truth[part], torch.arange(12)[part])
        evaluator.update(Answers(logits[:, part], torch.tensor([2.0, 1.0])), batch)
    figures = evaluator.compute()
    assert figures["aware"] == (100 + 75) / 2
    assert figures["aware_best"] == 75
    assert [figures[f"{protocol}_{split}"] for protocol in ("v2", "v3") for split in ("all", "known", "novel")] == [100] * 6
    details = evaluator.details()
    assert np.array_equal(details["predicted"], truth[:8])
    assert np.array_equal(details["ids"], np.arange(8))


def test_details_name_the_matched_class() -> None:
    evaluator = DiscoveryEvaluator(2, 4)
    swapped = torch.tensor([0, 1, 3, 2])
    logits = nn.functional.one_hot(torch.cat([swapped, torch.tensor([2])]), 4).float()[None]
    evaluator.update(Answers(logits, torch.zeros(1)), Batch(torch.zeros(0), torch.tensor([0, 1, 2, 3, 3]), torch.arange(5)))
    assert np.array_equal(evaluator.details()["predicted"], [0, 1, 2, 3])


@pytest.fixture(scope="module")
def pictures() -> NovelClassData:
    return NovelClassData("shapes,train=4,val=2", known_classes=36, batch_size=32)


def test_what_is_shown_in_training_and_in_evaluation(pictures: NovelClassData) -> None:
    assert pictures.labelled.sum() == 36 * 4
    assert pictures.clusters == 24
    batches = list(pictures.eval_loader())
    ids, truth = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("ids", "labels"))
    assert torch.equal(ids, torch.arange(120 + 24 * 4))
    assert (truth[120:] >= 36).all()
    images = torch.cat([batch.images for batch in batches])
    train = torch.cat([batch.images for batch in pictures.train_eval_loader()])
    assert torch.equal(images[120:], train[36 * 4 :])
    known = pictures.supervised()
    assert (known.num_classes, known.train_size, len(known.val_labels)) == (36, 144, 72)
    assert sum(len(batch.ids) for batch in known.eval_loader()) == 72
    assert known.evaluator().primary == "top1"
    assert known.describe()["classes"] == list(pictures.classes[:36])


def test_novel_classes_by_name_come_last(tmp_path: Path) -> None:
    folder = classes_of_pictures(tmp_path / "photos", ("ant", "bee", "cat", "dog"), count=5, size=(80, 70))
    data = NovelClassData(f"imagefolder:{folder}", known_classes=["dog", "cat"], image_size=16)
    assert data.classes == ("cat", "dog", "ant", "bee")
    assert data.known_count == 2
    assert {data.val_name(i).split("/")[-2] for i in np.flatnonzero(data.val_labels.numpy() == 3)} == {"bee"}
    batch = list(data.eval_loader())[-1]
    assert batch.images.shape[1:] == (3, 16, 16)
    assert data.fingerprint != NovelClassData(f"imagefolder:{folder}", known_classes=2, image_size=16).fingerprint
    for same in ("cat, dog", ["3", 2]):
        assert NovelClassData(f"imagefolder:{folder}", known_classes=same, image_size=16).fingerprint == data.fingerprint  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"known_classes": 0}, "known_classes: got 0, expected a number from 1 to 59"),
        ({"known_classes": 60}, "known_classes: got 60, expected a number from 1 to 59"),
        ({"known_classes": ["lime plain rung"]}, "known_classes: got lime plain rung, expected .*lime plain ring"),
        ({"known_classes": [*range(60)]}, "known_classes: .* expected 1 to 59 classes, each once"),
        ({"known_classes": ["lime plain ring", 0, "0"]}, "known_classes: .* expected 1 to 59 classes, each once"),
        ({"clusters": 0}, "clusters: got 0"),
    ],
)
def test_what_the_data_refuse(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        NovelClassData("shapes,train=1,val=1", **options)


def test_crops() -> None:
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    statistics = (0.5,) * 3, (0.25,) * 3
    sizes = [view(image).shape for view in crops("cifar", 32, *statistics, large=2, small=2)]
    assert sizes == [(3, 32, 32)] * 2 + [(3, 18, 18)] * 2
    photograph = Image.fromarray(np.zeros((90, 70), np.uint8))
    assert crops("photographs", 56, *statistics, large=2, small=0)[1](photograph).shape == (3, 56, 56)
    seen = torch.stack([crops("cifar", 32, *statistics, large=2, small=0)[0](image) for _ in range(100)])
    assert len(seen.flatten(1).unique(dim=0)) > 90
    assert seen.min() >= -2
    assert seen.max() <= 2


def test_small_crops_are_mirrored_shifted_and_noisy() -> None:
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    image[:, 5, 3] = 255
    view = crops("small", 16, (0.0,) * 3, (1.0,) * 3, large=2, small=0)[0]
    changed = view.batch(image.expand(500, -1, -1, -1), np.arange(500))  # type: ignore[union-attr]
    places = {(int(i) // 16, int(i) % 16) for i in changed.mean(1).flatten(1).argmax(1)}
    assert places == {(row, column) for row in (4, 5, 6) for column in (2, 3, 4, 11, 12, 13)}
    assert changed[:, :, 10:].std() == pytest.approx(0.08, rel=0.02)
    plain = crops("digits", 16, (0.0,) * 3, (1.0,) * 3, large=2, small=0)[0]
    changed = plain.batch(image.expand(200, -1, -1, -1), np.arange(200))  # type: ignore[union-attr]
    assert {int(i) % 16 for i in changed.mean(1).flatten(1).argmax(1)} == {2, 3, 4}


@pytest.mark.parametrize(
    ("style", "large", "small"), [("cifar", 1, 0), ("cifar", 0, 2), ("small", 2, 1), ("photographs", 2, -1), ("x", 2, 0)]
)
def test_crops_that_there_are_not(style: Any, large: int, small: int) -> None:
    with pytest.raises(InputError):
        crops(style, 32, (0.5,) * 3, (0.5,) * 3, large=large, small=small)


# Runs -----------------------------------------------------------------------------------------------------------------------------------

SMALL = ["--data", "shapes,train=4,val=2", "--batch-size", "48", "--epochs", "2", "--warmup-epochs", "1", "--teacher-epochs", "1"]
SMALL += ["--hidden", "16", "--projection", "8", "--student", "stillroom/convnet4", "--accelerator", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "crkd"
    assert main(["run", "crkd", *SMALL, "--known-classes", "40", "--out", str(out)]) == 0
    return out


def test_the_command_compares_uno_and_crkd_and_ships_a_network(finished: Path) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())
    assert list(metrics["stages"]) == ["uno", "crkd"]
    assert metrics["baseline"] == "uno"
    loaded = stillroom.load(finished)
    assert len(loaded.classes) == 60
    assert loaded.classes[40] == "novel 1"
    assert loaded.network(torch.zeros(2, 3, 16, 16)).shape == (2, 60)
    uno, crkd = (json.loads((finished / f"seed0/{arm}/stage.json").read_text())["result"] for arm in ("uno", "crkd"))
    assert set(crkd["history"][0]) - set(uno["history"][0]) == {"train/relation", "train/total"}
    assert crkd["model"].startswith("novel:stillroom/convnet4,known=40,hidden=16")


def test_discovery_trains_what_the_pre_training_left_alone(tmp_path: Path) -> None:
    layers = ["--teacher-trained-layers", "[layer4]"]
    assert main(["run", "crkd", *SMALL, *layers, "--known-classes", "40", "--out", str(tmp_path / "run")]) == 0
    before, after = (read_weights(tmp_path / f"run/seed0/{stage}") for stage in ("supervised", "crkd"))
    assert (before["backbone.layer1.conv.weight"] - after["backbone.layer1.conv.weight"]).abs().max() > 1e-4


def test_predict_and_export(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    assert main(["predict", str(finished), str(tmp_path / "grey.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["class"] in stillroom.load(finished).classes
    for kind in ("torch", "safetensors"):
        assert main(["export", str(finished), "--format", kind, "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--known-classes", "60"], "--known-classes: got 60"),
        (["--view-style", "cifr"], "--view-style: got cifr, expected one of"),
        (["--small-crops", "1"], "--small-crops: got 1, expected 0: small has no small crops"),
        (["--large-crops", "1"], "--large-crops: got 1, expected two or more views"),
        (["--trained-layers", "[layer9]"], "--trained-layers: got layer9, expected a module of the backbone"),
        (["--teacher-trained-layers", "[layer9]"], "--teacher-trained-layers: got layer9"),
        (["--novel-heads", "0"], "--novel-heads: got 0"),
        (["--warmup-epochs", "2"], "--warmup-epochs: got 2.0, expected fewer than the run's epochs (2)"),
        (["--warmup-epochs", "0.5"], "--warmup-epochs: got 0.5"),
        (["--teacher-epochs", "0"], "--teacher-epochs: got 0"),
        (["--temperature", "0"], "--temperature: got 0"),
        (["--cosine-temperature", "0"], "--cosine-temperature: got 0"),
        (["--known-classes", "lime plain ring,lime plain rung"], "--known-classes: got lime plain rung"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_trained(
    wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "crkd", *SMALL, *wrong, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*.ckpt"))


class Killed(Exception):
    """Stands for a kill."""


def trained(out: Path, data: NovelClassData, fall_at: int | None = None) -> dict[str, Tensor]:
    """The weights that a stage of discovery ends with."""

    class Falling(Discovery):
        def losses(self, batch: ViewBatch) -> Losses:
            if self.progress.step == fall_at:
                raise Killed
            return super().losses(batch)

    torch.manual_seed(1)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    taught = KnownClassifier(backbone, Prototypes(6, 36))
    student = DiscoveryNetwork(KnownClassifier(backbone, taught.known), 24, novel_heads=2, hidden=8, projection=5)
    shown_as = data.in_views(*crops("small", 16, data.mean, data.std, large=2, small=0), said="two")
    lab = Lab(LabOptions(out=out, accelerator="cpu", checkpoint_steps=2))
    plan = replace(SHORT, epochs=2, warmup_epochs=1, lr_floor=0.01)
    done = lab.fit(Falling(student, copy.deepcopy(taught)), shown_as, plan, name="crkd")
    assert done.network is not None
    return {name: value.clone() for name, value in done.network.state_dict().items()}


def test_killed_and_continued_equals_uninterrupted(pictures: NovelClassData, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", pictures)
    for fall_at in (3, 9):
        with pytest.raises(Killed):
            trained(tmp_path / str(fall_at), pictures, fall_at)
        again = trained(tmp_path / str(fall_at), pictures)
        assert all(torch.equal(whole[name], value) for name, value in again.items())


def test_two_processes_balance_their_pseudo_labels_together(tmp_path: Path, processes: Processes) -> None:
    first, second = processes.on_two_ranks(crkd_job.main, tmp_path / "run")
    for name, value in first["student"].items():
        if not name.endswith(("running_mean", "running_var")):  # each process's own until they are saved
            assert torch.equal(value, second["student"][name]), name
    assert first["student"]["head_losses"].min() > 0
    together = torch.cat([first["shares"], second["shares"]], dim=1)
    torch.testing.assert_close(together, first["at once"])
    assert (first["alone"] - first["shares"]).abs().max() > 1e-3


# The paper's settings -------------------------------------------------------------------------------------------------------------------

CIFAR = {
    "small_crops": 2,
    "novel_heads": 4,
    "optimizer": "sgd",
    "momentum": 0.9,
    "lr": 0.4,
    "lr_floor": 0.001,
    "warmup_epochs": 10,
    "epochs": 500,
}
CIFAR |= {"teacher_epochs": 500, "student": "stillroom/resnet18", "view_style": "cifar", "trained_layers": []}
VIT = {"small_crops": 0, "novel_heads": 2, "optimizer": "adamw", "lr": 1e-3, "lr_floor": 1e-4, "warmup_epochs": 10, "epochs": 100}
VIT |= {"step_per": "epoch", "teacher_epochs": 50, "teacher_lr": 1e-3, "teacher_warmup_epochs": 5, "trained_layers": ["blocks.11"]}
VIT |= {"teacher_trained_layers": ["blocks.11"], "student": "timm/vit_base_patch16_224.dino@pretrained", "view_style": "photographs"}
BOTH = {"large_crops": 2, "hidden": 2048, "projection": 256, "projection_layers": 1, "relation_weight": 0.1}
BOTH |= {"cosine_temperature": 0.1, "temperature": 4, "sinkhorn_iterations": 3, "sinkhorn_epsilon": 0.05}
BOTH |= {"weight_decay": 1.5e-4, "batch_size": 512, "precision": "16-mixed"}
BOTH |= {"weighting": "learnable", "divergence": "cross-entropy", "schedule": "cosine"}


@pytest.mark.parametrize(
    ("preset", "numbers"),
    [
        ("paper", {**CIFAR, "known_classes": 50}),
        ("paper:cifar100-80", {**CIFAR, "known_classes": 80}),
        ("paper:cifar10", {**CIFAR, "known_classes": 5}),
        ("paper:cub", {**VIT, "known_classes": 100}),
        ("paper:cars", {**VIT, "known_classes": 98}),
        ("paper:aircraft", {**VIT, "known_classes": 50}),
    ],
)
def test_the_numbers_are_the_papers(preset: str, numbers: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", "crkd", "--preset", preset, "--print_config"])
    assert not done.value.code
    values = yaml.safe_load(capsys.readouterr().out)
    expected = BOTH | numbers
    assert {name: values[name] for name in expected} == expected


def test_the_papers_networks_on_a_miniature_of_cifar100(tmp_path: Path) -> None:
    data = f"cifar100:{cifar100(tmp_path / 'data')}"
    small = [
        "--data",
        data,
        "--known-classes",
        "3",
        "--subset",
        "10",
        "--batch-size",
        "10",
        "--epochs",
        "1",
        "--warmup-epochs",
        "0",
        "--teacher-epochs",
        "1",
    ]
    small += ["--teacher-warmup-epochs", "0", "--precision", "32-true", "--workers", "0", "--accelerator", "cpu"]
    assert main(["run", "crkd", "--preset", "paper", *small, "--out", str(tmp_path / "run")]) == 0
    loaded = stillroom.load(tmp_path / "run")
    assert loaded.classes == ("apple", "baby", "bear", "novel 1", "novel 2")
    stage = json.loads((tmp_path / "run/seed0/crkd/stage.json").read_text())["result"]
    assert all(math.isfinite(value) for value in stage["metrics"].values())


def test_the_papers_transformer_in_small_on_photographs(tmp_path: Path) -> None:
    """A block of timm's smallest; the class token behind the last norm is what the heads read."""
    folder = classes_of_pictures(tmp_path / "photos", ("ant", "bee", "cat", "dog"), count=5, size=(60, 60))
    nets = tmp_path / "nets.py"
    nets.write_text(
        "from timm.models.vision_transformer import VisionTransformer\n"
        "def small(num_classes, image_size):\n"
        "    return VisionTransformer(image_size, 16, embed_dim=24, depth=2, num_heads=2, num_classes=num_classes)\n"
    )
    small = ["--data", f"imagefolder:{folder}", "--known-classes", "2", "--batch-size", "8", "--epochs", "1", "--warmup-epochs", "0"]
    small += ["--teacher-epochs", "1", "--teacher-warmup-epochs", "0", "--precision", "32-true", "--workers", "0", "--accelerator", "cpu"]
    small += [
        "--image-size",
        "32",
        "--student",
        f"{nets}:small",
        "--trained-layers",
        "[blocks.1]",
        "--teacher-trained-layers",
        "[blocks.1]",
    ]
    assert main(["run", "crkd", "--preset", "paper:cub", *small, "--out", str(tmp_path / "run")]) == 0
    assert stillroom.load(tmp_path / "run", trust_pickle=True).network(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
