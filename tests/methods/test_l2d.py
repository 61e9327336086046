"""L2D: what its equations promise, its edge cases, and its runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

import stillroom
from stillroom.cli import main
from stillroom.engine import Lab, LabOptions, Losses, Teacher, Training
from stillroom.engine.weights import read_weights
from stillroom.errors import InputError
from stillroom.methods.l2d import L2D, led_losses, mld_loss
from stillroom.methods.l2d.loss import distances, partial_softmax_loss, structure_losses
from stillroom.tasks.multilabel import MOSAICS, Batch, MultiLabelData, Supervised, summed_bce
from tests.methods import l2d_job
from tests.methods.l2d_job import network
from tests.processes import Processes
from tests.tasks.classification.miniatures import picture
from tests.tasks.multilabel.annotated import coco, tags, voc


def batch(size: int = 6, seed: int = 0) -> Batch:
    numbers = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(size, 3, 8, 8, generator=numbers), (torch.rand(size, 10, generator=numbers) < 0.5).long(), torch.arange(size))


def l2d(teacher: nn.Module | None = None, **options: Any) -> L2D:
    return L2D(network(6, 8), Teacher(teacher or network(12, 16), precision="fp32"), **options)


# The losses -----------------------------------------------------------------------------------------------------------------------------


def structure_of(student: Tensor, teacher: Tensor) -> Tensor:
    """Method 3 as it is written, one pair after the other."""
    count = len(student)

    def relative(rows: Tensor) -> dict[tuple[int, int], Tensor]:
        found = {(j, k): (rows[j] - rows[k]).norm() for j in range(count) for k in range(count) if j != k}
        mean = sum(found.values(), torch.zeros(())) / len(found)
        return {pair: value / mean for pair, value in found.items()}

    mine, theirs = relative(student), relative(teacher)
    return sum((smooth_l1_loss(mine[pair], theirs[pair]) for pair in mine), torch.zeros(())) / count


@given(seed=st.integers(0, 1000), images=st.integers(1, 6), labels=st.integers(1, 5), share=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_both_structures_are_the_sums_over_labels_and_images(seed: int, images: int, labels: int, share: float) -> None:
    numbers = torch.Generator().manual_seed(seed)
    student = torch.randn(images, labels, 4, generator=numbers, dtype=torch.float64)
    teacher = torch.randn(images, labels, 7, generator=numbers, dtype=torch.float64)
    y = (torch.rand(images, labels, generator=numbers) < share).long()
    cd = sum(
        (structure_of(student[y[:, c] == 1, c], teacher[y[:, c] == 1, c]) for c in range(labels) if y[:, c].sum() > 1), torch.zeros(())
    )
    id_ = sum((structure_of(student[i, y[i] == 1], teacher[i, y[i] == 1]) for i in range(images) if y[i].sum() > 1), torch.zeros(()))
    got = led_losses(student, teacher, y)
    assert got[0].item() == pytest.approx(float(cd), abs=1e-6)
    assert got[1].item() == pytest.approx(float(id_), abs=1e-6)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_structure_knows_neither_place_nor_scale_nor_direction(seed: int, scale: float) -> None:
    numbers = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(1, 5, 4, generator=numbers), torch.randn(1, 5, 3, generator=numbers)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=numbers))
    moved = scale * student @ turn + torch.randn(4, generator=numbers)
    torch.testing.assert_close(structure_losses(moved, teacher), structure_losses(student, teacher), rtol=1e-3, atol=1e-4)
    assert structure_losses(moved, student).item() == pytest.approx(0, abs=1e-6)


def test_structure_says_nothing_of_two_and_nothing_bad_of_equal_ones() -> None:
    rows = torch.randn(1, 2, 4, requires_grad=True)
    loss = structure_losses(rows, torch.randn(1, 2, 4)).sum()
    (gradient,) = torch.autograd.grad(loss, rows)
    assert loss.item() == pytest.approx(0, abs=1e-10)
    assert gradient.abs().max() < 1e-5
    equal = (100 * torch.randn(1, 1, 64)).repeat(1, 4, 1).requires_grad_()
    torch.testing.assert_close(distances(equal)[0], 1e-6 * (1 - torch.eye(4)))
    loss = structure_losses(equal, torch.randn(1, 4, 5)).sum()
    (gradient,) = torch.autograd.grad(loss, equal)
    assert loss.isfinite()
    assert gradient.eq(0).all()


@pytest.mark.parametrize("labels", [torch.zeros(4, 3), torch.eye(4)[:, :3], torch.ones(1, 3)])
def test_without_pairs_there_is_a_zero_that_has_a_gradient(labels: Tensor) -> None:
    student = torch.randn(*labels.shape, 5, requires_grad=True)
    cd, id_ = led_losses(student, torch.randn(*labels.shape, 5), labels)
    assert cd.item() == 0
    gradient = torch.autograd.grad(cd + id_, student)[0]
    assert gradient.isfinite().all()
    if len(labels) > 1:
        assert id_.item() == 0
        assert gradient.eq(0).all()


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_mld_is_a_divergence_of_each_label_with_the_known_gradient(seed: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    student, teacher = (4 * torch.randn(5, 3, generator=numbers, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    p, q = teacher.sigmoid(), student.sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() / 5
    loss = mld_loss(student, teacher)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], (q - p).detach() / 5)
    assert mld_loss(student, student).item() == pytest.approx(0, abs=1e-12)
    for reduction, count in (("sum", 1), ("mean", 15)):
        torch.testing.assert_close(mld_loss(student, teacher, reduction=reduction), expected * 5 / count)  # type: ignore[arg-type]


def test_a_sure_student_costs_a_finite_sum_and_gets_no_gradient_beyond_the_clamp() -> None:
    student = torch.tensor([[-100.0, 100.0, 0.0]], requires_grad=True)
    loss = mld_loss(student, torch.tensor([[100.0, -100.0, 0.0]]))
    assert loss.item() == pytest.approx(2 * 18.420681, rel=1e-5)
    assert torch.autograd.grad(loss, student)[0].tolist() == [[0, 0, 0]]
    logits = torch.tensor([[-100.0, 3.0]], requires_grad=True)
    bce = summed_bce(logits, torch.tensor([[1, 0]]))
    assert bce.item() == pytest.approx(18.420681 + 3.0485873, rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(bce, logits)[0], torch.tensor([[0.0, 3.0]]).sigmoid() * torch.tensor([[0.0, 1.0]]))


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_partial_softmax_is_its_definition(seed: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(4, 5, generator=numbers, dtype=torch.float64) for _ in range(2))
    y = (torch.rand(4, 5, generator=numbers) < 0.5).long()
    y[0], y[1] = 1, 0  # an image without negatives, and one without positives
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(4):
        for c in y[i].nonzero().flatten().tolist():
            kept = torch.cat(((y[i] == 0).nonzero().flatten(), torch.tensor([c])))
            p, q = teacher[i, kept].softmax(0), student[i, kept].softmax(0)
            expected = expected + (p * (p / q).log()).sum() / 4
    student.requires_grad_()
    loss = partial_softmax_loss(student, teacher, y)
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, student)[0].isfinite().all()


@pytest.mark.parametrize("bad", [torch.full((2, 3), 0.3), torch.full((2, 3), -1), torch.full((2, 3), torch.nan), torch.ones(3, 2)])
def test_labels_are_zero_or_one_and_of_the_logits_shape(bad: Tensor) -> None:
    logits, embeddings = torch.randn(2, 3), torch.randn(2, 3, 4)
    for loss in (
        lambda: summed_bce(logits, bad),
        lambda: partial_softmax_loss(logits, logits, bad),
        lambda: led_losses(embeddings, embeddings, bad),
    ):
        with pytest.raises(InputError):
            loss()
    for labels in (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.int32)):
        assert summed_bce(logits, labels).isfinite()
    with pytest.raises(InputError, match="teacher_BK"):
        mld_loss(logits, torch.zeros(2, 4))
    with pytest.raises(InputError, match="reduction"):
        mld_loss(logits, logits, reduction="none")  # type: ignore[arg-type]


# The distiller --------------------------------------------------------------------------------------------------------------------------


def test_the_objective_is_the_weighted_sum_of_its_terms() -> None:
    one, other = l2d(logits_weight=1, embedding_weight=1, class_aware_weight=1, instance_aware_weight=1), l2d(embedding_weight=0.5)
    losses, weighted = one.losses(batch()), other.losses(batch())
    torch.testing.assert_close(weighted.task["bce"], losses.task["bce"])
    for name, weight in (("mld", 10), ("cd", 0.5 * 100), ("id", 0.5 * 1000)):
        assert losses.distill[name] > 0
        torch.testing.assert_close(weighted.distill[name], weight * losses.distill[name])
    assert set(losses.terms) == {"bce", "mld", "cd", "id"}
    assert set(l2d(logits_loss="psm").losses(batch()).distill) == {"psm", "cd", "id"}
    assert l2d(logits_loss="softmax").losses(batch()).distill["softmax"] > 0


def test_distillation_is_zero_where_the_student_is_the_teacher() -> None:
    losses = l2d(network(6, 8)).losses(batch())
    assert all(term.item() == pytest.approx(0, abs=1e-3) for term in losses.distill.values())


def test_no_gradient_reaches_the_teacher_and_none_the_queries() -> None:
    teacher = network(12, 16)
    distiller = l2d(teacher)
    distiller.losses(batch()).total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in distiller.parameters())
    queries = distiller.student.head.decoder.queries
    assert not queries.requires_grad
    assert not any(p is queries for group in distiller.parameter_groups() for p in group["params"])


def test_only_matrices_and_filters_decay() -> None:
    for distiller in (l2d(), Supervised(network(6, 8))):
        decayed, free = distiller.parameter_groups()
        assert "weight_decay" not in decayed
        assert free["weight_decay"] == 0
        assert all(p.ndim > 1 for p in decayed["params"])
        assert all(p.ndim == 1 for p in free["params"])


@pytest.mark.parametrize("size", [1, 2])
def test_small_batches_and_reduced_precision(size: int) -> None:
    distiller = l2d()
    with torch.autocast("cpu", torch.bfloat16):
        losses = distiller.losses(batch(size))
    assert all(term.dtype == torch.float32 and term.isfinite() for term in losses.terms.values())
    losses.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in distiller.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logits_weight": -1}, "logits_weight: got -1, expected a finite number of at least 0"),
        ({"instance_aware_weight": float("nan")}, "instance_aware_weight: got nan"),
        ({"logits_loss": "kl"}, "logits_loss: got kl, expected one of mld, psm, softmax"),
        ({"embeddings": "head.decodr"}, "embeddings: got .*head.decoder"),
        ({"teacher_embeddings": "neck"}, "teacher_embeddings: got"),
    ],
)
def test_refuses_what_it_cannot_use(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        l2d(**options)


# Runs -----------------------------------------------------------------------------------------------------------------------------------

SMALL = ("--epochs", "1", "--accelerator", "cpu", "--teacher-precision", "fp32", "--workers", "0")


def test_a_run_reports_ships_answers_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["run", "l2d", "--data", "mosaics,train=64,val=24,teacher=64", *SMALL, "--out", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert all(text in page for text in ("mAP", "Label by label", "What the models say"))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["primary"] == "mAP"
    assert set(metrics["summary"]) == {"teacher", "alone", "distilled"}
    assert {"mld", "cd", "id", "bce"} <= {key.removeprefix("train/") for key in metrics["stages"]["distilled"][0]["history"][0]}
    student = stillroom.load(out)
    photo = tmp_path / "photo.jpg"
    picture(photo, size=(20, 30))
    probabilities = student.probabilities(photo)
    assert probabilities.shape == (1, 10)
    assert probabilities.sum() != pytest.approx(1)
    capsys.readouterr()
    assert main(["predict", str(out), str(photo), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["labels"] == [
        name for p, name in sorted(zip(probabilities[0].tolist(), student.classes, strict=True), reverse=True) if p > 0.5
    ]
    assert main(["predict", str(out), str(photo)]) == 0
    assert "labels" in capsys.readouterr().out
    assert main(["export", str(out), "--format", "torch"]) == 0
    assert main(["run", "kd", "--teacher", str(out), "--out", str(tmp_path / "kd")]) == 2
    assert "a student of the task multilabel, expected a student that classifies" in capsys.readouterr().err
    again = ["run", "l2d", "--data", "mosaics,train=64,val=24", *SMALL, "--teacher", str(out), "--out", str(tmp_path / "again")]
    assert main(again) == 0
    assert json.loads((tmp_path / "again/metrics.json").read_text())["stages"]["teacher"][0]["epochs"] == 0


class Killed(Exception):
    """Stands for a kill: nothing of the run's own handles it."""


