"""ORC: the roles, the iteration and its switches, by hand and in the Lab. Its command has a test file of its own."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Lab, LabOptions, Teacher, Training
from stillroom.engine.teacher import Renormalise
from stillroom.errors import InputError, NonFiniteLoss
from stillroom.losses.logits import kd_loss
from stillroom.methods.kd import KD
from stillroom.methods.orc import ORC, Iteration, distiller, loss
from stillroom.methods.orc.roles import evaluate_group
from stillroom.tasks.classification import Batch, ImageData
from tests.methods import orc_job
from tests.processes import Processes

pytestmark = pytest.mark.usefixtures("kept_checkpoints")

PLAN = Training(epochs=2, lr=0.05, schedule="constant")


def net(width: int, *, norm: bool = True, classes: int = 10) -> nn.Sequential:
    torch.manual_seed(width)
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3), *([nn.BatchNorm2d(width)] * norm), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * width, classes))


def orc(group: tuple[int, ...] = (8, 6), *, norm: bool = True, kind: type[ORC] = ORC, **options: Any) -> ORC:
    """The target has width 4, the pivot 12."""
    return kind(net(4, norm=norm), net(12, norm=norm), [net(width, norm=norm) for width in group], **options)


def batch(size: int = 16, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 10, torch.arange(size))


def started(made: ORC, plan: Training = PLAN) -> list[torch.optim.Optimizer]:
    made.plan = plan
    return made.configure_optimizers()


def parameters(network: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def changed(network: nn.Module, before: list[Tensor]) -> bool:
    return any(not torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True))


class Broken(nn.Module):
    """Answers with one number for everything."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(value))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale.expand(len(images), 10) * torch.ones(10)


# The roles -----------------------------------------------------------------------------------------------------------------------------


def by_hand(logits: list[list[list[float]]], labels: list[int], tau: float) -> tuple[list[float], list[int], list[int], list[int]]:
    """Steps 1 to 3 as the specification's sentences say them: losses, quotas, feedback samples, ranking."""
    count = len(labels)
    ce = [[math.log(sum(math.exp(v - z[y]) for v in z)) for z, y in zip(network, labels, strict=True)] for network in logits]
    losses = [sum(row) / count for row in ce]
    ranking = sorted(range(len(logits)), key=lambda i: (losses[i], i))
    errors = [[n for n, z in enumerate(network) if z.index(max(z)) != labels[n]] for network in logits]
    remaining = [i for i in range(len(logits)) if errors[i]]
    if not remaining:
        return losses, [0] * len(logits), list(range(count)), ranking
    weights = {i: math.exp((losses[i] - max(losses)) / tau) for i in remaining}
    exact = {i: weights[i] / sum(weights.values()) * count for i in remaining}
    quotas = [math.floor(exact[i]) if i in exact else 0 for i in range(len(logits))]
    for i in sorted(remaining, key=lambda i: (-(exact[i] - math.floor(exact[i])), i))[: count - sum(quotas)]:
        quotas[i] += 1
    feedback: list[int] = []
    for i in remaining:
        hardest = sorted(errors[i], key=lambda n: (-ce[i][n], n))
        feedback += [hardest[m % len(hardest)] for m in range(quotas[i])]
    return losses, quotas, feedback, ranking


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.sampled_from([0.0, 1.0, 3.0, 50.0]), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(2, 5),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_evaluation_is_what_the_specification_says(seed: int, skills: list[float], count: int, classes: int, tau: float) -> None:
    """Networks of all skills: one that adds 50 to the label's logit never errs."""
    numbers = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=numbers)
    logits = torch.randn(len(skills), count, classes, generator=numbers, dtype=torch.float64)
    logits += torch.tensor(skills).view(-1, 1, 1) * torch.nn.functional.one_hot(labels, classes)
    losses, quotas, feedback, ranking = by_hand(logits.tolist(), labels.tolist(), tau)
    found = evaluate_group(logits, labels, feedback_temperature=tau)
    assert found.mean_ce_K.tolist() == pytest.approx(losses)
    assert found.quota_K.tolist() == quotas
    assert found.feedback_M.tolist() == feedback
    assert found.ranking_K.tolist() == ranking


