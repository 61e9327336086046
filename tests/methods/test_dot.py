"""DOT around its hosts: the iteration, in the Lab and by hand. Its optimiser has a test file of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Lab, LabOptions, Losses, Progress, Teacher, Training
from stillroom.errors import InputError
from stillroom.methods.crd import CRD
from stillroom.methods.dkd import DKD
from stillroom.methods.dot import DOT, DOTOptimizer
from stillroom.methods.dot.optimizer import DISTILL_BUFFER, TASK_BUFFER
from stillroom.methods.kd import KD
from stillroom.tasks.classification import Batch, ImageData, Supervised

pytestmark = pytest.mark.usefixtures("kept_checkpoints")

PLAN = Training(epochs=2, lr=0.05, weight_decay=5e-4, schedule="constant")


def net(width: int = 6, *, norm: bool = False) -> nn.Sequential:
    """Layer 2 gives the pooled features [B, width], 3 the logits."""
    torch.manual_seed(width)
    first: list[nn.Module] = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)] if norm else [nn.Conv2d(3, width, 3)]
    body = nn.Sequential(*first, nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def kd(student: nn.Module | None = None) -> KD:
    return KD(student or net(), Teacher(net(12), precision="fp32"), task_weight=0.5, kd_weight=0.9)


def crd(student: nn.Module | None = None) -> CRD:
    torch.manual_seed(1)
    options: dict[str, Any] = {
        "student_layer": "2",
        "teacher_layer": "2",
        "train_labels": torch.arange(40) % 10,
        "negatives": 8,
        "embed_dim": 5,
    }
    return CRD(student or net(), Teacher(net(12), precision="fp32"), example=torch.zeros(2, 3, 8, 8), **options)


def batch(size: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(40, generator=generator)[:size]
    return Batch(torch.randn(size, 3, 8, 8, generator=generator), ids % 10, ids)


def fit(out: Path, data: ImageData, distiller: Distiller, plan: Training = PLAN) -> dict[str, Tensor]:
    """The weights after a stage of the Lab."""
    Lab(LabOptions(out=out, accelerator="cpu")).fit(distiller, data, plan, name="stage")
    return {name: value.clone() for name, value in distiller.state_dict().items()}


def optimizer_state(out: Path, distiller: Distiller) -> dict[str, dict[str, Tensor]]:
    """What the stage's checkpoint remembers of each parameter."""
    saved = torch.load(out / "seed0/stage/last.ckpt", weights_only=False)["optimizer_states"][0]
    names = {id(p): name for name, p in distiller.named_parameters()}
    order = [names[id(p)].removeprefix("host.") for group in distiller.parameter_groups() for p in group["params"]]
    return {order[index]: state for index, state in saved["state"].items()}


def started(distiller: DOT, plan: Training = PLAN, scaler: torch.amp.GradScaler | None = None) -> DOTOptimizer:
    """Makes `training_step` work without a trainer."""
    distiller.plan = plan
    distiller.progress = Progress(steps_per_epoch=1000)
    optimizer = distiller.configure_optimizers()
    distiller.optimizers = lambda use_pl_optimizer=True: optimizer  # type: ignore[method-assign, assignment]
    distiller.gradient_scaler = lambda: scaler  # type: ignore[method-assign]
    return optimizer


def snapshot(distiller: DOT, optimizer: DOTOptimizer) -> list[Tensor]:
    buffers = [value for state in optimizer.state.values() for value in state.values()]
    return [value.detach().clone() for value in (*distiller.parameters(), *buffers)]


class ManyTerms(KD):
    """A host with two terms of each kind."""

    def losses(self, batch: Batch) -> Losses:
        logits_BC = self.student(batch.images)
        kd = super().losses(batch)
        return Losses(
            task={"ce": cross_entropy(logits_BC, batch.labels), "size": 0.01 * logits_BC.square().mean()},
            distill={"kd": kd.distill["kd"], "l1": 0.1 * (logits_BC - self.teacher(batch)).abs().mean()},
        )


