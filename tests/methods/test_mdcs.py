"""MDCS: the two terms, the two views, the groups of classes, and what the Lab and the command line make of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import stillroom
from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Losses, Progress, Training
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.mdcs import MDCS, PRESETS, LongTailedImages, build, mdcs_terms, prior_shift, shot_groups, two_views
from stillroom.methods.mdcs.measures import bias_and_variance, expert_divergence
from stillroom.tasks.classification import Batch, ViewBatch
from stillroom.tasks.classification.networks import ExpertConvNet, ExpertNetwork
from stillroom.tasks.classification.transforms import Transform
from tests.engine.test_distributed import environment
from tests.methods import mdcs_job
from tests.tasks.classification.miniatures import cifar100

LAMBDAS = (-0.5, 1.0, 2.5)
COUNTS = [500, 120, 40, 12, 3]
STATISTICS = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


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
    distiller = MDCS(student(), class_counts=[1] * 10, ramp_epochs=ramp, weight=2.0)
    distiller.progress = Progress(epoch=epoch, epochs=400)
    full = MDCS(student(), class_counts=[1] * 10, ramp_epochs=0, weight=1.0)
    torch.testing.assert_close(distiller.losses(views()).distill["consistency"], 2 * factor * full.losses(views()).distill["consistency"])


def test_a_weight_of_zero_leaves_the_consistency_out() -> None:
    losses = MDCS(student(), class_counts=[1] * 10, weight=0).losses(views())
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


@pytest.mark.parametrize("option", [{"weight": -1}, {"ramp_epochs": -1}, {"temperature": 0}, {"backbone_lr": -0.1}])
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


# Views ------------------------------------------------------------------------------------------------------------------------------------


def pixels(count: int = 50, size: int = 16) -> Tensor:
    return torch.randint(1, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def small_views(**options: Any) -> tuple[Transform, Transform]:
    weak, strong = two_views("small", 16, *STATISTICS, **options)
    assert isinstance(weak, Transform)
    assert isinstance(strong, Transform)
    return weak, strong


def test_small_views_depend_on_each_images_seed_alone() -> None:
    for view in small_views():
        every = view.batch(pixels(), np.arange(50))
        assert torch.equal(every[7:9], view.batch(pixels()[7:9], np.array([7, 8])))
        assert not torch.equal(every, view.batch(pixels(), np.arange(50) + 1))


def test_a_weak_view_is_a_crop_of_the_reflected_image() -> None:
    image = pixels(1)
    reflected = nn.functional.pad(image.float() / 255, (2, 2, 2, 2), mode="reflect")
    crops = {tuple(reflected[0, :, i : i + 16, j : j + 16].flatten().tolist()) for i in range(5) for j in range(5)}
    seen = {tuple(view.flatten().tolist()) for view in small_views(mirror=False)[0].batch(image.expand(400, -1, -1, -1), np.arange(400))}
    assert seen == crops
    mirrored = small_views()[0].batch(image.expand(100, -1, -1, -1), np.arange(100)).flip(-1)
    assert any(tuple(view.flatten().tolist()) in crops for view in mirrored)


def test_a_strong_view_has_a_black_square_colours_and_sometimes_none() -> None:
    shown = small_views()[1].batch(pixels(200), np.arange(200))
    black = (shown == 0).all(1)
    sizes = black.flatten(1).sum(1)
    assert sizes.max() == 64  # 8 x 8 where it lies inside
    assert sizes.min() >= 16  # a corner of it at the least
    assert shown.max() <= 1
    assert shown.min() >= 0
    grey = ((shown[:, 0] == shown[:, 1]) & (shown[:, 1] == shown[:, 2])).flatten(1).all(1)
    assert 0.1 < grey.float().mean() < 0.3


@pytest.mark.parametrize(("style", "size"), [("cifar", 32), ("imagenet", 48)])
def test_the_papers_views_read_files_and_tensors(style: Any, size: int) -> None:
    for view in two_views(style, size, *STATISTICS):
        assert not isinstance(view, Transform)
        for picture in (pixels(1, 40)[0], Image.effect_noise((70, 60), 80).convert("RGB")):
            first, again = (_seeded(view, picture) for _ in range(2))
            assert type(first) is Tensor
            assert first.shape == (3, size, size)
            assert first.dtype == torch.float32
            assert torch.equal(first, again)
    with pytest.raises(InputError, match="views"):
        two_views("imagnet", 32, *STATISTICS)  # type: ignore[arg-type]


def _seeded(view: Any, picture: Any) -> Tensor:
    from stillroom.engine.loading import kept_generators, seed_generators

    with kept_generators():
        seed_generators(3)
        shown: Tensor = view(picture)
        return shown


def test_the_papers_strong_view_of_small_images_has_a_hole_before_it_is_normalised() -> None:
    _, strong = two_views("cifar", 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    shown = torch.stack([strong(torch.full((3, 32, 32), 255, dtype=torch.uint8)) for _ in range(10)])  # type: ignore[operator]
    assert (shown == -1).all(1).flatten(1).sum(1).min() >= 64  # black, that is -1


# Groups of classes, and how experts and runs differ ------------------------------------------------------------------------------------


def test_groups_of_classes_by_their_training_images() -> None:
    groups = shot_groups([500, 101, 100, 20, 19, 1])
    assert {name: mask.tolist() for name, mask in groups.items()} == {
        "many": [True, True, False, False, False, False],
        "medium": [False, False, True, True, False, False],
        "few": [False, False, False, False, True, True],
    }
    assert set(shot_groups([500, 1])) == {"many", "few"}
    assert set(shot_groups([5, 1], few_below=2, many_above=1)) == {"many", "few"}
    with pytest.raises(InputError, match="few_below"):
        shot_groups([5, 1], few_below=5, many_above=3)


def test_long_tailed_images_are_scored_by_group_and_are_other_data_with_other_limits() -> None:
    data = LongTailedImages(few_below=5, many_above=50)
    assert data.class_counts.tolist()[-1] == 3
    evaluator = data.evaluator()
    evaluator.update(torch.eye(10), ViewBatch((torch.empty(10),), torch.arange(10), torch.arange(10)))
    assert {name: evaluator.compute()[name] for name in ("many", "medium", "few")} == dict.fromkeys(("many", "medium", "few"), 100)
    assert LongTailedImages(few_below=6, many_above=50).fingerprint != data.fingerprint
    with pytest.raises(InputError, match="few_below"):
        LongTailedImages(few_below=50, many_above=20)


def test_divergence_of_experts() -> None:
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    expected = sum((p[:, i] * (p[:, i].log() - p[:, j].log())).sum(-1) for i, j in pairs) / 6
    torch.testing.assert_close(expert_divergence(logits), expected)
    assert expert_divergence(logits[:, :1].expand(-1, 3, -1)).abs().max() < 1e-6
    with pytest.raises(InputError, match="two experts"):
        expert_divergence(logits[:, :1])


def test_bias_and_variance_of_runs() -> None:
    predicted = np.array([[0, 1, 2, 0], [0, 1, 1, 1], [0, 2, 1, 2]])
    bias, variance = bias_and_variance(predicted, np.array([0, 1, 2, 0]))
    assert bias == 25  # the majority says 0, 1, 1, 0
    assert variance.tolist() == [25, 25, 50]
    with pytest.raises(InputError, match="at least two"):
        bias_and_variance(predicted[:1], np.array([0, 1, 2, 0]))


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


PLAN = Training(epochs=4, lr=0.1, nesterov=True, schedule="cosine", warmup_epochs=2)


def run(out: Path, data: LongTailedImages) -> tuple[dict[str, Any], dict[str, Tensor]]:
    network = nn.Sequential(nn.Dropout2d(0.2), student())  # dropout: the step's own randomness must be replayed too
    network.experts = lambda images: network[1].experts(network[0](images))  # type: ignore[assignment]
    distiller = FallingMDCS(network, class_counts=data.class_counts, ramp_epochs=3)
    trained = Lab(LabOptions(out=out, checkpoint_steps=2, accelerator="cpu")).fit(distiller, distiller.shown(data), PLAN, name="distilled")
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


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Where all instances teach; with confident ones each process has a mean over its own, which the specification accepts."""
    mdcs_job.main(str(tmp_path / "1"), 1)
    command = [sys.executable, mdcs_job.__file__, str(tmp_path / "2"), "2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_weights(tmp_path / devices / "seed0/distilled") for devices in ("1", "2"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


# From the command line --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is not what is tested here."""
    for limit in ("_WARM_UP_SECONDS", "_TIMED_SECONDS"):
        monkeypatch.setattr(f"stillroom.engine.measure.{limit}", 0.0)


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
        "from stillroom.tasks.classification.networks import ExpertNetwork\n"
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
    assert stillroom.load(tmp_path / "run").network(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--student", "stillroom/convnet4"], "student: got ConvNet, expected a network of experts"),
        (["--lambdas", "[0,1]"], "lambdas: got [0.0, 1.0], expected one number for each of the student's 3 experts"),
        (["--weight", "-1"], "weight: got -1.0, expected a finite number of at least 0"),
        (["--temperature", "0"], "temperature: got 0.0, expected a finite number above 0"),
        (["--few-below", "300"], "few_below: got 300, expected a number from 0 to 101"),
        (["--data", "digits,imbalance=exp:5000"], "imbalance: got exp:5000, expected a ratio of at most"),
        (["--pretrained", "resnet.pth"], "student: got stillroom/convnet_experts, expected a ResNet for photographs"),
        (["--pretrained", "none.pth", "--student", "stillroom/resnet50_experts"], "pretrained: got 'none.pth', which does not exist"),
        (["--views", "cifr"], "views: got cifr, expected one of small, cifar, imagenet"),
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

SHARED = {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "lambdas": [-0.5, 1.0, 2.5], "weight": 0.6, "temperature": 1.0}
SHARED |= {"ramp_epochs": 20, "confident_only": True, "decay": 0.1}
CIFAR = {"student": "stillroom/resnet32_experts", "batch_size": 64, "lr": 0.1, "weight_decay": 5e-4, "epochs": 400, "views": "cifar"}
CIFAR |= {"schedule": "multistep", "warmup_epochs": 20, "milestones": [200, 320, 380], "std": [0.2023, 0.1994, 0.201]}
IMAGENET = {"student": "stillroom/resnet50_experts", "image_size": 224, "views": "imagenet", "epochs": 400, "backbone_lr": None}
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
        "from stillroom.tasks.classification.networks import ExpertBottleneckResNet\n"
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


def test_build_hands_on_every_option(tail: LongTailedImages) -> None:
    made = build(student(), None, tail, lambdas=(0.0, 0.0, 0.0), weight=0.5, ramp_epochs=3, confident_only=False, views="cifar")
    assert (made.lambdas, made.weight, made.ramp_epochs, made.confident_only, made.views) == ((0.0,) * 3, 0.5, 3, False, "cifar")
    torch.testing.assert_close(made.shift_EC, torch.zeros(3, 10))
