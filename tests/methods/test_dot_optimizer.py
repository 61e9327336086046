"""DOT's optimiser: against a plain transcription of its rules, against SGD, and as a torch optimiser."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from stillroom.errors import InputError
from stillroom.methods.dot.optimizer import DISTILL_BUFFER, TASK_BUFFER, DOTOptimizer

SHAPES = [(3, 4), (5,), (2, 3), ()]
Gradients = list[Tensor | None]


class Plain:
    """The rules one parameter at a time, in float64."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float, delta: float, weight_decay: float = 0.0, dampening: float = 0.0):
        self.params = [p.detach().double().clone() for p in params]
        self.v_ce: dict[int, Tensor] = {}
        self.v_kd: dict[int, Tensor] = {}
        self.lr, self.decay, self.d = lr, weight_decay, dampening
        self.mu_ce, self.mu_kd = momentum - delta, momentum + delta
        self.mu_bar = (self.mu_ce + self.mu_kd) / 2

    def step(self, task: Gradients, distill: Gradients) -> None:
        for i, g_ce in enumerate(task):
            if g_ce is None:
                continue
            h = g_ce.double() + self.decay * self.params[i]
            if self.mu_ce == 0:
                self.params[i] = self.params[i] - self.lr * h
                continue
            mu = self.mu_bar if distill[i] is None else self.mu_ce
            self.v_ce[i] = mu * self.v_ce[i] + (1 - self.d) * h if i in self.v_ce else h
            self.params[i] = self.params[i] - self.lr * self.v_ce[i]
        for i, g_kd in enumerate(distill):
            if g_kd is None:
                continue
            if i not in self.v_kd:
                self.v_kd[i] = g_kd.double()
            elif task[i] is not None:
                self.v_kd[i] = self.mu_kd * self.v_kd[i] + (1 - self.d) * g_kd.double()
            else:
                self.v_kd[i] = self.mu_bar * self.v_kd[i] + (1 - self.d) * (g_kd.double() + self.decay * self.params[i])
            self.params[i] = self.params[i] - self.lr * self.v_kd[i]


def draw_params(generator: torch.Generator, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in SHAPES]


def draw_gradients(generator: torch.Generator, present: float = 1.0, dtype: torch.dtype = torch.float64) -> Gradients:
    """One gradient for each parameter; each is absent with probability 1 - `present`."""
    drawn = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return [g if torch.rand((), generator=generator) < present else None for g in drawn]


def buffers(optimizer: DOTOptimizer, name: str) -> dict[int, Tensor]:
    return {i: optimizer.state[p][name] for i, p in enumerate(optimizer.parameters()) if name in optimizer.state[p]}


