"""DINO: the loss, the centre, the average, what is done to gradients, the views, and the experiment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from torch import Tensor, nn

from stillroom.cli import main
from stillroom.engine import Training
from stillroom.engine.schedule import cosine_between
from stillroom.errors import InputError
from stillroom.methods.dino import DINO, DINOLoss, build, self_distillation_loss
from stillroom.methods.dino.backbone import for_any_size, with_stochastic_depth
from stillroom.methods.dino.gradients import decay_groups
from stillroom.methods.dino.head import ProjectionHead
from stillroom.methods.dino.views import Crops
from stillroom.tasks.representation import RepresentationData, ViewBatch, load
from tests.tasks.classification.miniatures import imagenet

SMALL: dict[str, Any] = {"prototypes": 8, "hidden": 12, "bottleneck": 6}


def tiny_vit(size: int = 32) -> Any:
    options: dict[str, Any] = {"img_size": size, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", **options)


@pytest.fixture(scope="module")
def digits() -> RepresentationData:
    return RepresentationData("digits", subset=40, val_subset=20, batch_size=8)


def made(plan: Training | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    distiller = DINO(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), width=10, **{**SMALL, "freeze_last_layer": 0, **options})
    distiller.plan = plan or Training(epochs=4, optimizer="adamw", lr=1e-2, weight_decay=0.04, schedule="cosine")
    distiller.at(0, steps_per_epoch=5, epochs=4)
    return distiller


def batch_of(images: int = 6, views: int = 2) -> ViewBatch:
    torch.manual_seed(1)
    return ViewBatch(tuple(torch.randn(images, 3, 8, 8) for _ in range(views)), torch.zeros(images).long(), torch.arange(images))


def step(distiller: DINO, batch: ViewBatch) -> None:
    """A step of somebody's own loop."""
    optimizer = distiller.configure_optimizers()
    distiller.losses(batch).total.backward()
    distiller.on_before_optimizer_step(optimizer)
    optimizer.step()
    distiller.follow()


# The loss -----------------------------------------------------------------------------------------------------------------------


def test_several_crops_are_compared_with_both_global_views_but_never_with_themselves() -> None:
    student, teacher, center = torch.randn(4 * 3, 5), torch.randn(2 * 3, 5), torch.randn(1, 5)
    q = ((teacher - center) / 0.04).softmax(-1).unflatten(0, (2, 3))
    log_p = (student / 0.1).log_softmax(-1).unflatten(0, (4, 3))
    pairs = [-(q[v] * log_p[u]).sum(-1).mean() for v in range(2) for u in range(4) if u != v]
    loss = self_distillation_loss(student, teacher, center, views=4, student_temperature=0.1, teacher_temperature=0.04)
    torch.testing.assert_close(loss, torch.stack(pairs).mean())


def test_no_gradient_reaches_the_teacher_and_a_constant_changes_nothing() -> None:
    student, teacher = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    options: dict[str, Any] = {"views": 2, "student_temperature": 0.1, "teacher_temperature": 0.04}
    loss = self_distillation_loss(student, teacher, torch.zeros(5), **options)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.allclose(gradient.sum(-1), torch.zeros(4), atol=1e-5)
    assert not self_distillation_loss(student.detach(), teacher, torch.zeros(5), **options).requires_grad
    torch.testing.assert_close(self_distillation_loss(student + 3, teacher - 2, torch.zeros(5), **options), loss)


def test_a_batch_of_one_has_a_loss_and_odd_rows_have_none() -> None:
    loss = DINOLoss(5)
    assert loss(torch.randn(2, 5), torch.randn(2, 5)).isfinite()
    for student, teacher in ((3, 2), (4, 3), (0, 0)):
        with pytest.raises(InputError, match=r"views|teacher"):
            loss(torch.randn(student, 5), torch.randn(teacher, 5))


def test_the_centre_moves_in_training_alone() -> None:
    loss, teacher = DINOLoss(3, center_momentum=0.5), torch.tensor([[2.0, 0, 0], [0, 4, 0]])
    loss.eval()(torch.randn(2, 3), teacher)
    assert loss.center.tolist() == [[0, 0, 0]]
    loss.train()(torch.randn(2, 3), teacher)
    assert loss.center.tolist() == [[0.5, 1, 0]]


def test_reduced_precision_is_widened() -> None:
    student, teacher = torch.randn(4, 64), torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        half = DINOLoss(64)(student.bfloat16(), teacher.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, DINOLoss(64)(student.bfloat16().float(), teacher.bfloat16().float()))


