"""MDCS: the two terms of its loss, its distiller, and what the Lab makes of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Lab, LabOptions, Losses, Progress, Training
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.mdcs import MDCS, LongTailedImages, build, mdcs_terms, prior_shift
from stillroom.tasks.classification import Batch, ViewBatch
from stillroom.tasks.images.networks import ExpertConvNet
from tests.methods import mdcs_job
from tests.processes import Processes

LAMBDAS = (-0.5, 1.0, 2.5)
COUNTS = [500, 120, 40, 12, 3]


# The loss ---------------------------------------------------------------------------------------------------------------------------------


def example(images: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2 * images, 3, 5, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, 5, (images,), generator=generator)


def by_hand(logits: Tensor, labels: Tensor, counts: list[int], lambdas: tuple[float, ...]) -> tuple[float, float]:
    """L_DL and L_CS as the specification writes them, image by image, in float64."""
    images, prior = len(labels), torch.tensor(counts, dtype=torch.float64)
    diversity = consistency = 0.0
    for expert, exponent in enumerate(lambdas):
        shifted = (logits[:, expert] + (prior**exponent + 1e-9).log()).log_softmax(-1)
        diversity -= sum(float(shifted[row, labels[row % images]]) for row in range(2 * images)) / (2 * images)
        taught = [i for i in range(images) if int(shifted[i].argmax()) == int(labels[i])]
        for i in taught:
            p, log_p, log_q = shifted[i].exp(), shifted[i], shifted[images + i]
            consistency += float((p * (log_p - log_q)).sum()) / len(taught)
    return diversity, consistency


@pytest.mark.parametrize("seed", range(5))
def test_terms_are_those_of_the_specification(seed: int) -> None:
    logits, labels = example(seed=seed)
    terms = mdcs_terms(logits, labels, prior_shift(COUNTS, LAMBDAS))
    diversity, consistency = by_hand(logits.detach(), labels, COUNTS, LAMBDAS)
    assert terms.diversity.item() == pytest.approx(diversity, rel=1e-6)
    assert terms.consistency.item() == pytest.approx(consistency, rel=1e-6)


def test_exponents_of_zero_are_cross_entropy_on_both_views_for_every_expert() -> None:
    logits, labels = example()
    terms = mdcs_terms(logits, labels, prior_shift(COUNTS, (0.0, 0.0, 0.0)))
    expected = sum(cross_entropy(logits[:, expert], labels.repeat(2)) for expert in range(3))
    torch.testing.assert_close(terms.diversity, expected, rtol=1e-7, atol=1e-7)


@given(seed=st.integers(0, 1000), factor=st.integers(2, 50), constant=st.floats(-20, 20))
@settings(max_examples=25, deadline=None)
def test_only_ratios_of_counts_and_differences_of_logits_matter(seed: int, factor: int, constant: float) -> None:
    logits, labels = example(seed=seed)
    terms = mdcs_terms(logits, labels, prior_shift(COUNTS, LAMBDAS))
    other = mdcs_terms(logits + constant, labels, prior_shift([factor * count for count in COUNTS], LAMBDAS))
    torch.testing.assert_close(other.diversity, terms.diversity, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other.consistency, terms.consistency, rtol=1e-4, atol=1e-4)
    assert torch.equal(other.confident_BE, terms.confident_BE)


@given(seed=st.integers(0, 1000), confident_only=st.booleans())
@settings(max_examples=25, deadline=None)
def test_consistency_teaches_the_strong_views_of_confident_images_and_nobody_else(seed: int, confident_only: bool) -> None:
    logits, labels = example(seed=seed)
    terms = mdcs_terms(logits, labels, prior_shift(COUNTS, LAMBDAS), confident_only=confident_only)
    assert terms.consistency >= 0
    (gradient,) = torch.autograd.grad(terms.consistency, logits)
    assert not gradient[:6].any()
    taught = terms.confident_BE if confident_only else torch.ones_like(terms.confident_BE)
    assert torch.equal(gradient[6:].abs().sum(-1) > 0, taught)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(12, 3, dtype=torch.float64))


def test_equal_views_are_consistent() -> None:
    logits, labels = example()
    assert mdcs_terms(logits[:6].repeat(2, 1, 1), labels, prior_shift(COUNTS, LAMBDAS)).consistency.abs() < 1e-12


@pytest.mark.parametrize("images", [1, 4])
def test_without_a_confident_image_consistency_is_exactly_zero(images: int) -> None:
    labels = torch.arange(images)
    logits = -30 * nn.functional.one_hot(labels, 5).float().repeat(2, 1)[:, None].expand(-1, 3, -1).clone()
    logits.requires_grad_()
    terms = mdcs_terms(logits, labels, prior_shift(COUNTS, LAMBDAS))
    assert terms.consistency.item() == 0.0
    assert not terms.confident_BE.any()
    (gradient,) = torch.autograd.grad(terms.consistency, logits, retain_graph=True)
    assert not gradient.any()
    terms.diversity.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_an_image_can_be_confident_for_one_expert_alone_and_each_has_its_own_mean() -> None:
    logits = torch.zeros(4, 2, 3)
    logits[0, 0, 1] = logits[1, 0, 2] = logits[0, 1, 1] = 5.0  # expert 0 is right twice, expert 1 once
    logits[1, 1, 0] = 5.0
    terms = mdcs_terms(logits, torch.tensor([1, 2]), torch.zeros(2, 3))
    assert terms.confident_BE.tolist() == [[True, True], [True, False]]
    one = nn.functional.kl_div(torch.full((3,), 1 / 3).log(), torch.tensor([0.0, 5.0, 0.0]).softmax(0), reduction="sum")
    torch.testing.assert_close(terms.consistency, 2 * one)


def test_a_tie_belongs_to_the_first_class() -> None:
    terms = mdcs_terms(torch.zeros(4, 1, 3), torch.tensor([0, 1]), torch.zeros(1, 3))
    assert terms.confident_BE.tolist() == [[True], [False]]


def test_the_shift_is_formed_in_float32_under_reduced_precision() -> None:
    logits, labels = example()
    shift = prior_shift([1_000_000, 1000, 100, 10, 1], LAMBDAS)  # up to 34.5, where bfloat16 counts in quarters
    half = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = mdcs_terms(half, labels, shift)
    expected = mdcs_terms(half.double(), labels, shift)
    assert terms.diversity.dtype == terms.consistency.dtype == torch.float32
    torch.testing.assert_close(terms.diversity.double(), expected.diversity, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms.consistency.double(), expected.consistency, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("counts", [[5, 0, 3], [5, -1, 3], [5], [[5, 3], [1, 2]]])
def test_class_counts_that_have_no_logarithm_are_refused(counts: Any) -> None:
    with pytest.raises(InputError, match="class_counts"):
        prior_shift(counts, LAMBDAS)


@pytest.mark.parametrize("lambdas", [(), (1.0, math.nan), (200.0,)])
def test_exponents_must_keep_the_shift_finite(lambdas: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="lambdas"):
        prior_shift(COUNTS, lambdas)


@pytest.mark.parametrize(
    ("logits", "labels", "named"),
    [
        (torch.zeros(5, 3, 5), torch.zeros(2, dtype=torch.int64), "logits_NEC"),
        (torch.zeros(0, 3, 5), torch.zeros(0, dtype=torch.int64), "logits_NEC"),
        (torch.zeros(4, 2, 5), torch.zeros(2, dtype=torch.int64), "2 experts and 5 classes, expected 3 and 5"),
        (torch.zeros(4, 3, 4), torch.zeros(2, dtype=torch.int64), "3 experts and 4 classes"),
        (torch.zeros(4, 3, 5), torch.tensor([0, 1, 0, 2]), "labels_B"),  # a label for each view might differ between them
        (torch.zeros(4, 3, 5), torch.tensor([0.0, 1.0]), "labels_B"),
        (torch.zeros(4, 3, 5), torch.tensor([0, 5]), "labels from 0 to 5, expected labels from 0 to 4"),
        (torch.zeros(4, 3, 5), torch.tensor([-1, 1]), "labels_B"),
    ],
)
def test_shapes_and_labels_that_do_not_belong_together_are_refused(logits: Tensor, labels: Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        mdcs_terms(logits, labels, prior_shift(COUNTS, LAMBDAS))


# The distiller ----------------------------------------------------------------------------------------------------------------------------


def student(seed: int = 5, classes: int = 10) -> ExpertConvNet:
    torch.manual_seed(seed)
    return ExpertConvNet(num_classes=classes)


def views(images: int = 6, classes: int = 10) -> ViewBatch:
    generator = torch.Generator().manual_seed(1)
    weak, strong = torch.randn(2, images, 3, 8, 8, generator=generator)
    return ViewBatch((weak, strong), torch.arange(images) % classes, torch.arange(images))


def test_losses_are_the_terms_of_one_forward_over_both_views() -> None:
    network, batch, counts = student(), views(), torch.arange(10, 0, -1)
    distiller = MDCS(network, class_counts=counts, ramp_epochs=20)
    distiller.progress = Progress(epoch=5, epochs=100)
    losses = distiller.losses(batch)
    expected = mdcs_terms(student().experts(torch.cat(batch.views)), batch.labels, prior_shift(counts, LAMBDAS))
    torch.testing.assert_close(losses.task["diversity"], expected.diversity)
    torch.testing.assert_close(losses.distill["consistency"], 0.6 * 5 / 20 * expected.consistency)


@pytest.mark.parametrize(("epoch", "ramp", "factor"), [(1, 20, 0.05), (20, 20, 1.0), (33, 20, 1.0), (1, 0, 1.0)])
def test_the_ramp_counts_epochs_from_one(epoch: int, ramp: float, factor: float) -> None:
    distiller = MDCS(student(), class_counts=[1] * 10, ramp_epochs=ramp, consistency_weight=2.0)
    distiller.progress = Progress(epoch=epoch, epochs=400)
    full = MDCS(student(), class_counts=[1] * 10, ramp_epochs=0, consistency_weight=1.0)
    torch.testing.assert_close(distiller.losses(views()).distill["consistency"], 2 * factor * full.losses(views()).distill["consistency"])


def test_a_weight_of_zero_leaves_the_consistency_out() -> None:
    losses = MDCS(student(), class_counts=[1] * 10, consistency_weight=0).losses(views())
    assert set(losses.terms) == {"diversity"}


def test_one_image_is_a_batch() -> None:
    losses = MDCS(student(), class_counts=[1] * 10).losses(views(1))
    losses.total.backward()
    assert losses.total.isfinite()


def test_the_student_needs_experts_and_the_batch_two_views() -> None:
    with pytest.raises(InputError, match=r"student: got Linear, expected a network of experts"):
        MDCS(nn.Linear(2, 2), class_counts=[1, 1])
    batch = views()
    with pytest.raises(InputError, match="a ViewBatch of a weak and a strong view"):
        MDCS(student(), class_counts=[1] * 10).losses(Batch(batch.views[0], batch.labels, batch.ids))  # type: ignore[arg-type]


@pytest.mark.parametrize("option", [{"consistency_weight": -1}, {"ramp_epochs": -1}, {"temperature": 0}, {"backbone_lr": -0.1}])
def test_numbers_out_of_range_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        MDCS(student(), class_counts=[1] * 10, **option)


def test_the_backbone_can_have_a_rate_of_its_own() -> None:
    distiller = MDCS(student(), class_counts=[1] * 10, backbone_lr=0.001)
    distiller.plan = Training(lr=0.01)
    optimizer = distiller.configure_optimizers()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(distiller.student.named_parameters())
    assert {name for name, p in named.items() if rates[id(p)] == 0.01} == {f"heads.{e}.weight" for e in range(3)}
    assert {rates[id(p)] for name, p in named.items() if not name.startswith("heads")} == {0.001}


# In the Lab -------------------------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill."""