@settings(deadline=None, max_examples=60)
@given(
    momenta=st.sampled_from([(0.9, 0.075), (0.9, 0.0), (0.9, 0.09), (0.45, 0.45), (0.8, -0.1), (0.3, -0.3), (0.0, 0.0)]),
    weight_decay=st.sampled_from([0.0, 1e-2]),
    dampening=st.sampled_from([0.0, 0.3]),
    present=st.sampled_from([1.0, 0.6, 0.2]),
    seed=st.integers(0, 9999),
)
def test_follows_the_rules(momenta: tuple[float, float], weight_decay: float, dampening: float, present: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    params = draw_params(generator)
    values: dict[str, Any] = dict(zip(("momentum", "delta"), momenta, strict=True), weight_decay=weight_decay, dampening=dampening)
    ours, plain = DOTOptimizer(params, lr=0.1, **values), Plain(params, lr=0.1, **values)
    for step in range(7):
        if step == 4:
            ours.param_groups[0]["lr"] = plain.lr = 0.01
        task, distill = draw_gradients(generator, present), draw_gradients(generator, present)
        given_gradients = copy.deepcopy((task, distill))
        ours.step(task=task, distill=distill)
        plain.step(*given_gradients)
        torch.testing.assert_close([p.detach() for p in params], plain.params, rtol=1e-10, atol=1e-12)
        for before, after in zip((*given_gradients[0], *given_gradients[1]), (*task, *distill), strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=0, msg="a gradient was changed")
    torch.testing.assert_close(buffers(ours, TASK_BUFFER), plain.v_ce, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(buffers(ours, DISTILL_BUFFER), plain.v_kd, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(momentum=st.sampled_from([0.0, 0.5, 0.9]), weight_decay=st.sampled_from([0.0, 5e-4, 0.1]), seed=st.integers(0, 9999))
def test_without_a_gap_it_is_sgd_on_the_summed_loss(momentum: float, weight_decay: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    params = draw_params(generator)
    twins = [p.detach().clone().requires_grad_() for p in params]
    dot = DOTOptimizer(params, lr=0.1, momentum=momentum, delta=0.0, weight_decay=weight_decay)
    sgd = torch.optim.SGD(twins, lr=0.1, momentum=momentum, weight_decay=weight_decay)
    for _ in range(8):
        task, distill = draw_gradients(generator), draw_gradients(generator)
        dot.step(task=task, distill=distill)
        for twin, a, b in zip(twins, task, distill, strict=True):
            assert a is not None
            assert b is not None
            twin.grad = a + b
        sgd.step()
    torch.testing.assert_close(params, twins, rtol=1e-12, atol=1e-13)


def test_a_constant_gradient_weighs_one_over_one_minus_its_momentum() -> None:
    """What the two momenta do to the effective loss weights: 1 / (1 - 0.825) and 1 / (1 - 0.975)."""
    p = torch.zeros((), dtype=torch.float64)
    optimizer = DOTOptimizer([p], lr=0.0)
    for _ in range(1500):
        optimizer.step(task=[torch.ones_like(p)], distill=[torch.ones_like(p)])
    assert optimizer.state[p][TASK_BUFFER].item() == pytest.approx(1 / 0.175)
    assert optimizer.state[p][DISTILL_BUFFER].item() == pytest.approx(40)


def test_a_buffer_rests_while_its_gradient_is_absent() -> None:
    generator = torch.Generator().manual_seed(0)
    params = draw_params(generator)
    optimizer = DOTOptimizer(params, lr=0.1, weight_decay=0.1)
    nothing: Gradients = [None] * len(params)
    optimizer.step(task=draw_gradients(generator), distill=draw_gradients(generator))
    before = copy.deepcopy((buffers(optimizer, TASK_BUFFER), buffers(optimizer, DISTILL_BUFFER), params))
    optimizer.step(task=nothing, distill=nothing)
    torch.testing.assert_close((buffers(optimizer, TASK_BUFFER), buffers(optimizer, DISTILL_BUFFER), params), before, rtol=0, atol=0)
    optimizer.step(task=draw_gradients(generator), distill=nothing)
    torch.testing.assert_close(buffers(optimizer, DISTILL_BUFFER), before[1], rtol=0, atol=0)


def test_a_zero_gradient_is_not_an_absent_one() -> None:
    p, q = torch.ones(2), torch.ones(2)
    optimizer = DOTOptimizer([p, q], lr=0.1)
    for distill in (torch.ones(2), torch.zeros(2)):
        optimizer.step(task=[torch.ones(2)] * 2, distill=[distill, None])
    assert not torch.equal(p, q)


def test_frozen_parameters_are_untouched() -> None:
    frozen, learning = torch.ones(3), torch.ones(3)
    optimizer = DOTOptimizer([frozen, learning], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.step(task=[None, torch.ones(3)], distill=[None, torch.ones(3)])
    assert torch.equal(frozen, torch.ones(3))
    assert not optimizer.state[frozen]


def test_gradients_that_share_memory_do_not_meet_in_the_buffers() -> None:
    p, q = torch.zeros(3), torch.zeros(3)
    optimizer = DOTOptimizer([p, q], lr=1.0, momentum=0.5, delta=0.25)
    shared = torch.ones(3)
    for _ in range(2):
        optimizer.step(task=[shared, shared], distill=[shared, shared])
    assert torch.equal(shared, torch.ones(3))
    assert torch.equal(p, q)
    assert p[0].item() == -(1 + 1 + 1.25 + 1.75)


def test_takes_the_expanded_gradients_that_autograd_returns() -> None:
    p = torch.zeros(3, requires_grad=True)
    optimizer = DOTOptimizer([p], lr=1.0, momentum=0.5, delta=0.25)
    for _ in range(2):
        gradients = torch.autograd.grad(p.sum(), [p])
        assert gradients[0].stride() == (0,)
        optimizer.step(task=gradients, distill=gradients)
    assert p.tolist() == [-(1 + 1 + 1.25 + 1.75)] * 3


def test_groups_are_independent() -> None:
    generator = torch.Generator().manual_seed(0)
    params = draw_params(generator)
    values: list[dict[str, Any]] = [
        {"lr": 0.1, "momentum": 0.9, "delta": 0.05, "weight_decay": 0.0, "dampening": 0.0},
        {"lr": 0.01, "momentum": 0.5, "delta": -0.1, "weight_decay": 0.1, "dampening": 0.2},
    ]
    plains = [Plain(params[:2], **values[0]), Plain(params[2:], **values[1])]
    optimizer = DOTOptimizer([{"params": params[:2], **values[0]}], lr=1.0)
    optimizer.add_param_group({"params": params[2:], **values[1]})
    for _ in range(5):
        task, distill = draw_gradients(generator, 0.7), draw_gradients(generator, 0.7)
        optimizer.step(task=task, distill=distill)
        plains[0].step(task[:2], distill[:2])
        plains[1].step(task[2:], distill[2:])
    torch.testing.assert_close([p.detach() for p in params], plains[0].params + plains[1].params)


def test_dtypes_may_be_mixed() -> None:
    params = [torch.ones(3, dtype=torch.bfloat16), torch.ones(3), torch.ones(2, dtype=torch.float64)]
    optimizer = DOTOptimizer(params, lr=0.1)
    for _ in range(2):
        optimizer.step(task=[torch.ones_like(p) for p in params], distill=[torch.ones_like(p) for p in params])
    for p in params:
        assert optimizer.state[p][TASK_BUFFER].dtype == p.dtype
        torch.testing.assert_close(p.double(), torch.full_like(p, 1 - 0.1 * (2 + 1.825 + 1.975), dtype=torch.float64), rtol=2e-2, atol=0)


def test_state_survives_a_round_trip(tmp_path: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    params = draw_params(generator, torch.float32)
    values: dict[str, Any] = {"momentum": 0.8, "delta": 0.1, "weight_decay": 0.01, "dampening": 0.1}
    optimizer = DOTOptimizer(params, lr=0.1, **values)
    rounds = [(draw_gradients(generator, 0.6, torch.float32), draw_gradients(generator, 0.6, torch.float32)) for _ in range(8)]
    for task, distill in rounds[:4]:
        optimizer.step(task=task, distill=distill)

    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    twins = [p.detach().clone().requires_grad_() for p in params]
    resumed = DOTOptimizer(twins, lr=9.0)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    for task, distill in rounds[4:]:
        optimizer.step(task=task, distill=distill)
        resumed.step(task=task, distill=distill)
    assert all(torch.equal(p, twin) for p, twin in zip(params, twins, strict=True))
    assert resumed.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_is_a_torch_optimizer() -> None:
    p = torch.ones(2, requires_grad=True)
    optimizer = DOTOptimizer([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])
    assert optimizer.step(lambda: torch.is_grad_enabled(), task=[torch.ones(2)], distill=[None]) is True
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert "delta: 0.075" in repr(optimizer)


class TwoLosses(LightningModule):
    """Steps its optimiser by hand, through Lightning's wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.ones(2))

    def configure_optimizers(self) -> DOTOptimizer:
        return DOTOptimizer([self.weight], lr=0.1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        distill = torch.autograd.grad((self.weight * batch[0]).sum(), [self.weight])
        task = torch.autograd.grad((self.weight * batch[0]).sum(), [self.weight])
        optimizer.step(task=task, distill=distill)  # type: ignore[union-attr]


def test_works_inside_lightnings_wrapper() -> None:
    module = TwoLosses()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(2, 2)), batch_size=1))
    assert trainer.global_step == 2
    torch.testing.assert_close(module.weight.detach(), torch.full((2,), 1 - 0.1 * (2 + 1.825 + 1.975)))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"lr": -0.1}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"momentum": -0.1}, "momentum"),
        ({"momentum": 1.0, "delta": 0.0}, "momentum"),
        ({"momentum": 0.9, "delta": 0.1}, "delta"),
        ({"momentum": 0.9, "delta": -0.1}, "delta"),
        ({"momentum": 0.05, "delta": 0.075}, "delta"),
        ({"momentum": 0.05, "delta": -0.075}, "delta"),
        ({"dampening": 1.5}, "dampening"),
    ],
)
def test_refuses_values(values: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: got"):
        DOTOptimizer([torch.ones(2)], **{"lr": 0.1, **values})
    optimizer = DOTOptimizer([torch.ones(2)], lr=0.1)
    with pytest.raises(InputError, match=f"^{named}: got"):
        optimizer.add_param_group({"params": [torch.ones(1)], **values})


def test_refuses_gradients_that_do_not_fit() -> None:
    p = torch.ones(3)
    optimizer = DOTOptimizer([p], lr=0.1)
    with pytest.raises(InputError, match=r"^distill: got 2 gradients"):
        optimizer.step(task=[None], distill=[None, None])
    with pytest.raises(InputError, match=r"^task\[0\]: got a gradient of shape \[1\]"):
        optimizer.step(task=[torch.ones(1)], distill=[None])
    with pytest.raises(InputError, match="sparse"):
        optimizer.step(task=[None], distill=[torch.ones(3).to_sparse()])
    with pytest.raises(TypeError, match="task"):
        optimizer.step()  # type: ignore[call-arg]
    assert torch.equal(p, torch.ones(3))