@pytest.mark.parametrize(
    "options", [{"student_temperature": 0}, {"teacher_temperature": -1}, {"center_momentum": 1.0}, {"warmup_teacher_epochs": -1}]
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        made(**options)


# The iteration ------------------------------------------------------------------------------------------------------------------


def test_the_average_begins_as_a_copy_and_follows_parameters_alone() -> None:
    distiller = made(ema_momentum=0.9, head_batch_norm=True)
    pairs = [(distiller.student, distiller.learner["backbone"]), (distiller.averaged_head, distiller.learner["head"])]
    before = [[p.clone() for p in average.parameters()] for average, _ in pairs]
    assert all(torch.equal(a, b) for average, learner in pairs for a, b in zip(average.parameters(), learner.parameters(), strict=True))
    distiller.at(7, steps_per_epoch=5, epochs=4)
    batch = batch_of()
    step(distiller, batch)
    momentum = cosine_between(0.9, 1.0, step=7, steps=20)
    for old, (average, learner) in zip(before, pairs, strict=True):
        for was, now, new in zip(old, average.parameters(), learner.parameters(), strict=True):
            torch.testing.assert_close(now, momentum * was + (1 - momentum) * new)
            assert now.grad is None
    # the average's batch norm counts for itself, in training as in the paper's code
    for head in (distiller.averaged_head, distiller.learner["head"]):
        assert head.mlp[1].num_batches_tracked == 1


def test_the_prototypes_stay_in_the_first_epochs() -> None:
    distiller = made(freeze_last_layer=1)
    prototypes = distiller.learner["head"].last_layer.direction
    before = prototypes.detach().clone()
    step(distiller, batch_of())
    assert torch.equal(prototypes, before)
    distiller.at(5, steps_per_epoch=5, epochs=4)
    step(distiller, batch_of())
    assert not torch.equal(prototypes, before)


def test_each_gradient_is_clipped_by_itself() -> None:
    distiller = made(clip_each_norm=1e-3)
    distiller.losses(batch_of()).total.backward()
    distiller.on_before_optimizer_step(None)
    norms = [parameter.grad.norm() for parameter in distiller.learner.parameters() if parameter.grad is not None]
    assert len(norms) > 5
    assert all(norm <= 1.001e-3 for norm in norms)


def test_biases_and_vectors_do_not_decay() -> None:
    head = ProjectionHead(4, 8, hidden=6, bottleneck=3, batch_norm=True)
    decayed, spared = decay_groups(head)
    assert {parameter.ndim for parameter in decayed["params"]} == {2}
    assert {parameter.ndim for parameter in spared["params"]} == {1}
    assert not any(parameter is head.last_layer.gain for parameter in (*decayed["params"], *spared["params"]))  # it stays 1
    learning = ProjectionHead(4, 8, freeze_gain=False)
    assert any(parameter is learning.last_layer.gain for parameter in decay_groups(learning)[0]["params"])


def test_rates_and_decay_follow_their_own_schedules(digits: RepresentationData) -> None:
    distiller = made(Training(epochs=4, optimizer="adamw", lr=1e-2, weight_decay=0.04, schedule="cosine", warmup_epochs=1, lr_floor=1e-4))
    rates = []
    for number in range(20):
        distiller.at(number, steps_per_epoch=5, epochs=4)
        rates.append(distiller.rate(1e-2))
    expected = [cosine_between(1e-2, 1e-4, step=number, steps=20, warmup=5) for number in range(20)]
    assert rates == pytest.approx(expected)
    assert (rates[0], rates[4]) == (0, pytest.approx(1e-2))


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
def test_other_optimizers_step(optimizer: Any) -> None:
    distiller = made(Training(epochs=4, optimizer=optimizer, lr=0.1, weight_decay=1e-4, schedule="cosine"))
    before = distiller.learner["backbone"][1].weight.detach().clone()
    step(distiller, batch_of())
    assert not torch.equal(distiller.learner["backbone"][1].weight, before)


# Backbones and views ------------------------------------------------------------------------------------------------------------


def test_depth_is_dropped_in_the_learner_alone_and_more_the_deeper() -> None:
    distiller: Any = DINO(tiny_vit(), width=24, drop_path=0.2, **SMALL)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in distiller.learner["backbone"].blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])
    assert all(isinstance(block.drop_path1, nn.Identity) for block in distiller.student.blocks)
    assert with_stochastic_depth(nn.Linear(2, 2), 0.1) is not None
    with pytest.raises(InputError, match="drop_path"):
        with_stochastic_depth(tiny_vit(), 1.5)


