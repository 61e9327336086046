"""SSD-Det: what its parts must do in exact form, its edge cases, and runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Losses, Training
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.ssd_det.bags import check_boxes, decode, encode, neighbourhood
from stillroom.methods.ssd_det.distiller import Plain, SSDDet, refine_all
from stillroom.methods.ssd_det.mil import identity_scores, merged
from stillroom.methods.ssd_det.noise import add_noise, noised
from stillroom.methods.ssd_det.pages import mistakes
from stillroom.methods.ssd_det.recipe import PRESETS
from stillroom.methods.ssd_det.refiner import Refined, Refiner
from stillroom.tasks.detection import DetectionBatch, DetectionData, build_detector
from tests.methods.ssd_det_job import train
from tests.processes import Processes
from tests.tasks.detection.boxed import coco, pictures

TINY = "scenes:train=24,val=8,teacher=24"
SMALL: dict[str, Any] = {"ratios": (1.0, 0.8), "negative_boxes": 12}


@pytest.fixture(scope="module")
def data() -> DetectionData:
    return DetectionData(TINY, batch_size=8)


def distiller(**options: Any) -> SSDDet:
    torch.manual_seed(3)
    return SSDDet(build_detector("stillroom/faster-rcnn_24", num_classes=6).network, **{**SMALL, **options})


def batch_of(data: DetectionData) -> DetectionBatch:
    batch: DetectionBatch = next(iter(data.train_loader(seed=0)))
    return batch


def without_boxes(batch: DetectionBatch, *images: int) -> DetectionBatch:
    changed = {name: list(getattr(batch, name)) for name in ("boxes", "labels", "crowd")}
    for column in changed.values():
        for image in images:
            column[image] = column[image][:0]
    return batch._replace(**changed)


# Parts ----------------------------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 300))
def test_decoding_undoes_encoding(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, 3, 5, 2, generator=random) * 40
    proposals, boxes = (torch.cat((c, c + 1 + torch.rand(3, 5, 2, generator=random) * 30), -1) for c in corners)
    torch.testing.assert_close(decode(proposals, encode(proposals, boxes[:, 0])), boxes[:, :1].expand(3, 5, 4), rtol=1e-4, atol=1e-3)


def test_overflowing_deltas_stay_finite() -> None:
    decoded = decode(torch.tensor([[[0.0, 0, 10, 10]]]), torch.full((1, 1, 4), 1e4))
    assert decoded.isfinite().all()
    assert float(decoded[0, 0, 2] - decoded[0, 0, 0]) == pytest.approx(625, rel=1e-4)


def test_a_bag_merges_into_what_its_best_proposals_are() -> None:
    bags = torch.arange(12.0).view(1, 3, 4)
    torch.testing.assert_close(
        merged(bags, torch.tensor([[0.2, 0.0, 0.6]]), top=2), 0.25 * bags[:, 0] + 0.75 * bags[:, 2], rtol=0, atol=1e-5
    )
    torch.testing.assert_close(merged(bags, torch.zeros(1, 3), top=9), bags.mean(1))  # no score, and more asked for than there are


def test_identical_predictions_choose_nobody() -> None:
    assert identity_scores(torch.full((2, 4), 0.3)).eq(1).all()
    assert identity_scores(torch.tensor([[-3.0], [2.0]])).eq(1).all()  # a bag of one
    assert identity_scores(torch.tensor([[0.1, 0.4, 0.25]])).tolist() == [[0.0, 1.0, pytest.approx(0.5)]]


def test_a_line_for_a_box_makes_a_bag_of_boxes() -> None:
    bags = neighbourhood(torch.tensor([[5.0, 5, 5.2, 9]]), (1.0, 0.8), (0.2,))
    assert bags.shape == (1, 20, 4)
    assert float((bags[..., 2] - bags[..., 0]).min()) == pytest.approx(0.8)
    assert encode(bags, torch.tensor([[5.0, 5, 6, 9]])).isfinite().all()


def test_noise_is_drawn_in_order_keeps_what_it_would_destroy_and_leaves_crowds(data: DetectionData) -> None:
    boxes = np.array([[2, 2, 12, 12], [3, 3, 4.2, 9], [0, 0, 20, 20]], np.float64)
    noisy, kept = add_noise(boxes, np.full((3, 2), 24.0), 0.4, 1)
    u = np.random.RandomState(1).uniform(-1, 1, 12)[:4]
    centre, side = 7 + 4 * u[:2], 10 * (1 + 0.4 * u[2:])
    np.testing.assert_allclose(noisy[0], np.clip(np.concatenate((centre - side / 2, centre + side / 2)), 0, 23))
    assert (noisy[:, 2:] - noisy[:, :2]).min() >= 1
    np.testing.assert_array_equal(noisy[kept], boxes[kept])
    assert noisy.max() <= 23
    trained = data.trained
    trained.crowd[0][:] = 1
    try:
        moved = noised(trained, 0.4)
        np.testing.assert_array_equal(moved.boxes[0], trained.boxes[0])
        assert all((a != b).any() for a, b in zip(moved.boxes[1:], trained.boxes[1:], strict=True))
    finally:
        trained.crowd[0][:] = 0


def test_mistakes_are_told_apart() -> None:
    true = np.array([[0, 0, 10, 10], [12, 0, 22, 10], [0, 20, 10, 30], [0, 0, 10, 10]], np.float32)
    boxes = np.array([[11, 0, 21, 10], [0, 0, 22, 10], [2, 21, 6, 25], [0, 0, 10, 9]], np.float32)  # drift, group, part, good
    assert mistakes(boxes, true, np.array([3, 3, 3, 4])) == {"drift": 25.0, "group": 25.0, "part": 25.0}


# One step -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"spsd_input": "resample"}, {"spsd": False, "sisd_score": "cls_ins"}, {"sisd": False}, {"mil": False}]
)
def test_all_that_learns_gets_a_gradient(data: DetectionData, options: dict[str, Any]) -> None:
    made = distiller(**options).train()
    losses = made.losses(batch_of(data))
    losses.total.backward()
    assert losses.total.isfinite()
    silent = [name for name, parameter in made.named_parameters() if parameter.grad is None or not parameter.grad.isfinite().all()]
    assert not silent


def test_the_detector_learns_the_refined_boxes_and_no_others(data: DetectionData, monkeypatch: pytest.MonkeyPatch) -> None:
    made, batch = distiller().train(), batch_of(data)
    boxes, labels = batch.objects()
    moved = torch.cat(boxes) + 1.5
    moved[0] = torch.tensor([-30.0, -30, -20, -20])  # outside: dropped with its label
    moved[-1, 2:] = 500  # cut at the image
    count = torch.ones(len(moved))
    monkeypatch.setattr(
        made.refiner, "forward", lambda *_, **__: Refined(moved, count, moved, count, (moved, moved), {"mil1": moved.sum()})
    )
    told: list[Any] = []
    monkeypatch.setattr(
        made.student, "targets", lambda outputs, b, y: told.append((b, y)) or type(made.student).targets(made.student, outputs, b, y)
    )
    losses = made.losses(batch)
    used, named = told[0]
    assert [len(b) for b in used] == [len(y) for y in named] == [len(boxes[0]) - 1, *(len(b) for b in boxes[1:])]
    torch.testing.assert_close(named[0], labels[0][1:])
    torch.testing.assert_close(used[1], (boxes[1] + 1.5).clamp(0, 48))
    assert used[-1][-1, 2:].tolist() == [48, 48]
    assert set(losses.task) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    assert set(losses.distill) == {"mil1"}


def test_an_image_without_an_object_has_no_part_in_refining(data: DetectionData) -> None:
    made, batch = distiller().eval(), without_boxes(batch_of(data), 2, 5)
    outputs = made.student.raw(batch.images, batch.sizes)
    boxes, labels = batch.objects()
    features, kept = outputs.features, [0, 1, 3, 4, 6, 7]
    both = made.refiner.train()
    uniforms = torch.rand(8, 4, 12)
    whole = both(features, made.student.strides, boxes, labels, batch.sizes, uniforms_B4Q=uniforms)
    some = both(
        [level[kept] for level in features],
        made.student.strides,
        [boxes[image] for image in kept],
        [labels[image] for image in kept],
        batch.sizes[kept],
        uniforms_B4Q=uniforms[kept],
    )
    torch.testing.assert_close(whole.boxes, some.boxes)
    for name, loss in whole.losses.items():
        torch.testing.assert_close(loss, some.losses[name], msg=name)


def test_a_batch_without_an_object_trains_the_background(data: DetectionData) -> None:
    made = distiller().train()
    losses = made.losses(without_boxes(batch_of(data), *range(8)))
    assert all(float(loss.detach()) == 0 and loss.requires_grad for loss in losses.distill.values())
    assert float(losses.task["loss_objectness"].detach()) > 0
    losses.total.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in made.parameters())


def test_reduced_precision_does_not_reach_boxes_and_probabilities(data: DetectionData) -> None:
    made, batch = distiller().eval(), batch_of(data)
    boxes, labels = batch.objects()
    features = [level.detach() for level in made.student.raw(batch.images, batch.sizes).features]
    full = made.refiner(features, made.student.strides, boxes, labels, batch.sizes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = made.refiner(features, made.student.strides, boxes, labels, batch.sizes)
        losses = distiller().train().losses(batch)
    assert half.boxes.dtype == half.scores.dtype == torch.float32
    torch.testing.assert_close(half.bags[0], full.bags[0], rtol=0, atol=0.05)  # of 48 pixels, where bfloat16 knows quarters
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.terms.values())


def test_the_same_box_in_two_bags_gets_two_overlaps(data: DetectionData) -> None:
    made = Refiner(2, 3, size=3, hidden=8)
    regions = torch.randn(2, 4, 2, 3, 3)
    regions[1, 0] = regions[0, 0]
    from stillroom.methods.ssd_det.refiner import predicted_overlaps

    found = predicted_overlaps(regions, made.identity, made.overlap)
    assert float((found[0, 0] - found[1, 0]).detach().abs()) > 1e-7


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: SSDDet(build_detector("stillroom/gfl_24", num_classes=6).network), "Faster R-CNN"),
        (lambda: distiller(top_boxes=0), "top_boxes"),
        (lambda: distiller(negative_boxes=0), "negative_boxes"),
        (lambda: distiller(ratios=()), "ratios"),
        (lambda: distiller(prior=0), "prior"),
        (lambda: distiller(sisd_weight=-1), "sisd_weight"),
        (lambda: add_noise(np.zeros((1, 4)), np.ones((1, 2)), 1.0, 0), "ratio"),
        (lambda: check_boxes([torch.tensor([[1.0, 1, 1, 3]])], [torch.tensor([0])], 3, [7]), "sample 7"),
        (lambda: check_boxes([torch.tensor([[1.0, 1, float("nan"), 3]])], [torch.tensor([0])], 3, [8]), "sample 8"),
        (lambda: check_boxes([torch.tensor([[1.0, 1, 2, 3]])], [torch.tensor([3])], 3, [9]), "sample 9"),
    ],
)
def test_arguments_that_cannot_be_used(make: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        make()


# Runs -----------------------------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill."""