class FallingMDCS(MDCS):
    """MDCS that is killed before a step of the tests' choosing."""

    fall_at: int | None = None

    def losses(self, batch: ViewBatch) -> Losses:
        if self.progress.step == type(self).fall_at:
            raise Killed
        return super().losses(batch)


PLAN = Training(epochs=4, lr=0.1, nesterov=True, schedule="cosine", warmup_epochs=2, step_per="epoch")


def run(out: Path, data: LongTailedImages) -> tuple[dict[str, Any], dict[str, Tensor]]:
    network = nn.Sequential(nn.Dropout2d(0.2), student())  # dropout: the step's own randomness must be replayed too
    network.experts = lambda images: network[1].experts(network[0](images))  # type: ignore[assignment]
    distiller = FallingMDCS(network, class_counts=data.class_counts, ramp_epochs=3)
    trained = Lab(LabOptions(out=out, checkpoint_steps=2, accelerator="cpu")).fit(
        distiller, distiller.training_data(data), PLAN, name="distilled"
    )
    record = json.loads((trained.folder / "stage.json").read_text())["result"]
    for line in record["history"]:
        del line["seconds"], line["samples_per_second"]
    return {key: record[key] for key in ("metrics", "best", "history", "epochs")}, read_weights(trained.folder)


@pytest.fixture(scope="module")
def tail() -> LongTailedImages:
    return LongTailedImages("digits,imbalance=exp:8", subset=300, val_subset=60, batch_size=24)