def test_local_crops_of_another_size_go_through_a_transformer() -> None:
    network = tiny_vit().eval()
    images = torch.randn(2, 3, 32, 32)
    before: Tensor = network(images)
    torch.testing.assert_close(for_any_size(network)(images), before)
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 24)


def test_local_crops_are_shown_to_the_learner_alone(tmp_path: Path) -> None:
    data = RepresentationData(f"imagenet:{imagenet(tmp_path)}", image_size=32, batch_size=4, workers=0)
    distiller = build(tiny_vit(), None, data, local_crops=3, local_size=16, **SMALL)
    distiller.at(0, steps_per_epoch=1, epochs=1)
    shown = next(iter(distiller.training_data(data).train_loader(seed=0)))
    assert [view.shape[-1] for view in shown.views] == [32, 32, 16, 16, 16]
    logits, taught, features = distiller.answers(shown.views)
    assert (len(logits), len(taught), len(features)) == (20, 8, 8)
    assert distiller.losses(shown).total.isfinite()
    with pytest.raises(InputError, match="local_size"):
        build(tiny_vit(), None, data, local_crops=1, local_size=20, **SMALL)


def test_scans_are_warped_and_have_no_local_crops(digits: RepresentationData) -> None:
    shown = next(iter(Crops().of(digits).train_loader(seed=0)))
    assert [tuple(view.shape) for view in shown.views] == [(8, 3, 8, 8)] * 2
    assert not torch.equal(*shown.views)
    with pytest.raises(InputError, match="local_crops"):
        Crops(local_crops=2).of(digits)
    for scale in ((0.0, 1.0), (0.5, 0.4), (0.5, 1.1)):
        with pytest.raises(InputError, match="global_scale"):
            Crops(global_scale=scale)


# Runs ---------------------------------------------------------------------------------------------------------------------------

COMMAND = ["--data", "digits", "--subset", "48", "--val-subset", "40", "--batch-size", "16", "--epochs", "2", "--accelerator", "cpu"]
COMMAND += ["--student", "stillroom/mlp_256_128", "--prototypes", "16", "--hidden", "32", "--bottleneck", "8"]


def test_the_command_ends_with_a_report_and_a_backbone(tmp_path: Path) -> None:
    assert main(["run", "dino", *COMMAND, "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["summary"]) == ["pixels", "random", "dino"]
    assert metrics["baseline"] == "pixels"
    assert {"few", "knn", "linear", "spread", "rank", "entropy"} <= metrics["summary"]["dino"]["metrics"].keys()
    assert "train/collapse/entropy" in metrics["stages"]["dino"][0]["history"][0]
    assert load(tmp_path).network(torch.randn(2, 3, 8, 8)).shape == (2, 128)


@pytest.mark.parametrize("method", ["dino", "adasim"])
def test_the_paper_preset_takes_a_step_on_its_layout(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", method, "--preset", "paper", "--print_config"])
    values = yaml.safe_load(capsys.readouterr().out)
    paper = {"student": "timm/vit_small_patch16_224", "image_size": 224, "epochs": 100, "optimizer": "adamw", "warmup_epochs": 10}
    assert {name: values[name] for name in paper} == paper
    assert values["lr"] == pytest.approx(5e-4 * values["batch_size"] / 256)
    heads = values if method == "dino" else values["host_options"]
    assert (heads["prototypes"], heads["hidden"]) == (65536, 2048)
    if method == "adasim":
        assert (values["window"], values["topk"], values["sampling_temperature"], values["arms"]) == (50, 10, 0.001, "baseline+adasim")
    root = imagenet(tmp_path / "imagenet")
    small = ["--batch-size", "4", "--epochs", "1", "--warmup-epochs", "0"]
    small += ["--precision", "32-true", "--accelerator", "cpu", "--workers", "0"]
    # AdaSim in full width, but for the prototypes and the size of the pictures
    dino = ["--prototypes", "512", "--student", "timm/vit_tiny_patch16_224"]
    less = dino if method == "dino" else ["--topk", "3", "--arms", "adasim", "--host_options", '{"prototypes": 512}']
    words = ["run", method, "--preset", "paper", "--data", f"imagenet:{root}", "--image-size", "32", *small, *less]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run/student/model.safetensors").exists()  # as timm itself loads it