class DistillOnly(KD):
    def losses(self, batch: Batch) -> Losses:
        return Losses({}, super().losses(batch).distill)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batchnorm"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_without_a_gap_it_is_sgd(tmp_path: Path, digits: ImageData, norm: bool, clip: float | None) -> None:
    plan = Training(epochs=2, lr=0.05, weight_decay=5e-3, milestones=(1,), clip_norm=clip)
    plain = fit(tmp_path / "sgd", digits, kd(net(norm=norm)), plan)
    dotted = fit(tmp_path / "dot", digits, DOT(kd(net(norm=norm)), delta=0.0), plan)
    assert any((plain[name] - value).abs().max() > 0.01 for name, value in kd(net(norm=norm)).state_dict().items())
    for name, value in plain.items():
        torch.testing.assert_close(dotted[name], value, rtol=1e-4, atol=1e-6)


def test_with_a_gap_it_is_not(tmp_path: Path, digits: ImageData) -> None:
    plain, dotted = fit(tmp_path / "sgd", digits, kd()), fit(tmp_path / "dot", digits, DOT(kd(), delta=0.075))
    assert (plain["student.3.weight"] - dotted["student.3.weight"]).abs().max() > 1e-3


def test_losses_and_answers_are_the_host_s() -> None:
    host = DKD(net(), Teacher(net(12), precision="fp32"), warmup=10)
    distiller = DOT(host)
    distiller.progress = Progress(epoch=4, epochs=20)
    losses = distiller.losses(batch())
    host.progress = Progress(epoch=4, epochs=20)
    assert losses.terms.keys() == {"ce", "dkd"}
    for name, term in host.losses(batch()).terms.items():
        torch.testing.assert_close(losses.terms[name], term)
    assert torch.equal(distiller.predict(batch()), host.predict(batch()))
    assert distiller.student is host.student
    assert distiller.teacher is host.teacher
    assert [id(p) for group in distiller.parameter_groups() for p in group["params"]] == [id(p) for p in host.parameters()]


class ByEpoch(KD):
    """A host with a schedule and a selection of its own, both of which depend on where training stands."""

    def rate(self, base_lr: float) -> float:
        return base_lr * self.plan.epochs / self.progress.epoch

    def select(self) -> Tensor:
        return torch.arange(16 * self.progress.epoch * self.plan.epochs)


def test_the_host_s_schedule_and_selection_rule(tmp_path: Path, digits: ImageData) -> None:
    distiller = DOT(ByEpoch(net(norm=True), Teacher(net(12), precision="fp32")))
    fit(tmp_path, digits, distiller)
    saved = torch.load(tmp_path / "seed0/stage/last.ckpt", weights_only=False)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.05 * 2 / 2)
    assert saved["state_dict"]["student.0.1.num_batches_tracked"] == 1 + 2  # 32 and 64 samples in batches of 32


class StepsItself(KD):
    def __init__(self, *networks: nn.Module) -> None:
        super().__init__(*networks)
        self.automatic_optimization = False


def test_a_host_that_steps_by_itself_is_refused() -> None:
    with pytest.raises(InputError, match=r"^host: got StepsItself, expected a distiller that one optimiser trains"):
        DOT(StepsItself(net(), net(12)))


@pytest.mark.parametrize(
    ("host", "missing"), [(lambda: Supervised(net()), "no distillation term"), (lambda: DistillOnly(net(), net(12)), "no task term")]
)
def test_a_host_with_one_kind_of_loss_is_refused(tmp_path: Path, digits: ImageData, host: Callable[[], Distiller], missing: str) -> None:
    with pytest.raises(InputError, match=rf"^host: got \w+, which has {missing}, expected a distiller with both"):
        fit(tmp_path, digits, DOT(host()))


