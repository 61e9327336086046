from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Lab, LabOptions, Losses, Progress, Teacher, Training
from stillroom.errors import InputError, NonFiniteLoss
from stillroom.tasks.classification import Batch, ImageData


def net(width: int = 4) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def batch(size: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 10, torch.arange(size))


class Matching(Distiller):
    """Cross-entropy and the squared distance of the logits through a learned map; the map has a rate of its own."""

    def __init__(self, student: nn.Module, teacher: Teacher | nn.Module | None, map_lr: float = 0.5) -> None:
        super().__init__(student, teacher)
        self.map = nn.Linear(10, 10)
        self.map_lr = map_lr

    def losses(self, batch: Batch) -> Losses:
        logits_BC = self.student(batch.images)
        assert self.teacher is not None
        distance = (self.map(logits_BC) - self.teacher(batch)).square().mean()
        return Losses({"ce": cross_entropy(logits_BC, batch.labels)}, {"match": distance})

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": list(self.student.parameters())},
            {"params": list(self.map.parameters()), "lr": self.map_lr, "weight_decay": 0.0},
        ]


class TestLosses:
    def test_totals_are_plain_sums(self) -> None:
        losses = Losses({"ce": torch.tensor(1.0), "box": torch.tensor([2.0])}, {"kd": torch.tensor(4.0), "hint": torch.tensor([[8.0]])})
        assert (losses.task_total, losses.distill_total, losses.total) == (torch.tensor(3.0), torch.tensor(12.0), torch.tensor(15.0))
        assert all(total is not None and total.shape == () for total in (losses.task_total, losses.distill_total, losses.total))
        assert list(losses.terms) == ["ce", "box", "kd", "hint"]

    def test_one_kind_alone(self) -> None:
        task, distill = Losses({"ce": torch.tensor(1.0)}), Losses({}, {"kd": torch.tensor(2.0)})
        assert task.distill_total is None
        assert task.total == 1
        assert distill.task_total is None
        assert distill.total == 2

    def test_gradients_reach_every_term(self) -> None:
        a, b = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
        Losses({"ce": 3 * a}, {"kd": 5 * b + a}).total.backward()
        assert (a.grad, b.grad) == (torch.tensor(4.0), torch.tensor(5.0))

    def test_a_name_belongs_to_one_term(self) -> None:
        with pytest.raises(InputError, match=r"^Losses: got the term 'kd' in both groups"):
            Losses({"kd": torch.tensor(1.0)}, {"kd": torch.tensor(1.0)})

    def test_a_vector_is_no_term(self) -> None:
        with pytest.raises(InputError, match=r"^Losses: got the term 'ce' of shape \[3\], expected scalars"):
            Losses({"ce": torch.ones(3)})

    def test_no_term_at_all(self) -> None:
        with pytest.raises(InputError, match=r"^Losses: got no term at all"):
            _ = Losses({}).total


def test_the_question_must_be_answered() -> None:
    with pytest.raises(TypeError, match=r"Distiller does not define losses\(batch\)"):
        Distiller(net()).losses(batch())


def test_a_bare_teacher_is_wrapped_and_frozen() -> None:
    network = net(8).train()
    distiller = Matching(net(), network)
    assert isinstance(distiller.teacher, Teacher)
    distiller.train()
    distiller.losses(batch()).total.backward()
    assert all(p.grad is None for p in network.parameters())
    made = Teacher(net(8))
    assert Matching(net(), made).teacher is made
    assert Distiller(net()).teacher is None


def test_the_teacher_is_no_part_of_the_module() -> None:
    teacher = net(8)
    distiller = Matching(net(), teacher)
    mine = {id(p) for p in distiller.parameters()}
    assert not mine & {id(p) for p in teacher.parameters()}
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"student", "map"}
    assert teacher not in list(distiller.modules())


def test_the_teacher_s_answer_does_not_follow_the_distiller_s_mode() -> None:
    noisy = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(192), nn.Linear(192, 10))
    distiller = Matching(net(), noisy)
    statistics = copy.deepcopy({name: value.clone() for name, value in noisy.state_dict().items()})
    assert distiller.teacher is not None
    first = distiller.train().teacher(batch())
    second = distiller.eval().teacher(batch())
    assert torch.equal(first, second)
    for network in distiller.teacher.networks:
        for name, value in network.state_dict().items():
            assert torch.equal(value, statistics[name])


def test_prediction_is_the_student_s() -> None:
    distiller = Matching(net(), net(8)).eval()
    expected = distiller.student(batch().images)
    assert torch.equal(distiller.predict(batch()), expected)
    assert torch.equal(distiller(batch().images), expected)