def test_killed_run_ends_with_the_same_numbers(tmp_path: Path, tail: LongTailedImages, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, expected_weights = run(tmp_path / "whole", tail)
    steps = len(tail.train_loader(seed=0))
    for step in (3, steps, 2 * steps + 3):
        monkeypatch.setattr(FallingMDCS, "fall_at", step)
        with pytest.raises(Killed):
            run(tmp_path / "killed", tail)
    monkeypatch.setattr(FallingMDCS, "fall_at", None)
    record, weights = run(tmp_path / "killed", tail)
    assert record == expected
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)
    # a step of the learning rate for each epoch: warm-up to the full rate in two, then the cosine's third of the way
    assert [row["lr"] for row in record["history"]] == pytest.approx([0.05, 0.1, 0.1, 0.05])
    assert {"val/medium", "val/few"} <= record["history"][0].keys()


def test_two_processes_equal_one(tmp_path: Path, processes: Processes) -> None:
    """Where all instances teach; with confident ones each process has a mean over its own, which the specification accepts."""
    mdcs_job.main(tmp_path / "1", 1)
    processes.on_two_ranks(mdcs_job.main, tmp_path / "2", 2)
    one, two = (read_weights(tmp_path / devices / "seed0/distilled") for devices in ("1", "2"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


def test_build_hands_on_every_option(tail: LongTailedImages) -> None:
    made = build(
        student(), None, tail, lambdas=(0.0, 0.0, 0.0), consistency_weight=0.5, ramp_epochs=3, confident_only=False, view_style="cifar"
    )
    assert (made.lambdas, made.consistency_weight, made.ramp_epochs, made.confident_only, made.view_style) == (
        (0.0,) * 3,
        0.5,
        3,
        False,
        "cifar",
    )
    torch.testing.assert_close(made.shift_EC, torch.zeros(3, 10))