def test_feedback_samples_are_errors_of_the_network_that_adds_them() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 64, 10), torch.randint(10, (64,))
    found = evaluate_group(logits, labels)
    assert int(found.quota_K.sum()) == len(found.feedback_M) == 64
    for i, part in enumerate(found.feedback_M.split(found.quota_K.tolist())):
        assert found.error_KN[i, part].all()
    assert found.ratio_K.sum() == pytest.approx(1.0)
    sharper = evaluate_group(logits, labels, feedback_temperature=0.01)
    assert int(sharper.quota_K.argmax()) == int(found.mean_ce_K.argmax())
    assert int(sharper.quota_K.max()) > int(found.quota_K.max())


def test_a_network_that_diverged_is_last_and_adds_nothing() -> None:
    logits, labels = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    for value in (torch.nan, torch.inf):
        with_it = logits.clone()
        with_it[0, 3] = value
        found, others = evaluate_group(with_it, labels), evaluate_group(logits[1:], labels)
        assert found.ranking_K.tolist() == [*(1 + others.ranking_K).tolist(), 0]
        assert found.quota_K.tolist() == [0, *others.quota_K.tolist()]
        assert torch.equal(found.feedback_M, others.feedback_M)


def test_equal_losses_are_ranked_by_index() -> None:
    logits = torch.randn(1, 6, 4).repeat(3, 1, 1)
    assert evaluate_group(logits, torch.zeros(6, dtype=torch.int64)).ranking_K.tolist() == [0, 1, 2]


# The teachings -------------------------------------------------------------------------------------------------------------------------


def test_an_ensemble_of_equal_teachers_is_one_term_for_each() -> None:
    student, teacher = torch.randn(2, 6, 5)
    one, other = (loss.group_loss(student, [teacher] * 3, temperature=2.0, teaching=kind) for kind in ("individual", "ensemble"))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, 3 * kd_loss(student, teacher, 2.0))
    mixed = [teacher, teacher.flip(1)]
    assert not torch.allclose(*(loss.group_loss(student, mixed, temperature=2.0, teaching=kind) for kind in ("individual", "ensemble")))


def test_mixing_is_between_the_two_labels() -> None:
    logits, labels, partners = torch.randn(6, 5), torch.arange(6) % 5, torch.arange(6).flip(0) % 5
    for lam, expected in ((1.0, labels), (0.0, partners)):
        torch.testing.assert_close(loss.intensive_loss(logits, labels, partners, torch.tensor(lam)), cross_entropy(logits, expected))


def test_half_precision_logits_are_compared_in_float32() -> None:
    student, teacher, labels = torch.randn(6, 5).bfloat16(), torch.randn(6, 5).bfloat16(), torch.arange(6) % 5
    found = loss.student_loss(student, [teacher], labels, beta=0.5, temperature=4.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss.student_loss(student.float(), [teacher.float()], labels, beta=0.5, temperature=4.0))


# The iteration -------------------------------------------------------------------------------------------------------------------------


def step_by_step(made: ORC, data: Batch, plan: Training) -> dict[str, Tensor]:
    """One iteration written down once more, for k = 1 and plain SGD, with its own forward passes at every place."""
    pivot, members = copy.deepcopy(made.pivot), [copy.deepcopy(member) for member in made.members]
    lam, order = made.draw(len(data.labels), torch.device("cpu"))

    def update(network: nn.Module, total: Tensor, lr: float) -> None:
        gradients = torch.autograd.grad(total, list(network.parameters()))
        with torch.no_grad():
            for p, gradient in zip(network.parameters(), gradients, strict=True):
                p -= lr * (gradient + plan.weight_decay * p)

    def ce(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels)

    answers = [member(data.images) for member in members]
    found = evaluate_group(torch.stack(answers), data.labels)
    partners = found.feedback_M[order]
    mixed = pivot(lam * data.images + (1 - lam) * data.images[partners])
    update(pivot, lam * ce(mixed, data.labels) + (1 - lam) * ce(mixed, data.labels[partners]), plan.lr * made.pivot_lr_factor)
    taught = pivot.eval()(data.images).detach()
    pivot.train()
    best = int(torch.stack([ce(z, data.labels) for z in answers]).argmin())
    update(members[best], 0.1 * ce(answers[best], data.labels) + 0.9 * kd_loss(answers[best], taught, 4.0), plan.lr)
    corrected = copy.deepcopy(members[best])(data.images).detach()
    for i, member in enumerate(members):
        if i != best:
            told = kd_loss(answers[i], corrected, 4.0) + kd_loss(answers[i], taught, 4.0)
            update(member, 0.1 * ce(answers[i], data.labels) + 0.9 * told, plan.lr)
    networks = {"pivot": pivot, "group.0": members[0], "group.1": members[1], "student": members[2]}
    return {f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()}


