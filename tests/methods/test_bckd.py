"""BCKD: the argument of its paper in exact form, its edge cases, and runs."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Progress, Teacher, Training
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.losses.detection import mean_kl
from stillroom.methods.bckd import (
    BCKD,
    EPS,
    LD,
    PRESETS,
    SoftmaxKD,
    bckd_terms,
    binary_classification_distillation,
    gap_weights,
    iou_localisation_distillation,
)
from stillroom.tasks.detection.data import DetectionBatch, DetectionData
from stillroom.tasks.detection.models import build_detector
from tests.methods.bckd_job import network, train
from tests.methods.kills import killed_at
from tests.processes import Processes

TINY = "scenes:train=32,val=12,teacher=32"


@pytest.fixture(scope="module")
def data() -> DetectionData:
    return DetectionData(TINY, batch_size=8)


def batch_of(data: DetectionData) -> DetectionBatch:
    batch: DetectionBatch = next(iter(data.train_loader(seed=0)))
    return batch


def logits(seed: int, rows: int = 40, classes: int = 6) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * 3 - 2


# The paper's argument -------------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 500), st.floats(-8, 8))
def test_softmax_forgives_a_shift_and_bckd_does_not(seed: int, shift: float) -> None:
    teacher = logits(seed)
    student = teacher + shift
    torch.testing.assert_close(mean_kl(student, teacher, 2.0), torch.zeros(40), rtol=0, atol=1e-4)
    if abs(shift) > 0.5:
        assert (binary_classification_distillation(student, teacher) > 0).all()


def test_fitted_by_descent_only_bckd_ends_at_the_teachers_scores() -> None:
    teacher = logits(1)
    left = {}
    for name in ("softmax", "bckd"):
        student = logits(2).requires_grad_()
        optimizer = torch.optim.Adam([student], lr=0.05)
        for _ in range(1500):
            rows = mean_kl(student, teacher, 2.0) if name == "softmax" else binary_classification_distillation(student, teacher)
            optimizer.zero_grad()
            rows.sum().backward()
            optimizer.step()
        left[name] = float((student.detach().sigmoid() - teacher.sigmoid()).abs().mean())
    assert left["bckd"] < 0.02
    assert left["softmax"] > 5 * left["bckd"]


def test_with_one_class_softmax_is_silent_and_bckd_teaches() -> None:
    teacher, student = logits(3, classes=1), logits(4, classes=1).requires_grad_()
    (silent,) = torch.autograd.grad(mean_kl(student, teacher, 2.0).sum(), student)
    (taught,) = torch.autograd.grad(binary_classification_distillation(student, teacher).sum(), student)
    assert float(silent.abs().max()) == 0
    assert float(taught.abs().min()) > 0


# Edge cases -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.5, 1, 2])
def test_equal_answers_cost_nothing(beta: float) -> None:
    same = logits(5).requires_grad_()
    loss = binary_classification_distillation(same, same.detach().clone(), beta=beta).sum()
    assert float(loss.detach()) == 0
    assert float(torch.autograd.grad(loss, same)[0].abs().max()) == 0
    assert float(gap_weights(same, same).max()) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_have_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    student = torch.tensor([[80.0, -80, 0], [-80, 80, 1e4]], dtype=dtype, requires_grad=True)
    loss = binary_classification_distillation(student, -student.detach()).sum()
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, student)[0]).all()


def test_rows_must_be_the_same() -> None:
    with pytest.raises(InputError, match="teacher_NC"):
        binary_classification_distillation(logits(1), logits(1)[:, :1])
    with pytest.raises(InputError, match="teacher_NC"):
        gap_weights(logits(1), logits(1)[:, :1])
    with pytest.raises(InputError, match="beta"):
        binary_classification_distillation(logits(1), logits(2), beta=-1)
    with pytest.raises(InputError, match="weights_N"):
        iou_localisation_distillation(torch.rand(3, 4), torch.rand(3, 4), torch.ones(1))


def test_no_gradient_reaches_the_teacher_and_the_gap_can_be_a_constant() -> None:
    student, teacher = logits(6).requires_grad_(), logits(7).requires_grad_()
    open_gap = torch.autograd.grad(binary_classification_distillation(student, teacher).sum(), student)[0]
    shut = torch.autograd.grad(binary_classification_distillation(student, teacher, detach_gap=True).sum(), student)[0]
    assert not torch.allclose(open_gap, shut)
    binary_classification_distillation(student, teacher).sum().backward()
    assert teacher.grad is None


def test_boxes_that_do_not_count_have_no_gradient() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 1, 3, 3]], requires_grad=True)
    loss = iou_localisation_distillation(boxes, torch.tensor([[0.0, 0, 4, 5], [0, 0, 0, 0]]), torch.tensor([1.0, 0])).sum()
    (gradient,) = torch.autograd.grad(loss, boxes)
    assert float(gradient[0].abs().max()) > 0
    assert float(gradient[1].abs().max()) == 0


def test_a_batch_without_objects_trains_the_scores_alone(data: DetectionData) -> None:
    batch = batch_of(data)
    empty = batch._replace(
        boxes=[torch.zeros(0, 4)] * 8, labels=[torch.zeros(0, dtype=torch.long)] * 8, crowd=[torch.zeros(0, dtype=torch.long)] * 8
    )
    distiller = BCKD(network(8, 3), network(12, 4))
    losses = distiller.losses(empty)
    assert float(losses.distill["bcd"]) == 0
    assert float(losses.distill["iou_ld"]) == 0
    assert float(losses.task["qfl"]) > 0
    losses.total.backward()  # every term is in the graph
    everywhere = BCKD(network(8, 3), network(12, 4), skip_levels_without_positives=False).losses(empty)
    assert float(everywhere.distill["bcd"]) > 0


def test_crowd_boxes_are_no_targets(data: DetectionData) -> None:
    batch = batch_of(data)
    crowded = batch._replace(crowd=[torch.ones_like(crowd) for crowd in batch.crowd])
    assert float(BCKD(network(8, 3), network(12, 4)).losses(crowded).task["giou"]) == 0


def test_a_level_alone_is_skipped_where_nothing_is(data: DetectionData) -> None:
    batch, student, teacher = batch_of(data), network(8, 3), network(12, 4)
    outputs = student.raw(batch.images, batch.sizes)
    small = [torch.tensor([[10.0, 10, 16, 16]])] * 8
    targets = student.targets(outputs, small, [torch.tensor([0])] * 8)
    has = [bool((labels < 6).any()) for labels in targets.labels]
    terms = bckd_terms(outputs, teacher.raw(batch.images, batch.sizes), targets)
    assert [float(term) > 0 for term in terms["cls"]] == has
    assert has == [True, False]


def test_positions_count_up_to_the_image_s_edge_or_as_in_the_release_up_to_a_multiple_of_32() -> None:
    torch.manual_seed(0)
    student, teacher = network(8, 3), network(12, 4)  # strides 4 and 8
    images, sizes = torch.randn(2, 3, 64, 96), torch.tensor([[33, 70], [64, 96]])
    boxes, labels = [torch.tensor([[2.0, 2, 18, 18]])] * 2, [torch.tensor([1])] * 2
    outputs, told = student.raw(images, sizes), teacher.raw(images, sizes)
    counted, terms = {}, {}
    for release in (False, True):
        distiller = BCKD(student, teacher, count_padding=release, skip_levels_without_positives=False)
        targets = distiller.targets(outputs, boxes, labels)
        counted[release] = [level.sum(1).tolist() for level in targets.weights]
        terms[release] = distiller.distillation(outputs, told, targets)["bcd"]
    assert counted[False] == [[9 * 18, 16 * 24], [5 * 9, 8 * 12]]  # rows times columns whose centres, multiples of the stride, lie inside
    assert counted[True] == [[16 * 24, 16 * 24], [8 * 12, 8 * 12]]
    every = [binary_classification_distillation(*(each.logits[level].flatten(0, 1) for each in (outputs, told))) for level in range(2)]
    torch.testing.assert_close(terms[True], torch.cat(every).sum() / (targets.positives + EPS))
    assert terms[False] < terms[True]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda student, teacher: BCKD(student, teacher, gap_exponent=-1), "gap_exponent"),
        (lambda student, teacher: BCKD(student, teacher, cls_weight=-1), "cls_weight"),
        (lambda student, teacher: SoftmaxKD(student, teacher, temperature=0), "temperature"),
        (lambda student, teacher: SoftmaxKD(student, teacher, region="some"), "region"),
        (lambda student, teacher: LD(student, teacher, ld_weight=-1), "ld_weight"),
        (lambda student, teacher: BCKD(student, torch.nn.Linear(2, 2)), "teacher"),
        (lambda student, teacher: BCKD(student, build_detector("stillroom/gfl_32", num_classes=5).network), "teacher"),
        (lambda student, teacher: BCKD(student, build_detector("gfl/resnet18", num_classes=6).network), "teacher"),
    ],
)
def test_arguments_that_cannot_be_used(make: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        make(network(8, 3), network(12, 4))


# Runs -----------------------------------------------------------------------------------------------------------------------------------


def fit(out: Path, data: DetectionData) -> dict[str, Tensor]:
    lab = Lab(LabOptions(out=out, accelerator="cpu", checkpoint_steps=1))
    plan = Training(epochs=2, optimizer="adamw", lr=2e-3, schedule="cosine")
    trained = lab.fit(BCKD(network(8, 3), Teacher(network(12, 4))), data, plan, name="distilled")
    return read_weights(trained.folder)


def test_killed_and_continued_ends_with_the_same_numbers(data: DetectionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at(BCKD, (2, 5), lambda out: fit(out, data), tmp_path, monkeypatch)


def test_two_processes_equal_one_and_share_their_normalisers(tmp_path: Path, processes: Processes) -> None:
    alone = train(tmp_path / "one", 1)
    noted = processes.on_two_ranks(train, tmp_path / "two", 2)
    one, two = (read_weights(tmp_path / name / "seed0/distilled") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    assert any(first["own"] != second["own"] for first, second in zip(*noted, strict=True))
    for whole, first, second in zip(alone, *noted, strict=True):
        assert first["positives"] == second["positives"] == (first["own"] + second["own"]) / 2 == whole["positives"] / 2
        assert first["present"] == second["present"] == whole["present"]


def test_the_command_ends_with_a_report_and_a_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    small = ["--data", TINY, "--epochs", "1", "--teacher-epochs", "1", "--warmup-epochs", "0", "--batch-size", "8", "--accelerator", "cpu"]
    assert main(["run", "bckd", *small, "--baselines", "[softmax, softmax-scaled, ld]", "--out", str(out)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["summary"]) == ["teacher", "alone", "softmax", "softmax-scaled", "ld", "bckd"]
    assert metrics["primary"] == "AP"
    page = (out / "report.html").read_text()
    assert "Objects found" in page
    from stillroom.tasks.detection.loaded import load

    loaded = load(out)
    picture = DetectionData(TINY).val_image(0)
    assert all(0 <= found.score <= 1 and found.label in loaded.classes for found in loaded.detect(picture, threshold=0.0))


def test_the_papers_numbers() -> None:
    paper = PRESETS["paper"]
    assert (paper["lr"], paper["momentum"], paper["weight_decay"], paper["batch_size"]) == (0.01, 0.9, 1e-4, 16)
    assert (paper["epochs"], paper["image_size"], paper["max_size"]) == (12, 800, 1333)
    assert "val_images=data/coco/val2017" in paper["data"]
    assert (paper["teacher"], paper["teacher_epochs"]) == ("gfl/resnet101,backbone=pretrained", 24)
    assert paper["student"] == "gfl/resnet50,backbone=pretrained"
    assert build_detector("gfl/resnet18", num_classes=80).network.strides == (8, 16, 32, 64, 128)


@pytest.mark.parametrize(("epochs", "drops"), [(12, (8, 11)), (24, (16, 22))])
def test_the_papers_rate(epochs: int, drops: tuple[int, int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "bckd", "--preset", "paper", "--print_config"])
    values = yaml.safe_load(capsys.readouterr().out)
    plan = Training(**{field.name: values[field.name] for field in fields(Training)})
    steps = 117_266 // 16

    def rate(step: int) -> float:
        return plan.rate(plan.lr, Progress(step // steps + 1, epochs, step, steps))

    assert rate(0) < 0.003 * plan.lr
    assert rate(498) < plan.lr
    assert rate(500) == plan.lr
    for drop, before, after in zip(drops, (0.01, 0.001), (0.001, 0.0001), strict=True):
        assert rate(drop * steps - 1) == pytest.approx(before)
        assert rate(drop * steps) == pytest.approx(after)