class Falling(L2D):
    """L2D that is killed before a step of the tests' choosing."""

    fall_at: int | None = None

    def losses(self, batch: Batch) -> Losses:
        if self.progress.step == type(self).fall_at:
            raise Killed
        return super().losses(batch)


def test_a_killed_run_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = MultiLabelData("mosaics,train=64,val=20", batch_size=16)
    plan = Training(**{**vars(MOSAICS), "epochs": 2})

    def run(out: Path) -> tuple[Any, dict[str, Tensor]]:
        lab = Lab(LabOptions(out=out, checkpoint_steps=2, accelerator="cpu"))
        distiller = Falling(network(6, 8, dropout=0.1), Teacher(network(12, 16), precision="fp32"))
        trained = lab.fit(distiller, data, plan, name="distilled")
        history = json.loads((trained.folder / "stage.json").read_text())["result"]["history"]
        return [{k: v for k, v in line.items() if "second" not in k} for line in history], read_weights(trained.folder)

    whole = run(tmp_path / "whole")
    for step in (1, 3, 6):
        monkeypatch.setattr(Falling, "fall_at", step)
        with pytest.raises(Killed):
            run(tmp_path / "killed")
    monkeypatch.setattr(Falling, "fall_at", None)
    pieced = run(tmp_path / "killed")
    assert pieced[0] == whole[0]
    assert all(torch.equal(pieced[1][name], value) for name, value in whole[1].items())