def test_several_terms_are_summed_on_their_side() -> None:
    distiller = DOT(ManyTerms(net(), Teacher(net(12), precision="fp32")))
    optimizer = started(distiller)
    parameters = optimizer.parameters()
    task, distill = distiller.two_gradients(distiller.losses(batch()), parameters)
    for side, names in ((task, ("ce", "size")), (distill, ("kd", "l1"))):
        terms = distiller.losses(batch()).terms
        expected = torch.autograd.grad(terms[names[0]] + terms[names[1]], parameters)
        torch.testing.assert_close(side, list(expected))
    before = [p.detach().clone() for p in parameters]
    answer = distiller.training_step(batch(), 0)
    assert set(answer["terms"]) == {"ce", "size", "kd", "l1"}
    for p, old, a, b in zip(parameters, before, task, distill, strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(p.detach(), old - 0.05 * (a + b + 5e-4 * old))


def test_each_parameter_has_the_buffers_of_the_losses_that_reach_it() -> None:
    distiller = DOT(crd())
    optimizer = started(distiller)
    for seed in range(3):
        distiller.training_step(batch(seed=seed), seed)
    kinds = {}
    for name, p in distiller.host.named_parameters():
        kinds[name] = (
            {TASK_BUFFER: "A", DISTILL_BUFFER: "B"}.get(next(iter(optimizer.state[p])), "") if len(optimizer.state[p]) == 1 else "S"
        )
    assert {name for name, kind in kinds.items() if kind == "A"} == {"student.3.weight", "student.3.bias"}
    embeddings = {name for name in kinds if "embedding" in name}
    assert len(embeddings) == 4
    assert {name for name, kind in kinds.items() if kind == "B"} == embeddings
    assert {name for name, kind in kinds.items() if kind == "S"} == {"student.0.0.weight", "student.0.0.bias"}


@pytest.mark.parametrize("clip", [None, 0.1])
def test_accumulated_half_batches_are_a_whole_one(tmp_path: Path, clip: float | None) -> None:
    whole, halves = (ImageData("digits", batch_size=size, subset=128, val_subset=40, augment="none") for size in (32, 16))
    options: dict[str, Any] = {"epochs": 2, "schedule": "constant", "clip_norm": clip}
    one = fit(tmp_path / "whole", whole, DOT(kd()), Training(**options))
    two = fit(tmp_path / "halves", halves, DOT(kd()), Training(**options, accumulate=2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


def test_an_epoch_that_ends_within_an_accumulation_steps_with_what_it_has() -> None:
    distiller = DOT(kd())
    optimizer = started(distiller, Training(lr=0.05, accumulate=4))
    distiller.progress = Progress(steps_per_epoch=3)
    before = snapshot(distiller, optimizer)
    for i in range(2):
        distiller.training_step(batch(seed=i), i)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(distiller, optimizer), strict=True))
    distiller.training_step(batch(seed=2), 2)
    assert not all(torch.equal(a, b) for a, b in zip(before, snapshot(distiller, optimizer), strict=False))
    assert distiller._task == distiller._distill == []


def test_clipping_scales_both_gradients_by_the_norm_of_their_sum() -> None:
    free, clipped = DOT(kd()), DOT(kd())
    buffers = []
    for distiller, norm in ((free, None), (clipped, 0.01)):
        optimizer = started(distiller, Training(lr=0.05, weight_decay=0.0, clip_norm=norm))
        distiller.training_step(batch(), 0)  # a first gradient is copied into its buffer as it is
        buffers.append([[optimizer.state[p][name] for p in optimizer.parameters()] for name in (TASK_BUFFER, DISTILL_BUFFER)])
    total = torch.cat([(a + b).flatten() for a, b in zip(*buffers[0], strict=True)]).norm()
    assert total > 0.01
    for side in (0, 1):
        torch.testing.assert_close(buffers[1][side], [g * 0.01 / total for g in buffers[0][side]], rtol=1e-3, atol=1e-9)


def test_a_norm_below_the_limit_is_left_alone() -> None:
    one, other = DOT(kd()), DOT(kd())
    for distiller, norm in ((one, None), (other, 1e6)):
        started(distiller, Training(clip_norm=norm))
        distiller.training_step(batch(), 0)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_scaler_changes_nothing_that_is_finite() -> None:
    plain, scaled = DOT(crd()), DOT(crd())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for distiller, one in ((plain, None), (scaled, scaler)):
        started(distiller, Training(lr=0.05, accumulate=2, clip_norm=0.5), one)
        for i in range(6):
            torch.manual_seed(i)
            distiller.training_step(batch(seed=i), i)
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert scaler.get_scale() == 1024.0
    assert all(p.grad is None for p in scaled.parameters())


class Overflowing(KD):
    """One of the two gradients is not finite, though both losses are, in the second step."""

    side = "task"

    def losses(self, batch: Batch) -> Losses:
        losses = super().losses(batch)
        if self.progress.step != 1:
            return losses
        cusp = (0 * self.student(batch.images)).sum().sqrt()  # 0, and its slope 0 / 0
        groups = {"task": dict(losses.task), "distill": dict(losses.distill)}
        groups[self.side]["cusp"] = cusp
        return Losses(**groups)


@pytest.mark.parametrize("side", ["task", "distill"])
def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_whole(side: str) -> None:
    host = Overflowing(net(), Teacher(net(12), precision="fp32"))
    host.side = side
    distiller, scaler = DOT(host), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = started(distiller, scaler=scaler)
    states = []
    for step in range(3):
        distiller.progress = Progress(step=step, steps_per_epoch=1000)
        distiller.training_step(batch(seed=step), step)
        states.append((snapshot(distiller, optimizer), scaler.get_scale()))
    assert [scale for _, scale in states] == [1024.0, 512.0, 512.0]
    assert all(torch.equal(a, b) for a, b in zip(states[0][0], states[1][0], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(states[1][0], states[2][0], strict=True))
    assert all(value.isfinite().all() for value in states[2][0])


def test_checkpoints_hold_both_buffers_of_every_parameter(tmp_path: Path, digits: ImageData) -> None:
    distiller = DOT(kd())
    fit(tmp_path, digits, distiller)
    state = optimizer_state(tmp_path, distiller)
    assert state.keys() == {name for name, _ in kd().named_parameters()}
    for name, p in kd().named_parameters():
        assert {buffer: value.shape for buffer, value in state[name].items()} == {TASK_BUFFER: p.shape, DISTILL_BUFFER: p.shape}


def test_a_restored_optimiser_goes_on_with_the_same_numbers() -> None:
    whole, first, second = DOT(kd()), DOT(kd()), DOT(kd())
    started(whole)
    early = started(first)
    for i in range(6):
        whole.training_step(batch(seed=i), i)
    for i in range(3):
        first.training_step(batch(seed=i), i)
    second.load_state_dict(first.state_dict())
    started(second).load_state_dict(early.state_dict())
    for i in range(3, 6):
        second.training_step(batch(seed=i), i)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_frozen_parameters_rest(tmp_path: Path, digits: ImageData) -> None:
    student = net()
    student[0].requires_grad_(False)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    after = fit(tmp_path, digits, DOT(kd(student)))
    assert all(torch.equal(after[f"student.{name}"], value) == name.startswith("0.") for name, value in before.items())


def test_a_batch_of_one() -> None:
    distiller = DOT(kd())
    optimizer = started(distiller)
    for i in range(3):
        assert distiller.training_step(batch(1, seed=i), i)["loss"].isfinite()
    assert all(value.isfinite().all() for value in snapshot(distiller, optimizer))


def test_batch_statistics_are_updated_once_a_step(tmp_path: Path, digits: ImageData) -> None:
    after = fit(tmp_path, digits, DOT(kd(net(norm=True))))
    assert after["student.0.1.num_batches_tracked"] == 10  # 5 steps in each of 2 epochs


def test_a_loop_of_one_s_own() -> None:
    distiller = DOT(crd())
    optimizer = DOTOptimizer(distiller.host.parameters(), lr=0.02, momentum=0.9, delta=0.075)
    totals = []
    for _ in range(60):
        losses = distiller.losses(batch())
        task, distill = distiller.two_gradients(losses, optimizer.parameters())
        optimizer.step(task=task, distill=distill)
        totals.append(losses.total.item())
    assert sum(totals[-5:]) < 0.8 * sum(totals[:5])


def test_refuses_optimisers_that_it_is_not_defined_for(tmp_path: Path, digits: ImageData) -> None:
    for plan, got in ((Training(optimizer="adamw"), "adamw"), (Training(nesterov=True), "nesterov")):
        with pytest.raises(InputError, match=rf"^optimizer: got {got}, expected sgd without nesterov"):
            fit(tmp_path / got, digits, DOT(kd()), plan)


@pytest.mark.parametrize(
    ("argument", "options"), [("delta", {"delta": 0.1}), ("delta", {"delta": -0.1}), ("dampening", {"dampening": 2.0})]
)
def test_refuses_values(argument: str, options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: got "):
        DOT(kd(), **options).configure_optimizers()