class Falling(SSDDet):
    """Killed before a step of the test's choosing."""

    fall_at: int | None = None

    def losses(self, batch: DetectionBatch) -> Losses:
        if self.progress.step == type(self).fall_at:
            raise Killed
        return super().losses(batch)


def fit(out: Path, data: DetectionData) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    torch.manual_seed(3)
    lab = Lab(LabOptions(out=out, accelerator="cpu", checkpoint_steps=1))
    made = Falling(build_detector("stillroom/faster-rcnn_24", num_classes=6).network, **SMALL)
    trained = lab.fit(made, data, Training(epochs=2, optimizer="adamw", lr=2e-3, schedule="cosine"), name="ssd-det")
    return read_weights(trained.folder), refine_all(made, data, torch.device("cpu"))


def test_killed_and_continued_ends_with_the_same_numbers(data: DetectionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, boxes = fit(tmp_path / "whole", data)
    monkeypatch.setattr(Falling, "fall_at", 4)
    with pytest.raises(Killed):
        fit(tmp_path / "killed", data)
    monkeypatch.setattr(Falling, "fall_at", None)
    for _ in range(2):  # gone on with; and read again with the refiner, which is kept beside the detector
        continued, same = fit(tmp_path / "killed", data)
        assert all(torch.equal(whole[name], continued[name]) for name in whole)
        assert all(np.array_equal(boxes[name], same[name], equal_nan=True) for name in boxes)


def test_two_processes_learn_what_one_does_though_one_has_no_objects(tmp_path: Path, processes: Processes) -> None:
    made = pictures(12)
    for empty in made[:8:2]:
        empty.things = []
    shown = f"{coco(tmp_path / 'data', made)},empty=keep"
    train(shown, tmp_path / "one", 1)
    first, second = processes.on_two_ranks(train, shown, tmp_path / "two", 2)
    for file in ("student", "refiner"):
        one, two = (read_weights(tmp_path / name / f"seed0/ssd-det/{file}.safetensors") for name in ("one", "two"))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert any(min(share) == 0 < max(share) for share in zip(first, second, strict=True))


def test_the_command_reports_every_arm_and_what_became_of_the_boxes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [
        "--data",
        "scenes:size=32,train=8,val=4,teacher=8",
        "--epochs",
        "1",
        "--warmup-epochs",
        "0",
        "--batch-size",
        "8",
        "--accelerator",
        "cpu",
        "--ratios",
        "[1, 0.8]",
    ]
    arms = "[clean, regressor, mil, spsd, retrained]"
    assert main(["run", "ssd-det", *words, "--noise", "0.4", "--baselines", arms, "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["summary"]) == ["clean", "alone", "regressor", "mil", "spsd", "ssd-det", "retrained"]
    given = metrics["summary"]["alone"]["metrics"]["box_iou"]["mean"]
    assert 40 < given < 60
    assert metrics["summary"]["ssd-det"]["metrics"]["box_iou"]["mean"] != given
    page = (out / "report.html").read_text()
    assert page.index("Boxes: given, refined, true") < page.index("Objects found")
    from stillroom.tasks.detection.loaded import load

    assert load(out).detect(DetectionData(TINY).val_image(0), threshold=0.0)
    assert "drift, %" in page
    assert main(["run", "ssd-det", *words, "--baselines", "[clean]", "--out", str(tmp_path / "no")]) == 2
    assert main(["run", "ssd-det", *words, "--noise", "1.5", "--out", str(tmp_path / "no")]) == 2


def test_the_papers_numbers_take_a_step_in_cocos_format(tmp_path: Path) -> None:
    paper = PRESETS["paper"]
    assert (paper["lr"], paper["momentum"], paper["weight_decay"], paper["batch_size"], paper["clip_norm"]) == (0.02, 0.9, 1e-4, 16, 10.0)
    assert (paper["epochs"], paper["image_size"], paper["max_size"], paper["noise"]) == (12, 800, 1333, 0.4)
    shown = DetectionData(coco(tmp_path, pictures(3)), batch_size=1, image_size=64)
    network = build_detector(str(paper["student"]).partition(",")[0], num_classes=2).network
    made = SSDDet(network, prior=paper["prior"], hidden_std=paper["hidden_std"]).train()
    assert len(made.refiner.shared[1].weight) == 1024
    assert made.levels == [0, 1, 2, 3]
    assert made.refiner.finest_scale == 56
    assert float(made.refiner.cls1.bias[0].detach()) == pytest.approx(-4.595, abs=1e-3)
    losses = made.losses(batch_of(shown))
    losses.total.backward()
    assert losses.total.isfinite()
    assert set(losses.distill) == {"spsd1", "mil1", "spsd2", "mil2", "neg", "sisd"}
    assert isinstance(Plain(network), Plain)