def test_two_processes_equal_one(tmp_path: Path, processes: Processes) -> None:
    """Class-aware distances are of the whole batch, and sums are sums over all of it."""
    l2d_job.main(tmp_path / "1", 1)
    processes.on_two_ranks(l2d_job.main, tmp_path / "2", 2)
    one, two = (tmp_path / devices / "seed0/distilled" for devices in ("1", "2"))
    for name, value in read_weights(one).items():
        torch.testing.assert_close(read_weights(two)[name], value, rtol=1e-4, atol=1e-5)
    rows = [json.loads((out / "stage.json").read_text())["result"]["history"] for out in (one, two)]
    for row, other in zip(*rows, strict=True):
        for term in ("bce", "mld", "cd", "id"):
            assert row[f"train/{term}"] == pytest.approx(other[f"train/{term}"], rel=1e-3)


PAPER = {
    "logits_weight": 10,
    "embedding_weight": 1,
    "class_aware_weight": 100,
    "instance_aware_weight": 1000,
    "embed_dim": 768,
    "attention_heads": 8,
    "feedforward": 2048,
    "dropout": 0.1,
    "batch_size": 64,
    "image_size": 224,
    "optimizer": "adam",
    "lr": 1e-4,
    "schedule": "onecycle",
    "peak": 0.2,
    "momentum": 0.95,
    "weight_decay": 1e-4,
    "epochs": 80,
    "teacher_stop": 30,
    "augment": "randaugment",
    "precision": "16-mixed",
    "mean": None,
    "teacher": "torchvision/resnet101@pretrained",
    "student": "torchvision/resnet34@pretrained",
}