def test_frozen_parameters_are_left_out_of_the_default_group() -> None:
    student = net()
    student[0].requires_grad_(False)
    [group] = Distiller(student).parameter_groups()
    assert [id(p) for p in group["params"]] == [id(p) for p in student[4].parameters()]


def test_a_loop_of_one_s_own_needs_nothing_else() -> None:
    distiller = Matching(net(), net(8))
    distiller.progress = Progress(epoch=2, epochs=3, step=7, steps_per_epoch=5)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    totals = []
    for _ in range(25):
        loss = distiller.losses(batch()).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.9 * totals[0]
    assert distiller.progress.steps == 15


@pytest.mark.parametrize(("optimizer", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_every_group_goes_to_the_plan_s_optimiser(optimizer: Any, kind: type) -> None:
    distiller = Matching(net(), net(8))
    distiller.plan = Training(optimizer=optimizer, lr=0.2, weight_decay=0.01)
    made = distiller.configure_optimizers()
    assert isinstance(made, kind)
    assert [(group["lr"], group["weight_decay"]) for group in made.param_groups] == [(0.2, 0.01), (0.5, 0.0)]


class Watched(Matching):
    """Notes the rates that each step is taken with, and the place that the loss is told."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__(student, teacher)
        self._rates: list[list[float]] = []
        self._places: list[Progress] = []

    def losses(self, batch: Batch) -> Losses:
        self._rates.append([group["lr"] for group in self.optimizers().param_groups])  # type: ignore[union-attr]
        self._places.append(self.progress)
        return super().losses(batch)


def test_the_schedule_moves_every_group_from_its_own_rate(tmp_path: Path, digits: ImageData) -> None:
    distiller = Watched(net(), net(8))
    plan = Training(epochs=3, lr=0.2, milestones=(2,), decay=0.1, warmup_epochs=0.0)
    Lab(LabOptions(out=tmp_path, accelerator="cpu")).fit(distiller, digits, plan, name="stage")
    expected = [[0.2, 0.5]] * 10 + [[0.02, 0.05]] * 5
    torch.testing.assert_close(torch.tensor(distiller._rates), torch.tensor(expected))
    assert distiller._places == [Progress(1 + step // 5, 3, step, 5) for step in range(15)]


def test_warm_up_and_cosine_reach_every_group(tmp_path: Path, digits: ImageData) -> None:
    distiller = Watched(net(), net(8))
    Lab(LabOptions(out=tmp_path, accelerator="cpu")).fit(
        distiller, digits, Training(epochs=3, lr=0.2, schedule="cosine", warmup_epochs=1), name="stage"
    )
    rates = torch.tensor(distiller._rates, dtype=torch.float64)
    torch.testing.assert_close(rates[:, 1], 2.5 * rates[:, 0])
    assert (rates[:5, 0].diff() > 0).all()
    assert (rates[5:, 0].diff() < 0).all()
    assert rates.max() <= 0.5


def test_gradient_accumulation_and_clipping_are_the_plan_s(tmp_path: Path, digits: ImageData) -> None:
    start = net()
    before = [p.detach().clone() for p in start.parameters()]
    plan = Training(epochs=1, lr=1.0, momentum=0.0, weight_decay=0.0, accumulate=5, clip_norm=1e-3, schedule="constant")
    trained = Lab(LabOptions(out=tmp_path, accelerator="cpu")).fit(Plain(start), digits, plan, name="stage")
    moved = torch.cat([(p - old).flatten() for p, old in zip(trained.network.parameters(), before, strict=True)])
    torch.testing.assert_close(moved.norm(), torch.tensor(1e-3), rtol=1e-2, atol=0)  # one step, of the clipped length


class Plain(Distiller):
    """Cross-entropy alone."""

    def losses(self, batch: Batch) -> Losses:
        return Losses({"ce": cross_entropy(self.student(batch.images), batch.labels)})


def test_checked_losses_name_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = Matching(net(), net(8))
    distiller.progress = Progress(epoch=1, epochs=2, step=9, steps_per_epoch=10)

    def broken(_: Any) -> Losses:
        return Losses({"ce": torch.tensor(1.0)}, {"match": torch.tensor(torch.nan)})

    monkeypatch.setattr(distiller, "losses", broken)
    with pytest.raises(NonFiniteLoss, match="step 9: match = nan"):
        distiller.checked_losses(batch())


def test_a_step_returns_its_terms_without_their_graph() -> None:
    answer = Matching(net(), net(8)).training_step(batch(), 0)
    assert isinstance(answer["loss"], Tensor)
    assert answer["loss"].requires_grad
    assert set(answer["terms"]) == {"ce", "match"}
    assert not any(term.requires_grad for term in answer["terms"].values())