class Fixed(ORC):
    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        return torch.tensor(0.3), torch.arange(count).roll(5)


def test_an_iteration_is_what_the_paper_says_running_statistics_included() -> None:
    plan = Training(lr=0.1, momentum=0.0, weight_decay=1e-3)
    made = orc(kind=Fixed, pivot_lr_factor=0.2)
    optimizers = started(made, plan)
    for seed in range(3):
        expected = step_by_step(made, batch(seed=seed), plan)
        made.iterate(batch(seed=seed), optimizers)
        state = made.state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert int(made.promotions.sum()) == 3


@pytest.mark.parametrize("options", [{}, {"num_promoted": 2}, {"intensive": False}, {"private": False}, {"promotion": "none"}], ids=str)
def test_every_network_that_learns_makes_one_step_and_no_more(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = orc(**options)
    optimizers = started(made)
    assert len(optimizers) == 3 + made.intensive
    steps: list[int] = []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: steps.append(optimizers.index(self)))
    made.iterate(batch(), optimizers)
    assert sorted(steps) == list(range(len(optimizers)))
    assert all(p.grad is None for p in made.parameters())


@pytest.mark.parametrize("reduced", [False, True], ids=["float32", "bfloat16"])
def test_teachers_answer_after_their_own_update(reduced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast keeps weights in reduced precision from one forward pass to the next, which would be those of before the update."""
    told: list[list[Tensor]] = []
    original = distiller.student_loss

    def listening(student_NC: Tensor, teachers: list[Tensor], labels_N: Tensor, **options: Any) -> Tensor:
        told.append(teachers)
        return original(student_NC, teachers, labels_N, **options)

    monkeypatch.setattr(distiller, "student_loss", listening)
    made = orc(promotion="fixed", fixed_index=1, pivot_lr_factor=1.0)
    optimizers = started(made, Training(lr=0.5))
    precision = torch.autocast("cpu", torch.bfloat16) if reduced else nullcontext()
    with precision:
        done = made.iterate(batch(), optimizers)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        temporary = copy.deepcopy(made.group[1])(batch().images)
        pivot = copy.deepcopy(made.pivot).eval()(batch().images)
    assert len(told) == 2
    for teachers in told:
        torch.testing.assert_close(teachers[0], temporary)
        torch.testing.assert_close(teachers[1], pivot)
    torch.testing.assert_close(done.pivot_NC, pivot)


def test_running_statistics_move_once_in_an_iteration() -> None:
    made = orc()
    optimizers = started(made)
    for seed in range(4):
        made.iterate(batch(seed=seed), optimizers)
    counted = {name: int(value) for name, value in made.state_dict().items() if name.endswith("num_batches_tracked")}
    assert len(counted) == 4
    assert set(counted.values()) == {4}
    assert all(module.training for module in made.modules())


def test_a_group_of_one_with_a_frozen_pivot_is_kd(tmp_path: Path, digits: ImageData) -> None:
    pivot = net(12)
    alone = orc((), promotion="none", intensive=False, balance=0.9)
    kd = KD(net(4), Teacher(pivot, precision="fp32", fold=False), temperature=4.0, task_weight=0.1, kd_weight=0.9)
    states = []
    for made in (alone, kd):
        Lab(LabOptions(out=tmp_path / type(made).__name__, accelerator="cpu")).fit(made, digits, PLAN, name="stage")
        states.append(made.student.state_dict())
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-4, atol=1e-5)


# The switches --------------------------------------------------------------------------------------------------------------------------


def promoted(made: ORC, iterations: int = 3) -> list[int]:
    optimizers = started(made)
    for seed in range(iterations):
        made.iterate(batch(seed=seed), optimizers)
    return made.promotions.tolist()


def test_promotion_rules() -> None:
    assert sum(promoted(orc())) == 3
    assert sum(promoted(orc(num_promoted=2))) == 6
    assert promoted(orc(promotion="fixed", fixed_index=1)) == [0, 3, 0]
    assert promoted(orc(promotion="fixed", fixed_index=2)) == [0, 0, 3]
    assert promoted(orc(promotion="none")) == promoted(orc(num_promoted=0)) == [0, 0, 0]


def test_the_best_on_the_batch_is_promoted_and_its_role_changes() -> None:
    made = orc()
    optimizers = started(made)
    for seed in range(6):
        losses = [cross_entropy(copy.deepcopy(member)(batch(seed=seed).images), batch().labels) for member in made.members]
        done = made.iterate(batch(seed=seed), optimizers)
        assert list(done.private) == [int(torch.stack(losses).argmin())]
        assert sorted([*done.private, *done.group]) == [0, 1, 2]


def test_without_private_teaching_a_temporary_teacher_learns_from_labels_only() -> None:
    for private, weight in ((True, 0.9), (False, 0.0)):
        made = orc(promotion="fixed", private=private)
        before = copy.deepcopy(made.group[0])(batch().images)
        done = made.iterate(batch(), started(made))
        torch.testing.assert_close(
            done.private[0], 0.1 * cross_entropy(before, batch().labels) + weight * kd_loss(before, done.pivot_NC, 4.0)
        )


def test_without_intensive_teaching_the_pivot_stays_as_it_is() -> None:
    made = orc(intensive=False)
    before = {name: value.clone() for name, value in made.pivot.state_dict().items()}
    assert made.iterate(batch(), started(made)).intensive is None
    assert all(torch.equal(before[name], value) for name, value in made.pivot.state_dict().items())
    refined = orc()
    refined.iterate(batch(), started(refined))
    assert changed(refined.pivot, parameters(net(12)))


@pytest.mark.parametrize(("mixing", "lam"), [("train", 1.0), ("feedback", 0.0)])
def test_what_the_pivot_is_refined_on(mixing: str, lam: float) -> None:
    made = orc(mixing=mixing)
    shown: list[Tensor] = []
    made.pivot.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    done = made.iterate(batch(), started(made))
    if lam:
        assert torch.equal(shown[0], batch().images)
    else:
        images = {tuple(image.flatten().tolist()) for image in batch().images[done.evaluation.feedback_M]}
        assert {tuple(image.flatten().tolist()) for image in shown[0]} == images
    assert torch.equal(shown[1], batch().images)


def test_the_ratio_of_the_mixture_is_drawn_from_its_distribution() -> None:
    torch.manual_seed(0)
    made = orc(mixup_alpha=0.2)
    drawn = torch.stack([made.draw(4, torch.device("cpu"))[0] for _ in range(400)])
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert float(drawn.var()) == pytest.approx(0.25 / 1.4, rel=0.15)  # a^2 / (4 a^2 (2 a + 1))


def test_the_pivot_reads_images_in_its_own_statistics() -> None:
    other = Renormalise((0.5,) * 3, (0.5,) * 3, (0.1,) * 3, (0.2,) * 3)
    made = orc(renormalise=other)
    shown: list[Tensor] = []
    made.pivot.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    made.iterate(batch(), started(made))
    torch.testing.assert_close(shown[1], other(batch().images))


# In training ---------------------------------------------------------------------------------------------------------------------------


def fit(out: Path, data: ImageData, made: ORC, plan: Training = PLAN, **options: Any) -> dict[str, Any]:
    trained = Lab(LabOptions(out=out, accelerator="cpu", **options)).fit(made, data, plan, name="orc")
    return json.loads((trained.folder / "stage.json").read_text())["result"]


def test_the_record_says_who_was_promoted_and_how_the_pivot_fares(tmp_path: Path, digits: ImageData) -> None:
    made = orc(names=["large", "middle", "small"])
    row = fit(tmp_path, digits, made)["history"][-1]
    assert sum(row[f"train/promoted/{name}"] for name in made.names) == pytest.approx(1.0)
    assert made.promotions.sum() == 10
    assert 0 <= row["train/accuracy/pivot"] <= 100
    assert 0.1 <= row["train/confidence/pivot"] <= 1
    assert 0 < row["train/feedback/samples"] <= 32
    assert row["train/total"] == pytest.approx(row["train/intensive"] + row["train/private"] + row["train/group"])


def test_each_network_has_its_own_rate_on_the_plan_s_schedule(tmp_path: Path, digits: ImageData) -> None:
    made = orc(pivot_lr_factor=0.01)
    seen: list[list[float]] = []

    class Watched(ORC):
        def iterate(self, batch: Any, optimizers: Any) -> Iteration:
            seen.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
            return super().iterate(batch, optimizers)

    made.__class__ = Watched
    fit(tmp_path, digits, made, Training(epochs=2, lr=0.1, milestones=(1,)))
    assert seen[0] == pytest.approx([0.1, 0.1, 0.1, 0.001])
    assert seen[-1] == pytest.approx([0.01, 0.01, 0.01, 0.0001])


def test_gradients_are_clipped_network_by_network() -> None:
    made = orc(norm=False)
    before = {name: parameters(network) for name, network in (("pivot", made.pivot), ("student", made.student))}
    made.iterate(batch(), started(made, Training(lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=1e-3)))
    for name, norm in (("pivot", 1e-5), ("student", 1e-3)):
        moved = torch.cat([(p - old).flatten() for p, old in zip(parameters(getattr(made, name)), before[name], strict=True)])
        assert moved.norm().item() == pytest.approx(norm, rel=0.02)


def test_the_scaler_of_mixed_precision_changes_nothing_that_is_finite() -> None:
    states = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        made = orc(kind=Fixed)
        made.gradient_scaler = lambda scaler=scaler: scaler  # type: ignore[method-assign]
        optimizers = started(made, Training(lr=0.05, clip_norm=0.5))
        made.optimizers = lambda use_pl_optimizer=True, kept=optimizers: kept  # type: ignore[method-assign, assignment]
        for seed in range(3):
            made.training_step(batch(seed=seed), seed)
        states.append(made.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-5, atol=1e-7)


def test_a_member_that_diverged_is_never_promoted_and_harms_nobody(tmp_path: Path, digits: ImageData) -> None:
    made = ORC(net(4), net(12), [Broken(math.nan), net(6)])
    result = fit(tmp_path, digits, made)
    assert made.promotions[0] == 0
    assert made.promotions.sum() == 10
    assert math.isfinite(result["metrics"]["nll"])
    assert all(value.isfinite().all() for name, value in made.state_dict().items() if not name.startswith("group.0"))


def test_a_target_or_a_pivot_that_diverged_stops_the_run(tmp_path: Path, digits: ImageData) -> None:
    with pytest.raises(NonFiniteLoss, match="target = nan"):
        fit(tmp_path / "target", digits, ORC(Broken(math.nan), net(12), [net(6)]))
    with pytest.raises(NonFiniteLoss, match="intensive = nan"):
        fit(tmp_path / "pivot", digits, ORC(net(4), Broken(math.nan), [net(6)]))


class Killed(Exception):
    """Stands for a kill."""


class Falling(ORC):
    fall_at: int | None = None

    def iterate(self, batch: Any, optimizers: Any) -> Iteration:
        if self.progress.step == type(self).fall_at:
            raise Killed
        return super().iterate(batch, optimizers)


def dropping(width: int) -> nn.Sequential:
    return nn.Sequential(net(width), nn.Dropout(0.1))  # the step's own randomness must be replayed too


def killed_at(out: Path, data: ImageData, steps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record and the last checkpoint of a run that was killed at these steps, and continued."""
    for step in (*steps, None):
        monkeypatch.setattr(Falling, "fall_at", step)
        made = Falling(dropping(4), dropping(12), [dropping(8), dropping(6)])
        with nullcontext() if step is None else pytest.raises(Killed):
            record = fit(out, data, made, checkpoint_steps=2)
    for row in record["history"]:
        del row["seconds"], row["samples_per_second"]
    checkpoint = torch.load(out / "seed0/orc/last.ckpt", weights_only=True)
    return {key: record[key] for key in ("metrics", "best", "history")}, {
        key: checkpoint[key] for key in ("state_dict", "optimizer_states")
    }


def test_killed_runs_end_with_the_same_networks_and_counts(tmp_path: Path, digits: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = killed_at(tmp_path / "whole", digits, (), monkeypatch)
    for steps in ((1,), (3, 7), (5,), (9,)):
        again = killed_at(tmp_path / f"killed{steps[0]}", digits, steps, monkeypatch)
        assert again[0] == whole[0]
        torch.testing.assert_close(again[1], whole[1], rtol=0, atol=0)
    assert whole[1]["state_dict"]["promotions"].sum() == 10
    assert len(whole[1]["optimizer_states"]) == 4
    assert all(len(state["state"]) for state in whole[1]["optimizer_states"])


def test_processes_agree_on_roles_and_end_equal(tmp_path: Path, processes: Processes) -> None:
    """Without intensive teaching, whose feedback samples are each process's own, two processes are one."""
    one, two = orc_job.main(tmp_path / "one", 1), processes.on_two_ranks(orc_job.main, tmp_path / "two", 2)
    torch.testing.assert_close(two[0], two[1], rtol=0, atol=0)
    torch.testing.assert_close(one["frozen pivot"], two[0]["frozen pivot"], rtol=1e-4, atol=1e-5)
    for state in (one, *two):
        assert all(networks["promotions"].sum() == 15 for networks in state.values())


# What cannot be used -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "options", "says"),
    [
        ("num_promoted", {"num_promoted": 3}, "got 3, expected a number from 0 to 2: of a group of 3 networks"),
        ("num_promoted", {"num_promoted": -1}, "got -1"),
        ("fixed_index", {"fixed_index": 3}, "got 3, expected a number from 0 to 2"),
        ("balance", {"balance": 1.5}, "got 1.5, expected a number from 0 to 1"),
        ("balance", {"balance": math.nan}, "got nan"),
        ("temperature", {"temperature": 0.0}, "got 0.0"),
        ("mixup_alpha", {"mixup_alpha": 0.0}, "got 0.0"),
        ("feedback_temperature", {"feedback_temperature": -1.0}, "got -1.0"),
        ("pivot_lr_factor", {"pivot_lr_factor": -0.1}, "got -0.1"),
        ("promotion", {"promotion": "best"}, "got best, expected one of dynamic, fixed, none"),
        ("teaching", {"teaching": "both"}, "got both"),
        ("mixing", {"mixing": "no"}, "got no"),
        ("names", {"names": ["a", "b"]}, "3 different names"),
        ("names", {"names": ["a", "b", "a"]}, "3 different names"),
    ],
)
def test_refuses_values(argument: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: .*") as caught:
        orc(**options)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("make", "data", "says"),
    [
        (
            lambda: ORC(net(4), net(12), [net(6, classes=9)]),
            batch(),
            "group: got networks that answer with member1 [16, 9], target [16, 10]",
        ),
        (lambda: ORC(net(4), net(12, classes=9), [net(6)]), batch(), "group: got networks that answer with target [16, 10], pivot [16, 9]"),
        (orc, batch()._replace(labels=torch.rand(16, 10)), "labels: got torch.float32 of shape [16, 10]"),
        (lambda: ORC(vector(4), vector(12), [vector(6)]), batch(1), "batch_size: got 1, expected at least 2 images for each process"),
    ],
    ids=["classes", "pivot's classes", "soft labels", "batch of one"],
)
def test_refuses_what_does_not_fit_together(make: Callable[[], ORC], data: Batch, says: str) -> None:
    made = make()
    with pytest.raises(InputError) as caught:
        made.iterate(data, started(made))
    assert says in str(caught.value)


def vector(width: int) -> nn.Sequential:
    """A network whose batch norm sees one number of each image."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.BatchNorm1d(width), nn.Linear(width, 10))


def test_a_batch_of_one_without_batch_norm() -> None:
    made = orc(norm=False)
    optimizers = started(made)
    for seed in range(3):
        done = made.iterate(batch(1, seed=seed), optimizers)
        assert done.evaluation.feedback_M.tolist() == [0]
    assert all(p.isfinite().all() for p in made.parameters())


def test_refuses_to_accumulate_and_to_be_a_host() -> None:
    with pytest.raises(InputError, match=r"^accumulate: got 2, expected 1: ORC's networks change their roles"):
        started(orc(), Training(accumulate=2))
    with pytest.raises(InputError, match=r"^losses: got ORC, expected iterate\(batch, optimizers\)"):
        orc().losses(batch())


def test_a_loop_of_one_s_own_teaches_everybody() -> None:
    made = orc(balance=0.2, pivot_lr_factor=1.0)
    optimizers = started(made, Training(lr=0.05))
    networks = [*made.members, made.pivot]

    def losses() -> list[float]:
        with torch.no_grad():
            return [float(cross_entropy(copy.deepcopy(network)(batch().images), batch().labels)) for network in networks]

    before = losses()
    for _ in range(60):
        made.iterate(batch(), optimizers)
    assert all(now < 0.8 * then for now, then in zip(losses(), before, strict=True))