@pytest.mark.parametrize("preset", ["paper", "paper:voc2007", "paper:nus-wide"])
def test_the_presets_are_the_papers(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "l2d", "--preset", preset, "--print_config"])
    values = yaml.safe_load(capsys.readouterr().out)
    assert {name: values[name] for name in PAPER} == PAPER


def test_a_step_of_each_preset_on_the_sets_formats(tmp_path: Path) -> None:
    train, val = coco(tmp_path / "coco/a", 8), coco(tmp_path / "coco/b", 6)
    images, annotations = val.removeprefix("coco:").split(",")
    table, test = tags(tmp_path / "tags", 8), tags(tmp_path / "tags", 6, "test.csv", start=8)
    data = {
        "paper": f"{train},val_images={images},val_annotations={annotations}",
        "paper:voc2007": f"voc:{voc(tmp_path / 'voc', count=12)}",
        "paper:nus-wide": f"csv:{table},val={test}",
    }
    networks = ("--teacher", "torchvision/resnet18", "--student", "torchvision/mobilenet_v3_small", "--image-size", "64")
    shorter = ("--embed-dim", "32", *SMALL, "--precision", "32-true", "--batch-size", "4", "--teacher-stop", "1")
    for preset, place in data.items():
        given = ["--data", place, *networks, *shorter]
        out = tmp_path / "runs" / preset.replace(":", "-")
        assert main(["run", "l2d", "--preset", preset, *given, "--out", str(out)]) == 0
        card = json.loads((out / "student.json").read_text())
        assert card["classes"] == ["cat", "dog", "sea"]
        assert card["head"] == {"embed_dim": 32, "heads": 8, "feedforward": 2048, "dropout": 0.1, "groups": None}
        for stage in out.rglob("stage.json"):
            for line in json.loads(stage.read_text())["result"]["history"]:
                assert all(np.isfinite(value) for value in line.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--student", "stillroom/strided2"], "--student: got stillroom/strided2, expected"),
        (["--embed-dim", "63"], "--embed-dim: got 63, expected a multiple of the number of heads, 4"),
        (["--data", "digits"], "--data: got digits, expected one of mosaics, coco, voc, csv"),
        (["--data", "coco:here"], "--data: got here, expected a folder or a zip file that exists"),
        (["--teacher", "cache:there"], "--teacher: got there, which is no cache"),
        (["--teacher-stop", "30"], "--teacher-stop: got 30, expected an epoch from 1 to 20"),
        (["--logits-weight", "-1"], "--logits-weight: got -1"),
        (["--augment", "cifar"], "--augment: got cifar, expected one of"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "l2d", *arguments, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"stillroom: {message}")
    assert "\n" not in said
    assert not (tmp_path / "run").exists()


def test_it_learns_from_a_cache_of_its_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [
        "--data",
        "mosaics,train=32,val=16,teacher=32",
        "--augment",
        "turn",
        "--batch-size",
        "16",
        "--epochs",
        "1",
        "--accelerator",
        "cpu",
    ]
    cache, run = str(tmp_path / "cache"), tmp_path / "run"
    taught = ["--teacher", "stillroom/strided24", "--taps", "head.decoder", "--views", "2", "--dtype", "fp32"]
    assert main(["cache", *data, *taught, "--out", cache]) == 0
    assert "logits, head.decoder of 32 images, 2 views each" in capsys.readouterr().out
    assert main(["run", "l2d", *data, "--teacher", f"cache:{cache}", "--out", str(run)]) == 0
    assert json.loads((run / "metrics.json").read_text())["stages"]["teacher"][0]["model"] == "stillroom/strided24"
    assert main(["run", "l2d", *data, "--subset", "20", "--teacher", f"cache:{cache}", "--out", str(tmp_path / "other")]) == 2
    assert "subset was None, now 20" in capsys.readouterr().err
