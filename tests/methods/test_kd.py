from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Teacher
from stillroom.errors import InputError
from stillroom.methods.kd import KD
from stillroom.tasks.classification import Batch


def net(width: int) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4))


def kd(teacher: nn.Module | None = None, **options: Any) -> KD:
    return KD(net(6), Teacher(teacher or net(10), precision="fp32"), **options)


def batch(size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 4, torch.arange(size))


def test_terms_are_those_of_the_paper() -> None:
    teacher, distiller, data = net(10), kd(temperature=2.0), batch()
    losses = distiller.losses(data)
    p = (teacher(data.images) / 2).softmax(-1)
    q = (distiller.student(data.images) / 2).softmax(-1)
    torch.testing.assert_close(losses.task["ce"], 0.1 * cross_entropy(distiller.student(data.images), data.labels))
    torch.testing.assert_close(losses.distill["kd"], 0.9 * 4 * (p * (p / q).log()).sum(-1).mean())
    assert set(losses.terms) == {"ce", "kd"}


def test_weights_scale_their_terms() -> None:
    losses, weighted = kd().losses(batch()), kd(task_weight=0.5, kd_weight=1.8).losses(batch())
    torch.testing.assert_close(weighted.task["ce"], 5 * losses.task["ce"])
    torch.testing.assert_close(weighted.distill["kd"], 2 * losses.distill["kd"])
    assert kd(kd_weight=0).losses(batch()).distill_total == 0


def test_distillation_is_zero_where_the_student_is_the_teacher() -> None:
    distiller = kd(net(6))
    distill = distiller.losses(batch()).distill["kd"]
    gradients = torch.autograd.grad(distill, list(distiller.parameters()))
    torch.testing.assert_close(distill, torch.tensor(0.0))
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients)


def test_no_gradient_reaches_the_teacher_and_all_of_it_the_student() -> None:
    teacher = net(10)
    distiller = kd(teacher)
    for total in (distiller.losses(batch()).task_total, distiller.losses(batch()).distill_total):
        assert total is not None
        assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(total, list(distiller.student.parameters())))
    distiller.losses(batch()).total.backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_a_bare_network_may_teach() -> None:
    assert isinstance(KD(net(6), net(10)).teacher, Teacher)


def test_ten_lines_of_one_s_own_loop_lower_the_loss() -> None:
    distiller = KD(net(6), net(10))
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9)
    totals = []
    for _ in range(60):
        loss = distiller.losses(batch()).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.75 * totals[0]


def test_one_sample_and_reduced_precision() -> None:
    distiller = kd()
    with torch.autocast("cpu", torch.bfloat16):
        losses = distiller.losses(batch(1))
    assert losses.total.dtype == torch.float32
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters())


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("temperature", value) for value in (0.0, -1.0, float("nan"), float("inf"))),
        *((name, value) for name in ("task_weight", "kd_weight") for value in (-0.1, float("nan"), float("inf"))),
    ],
)
def test_refuses_what_it_cannot_use(argument: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: got {value}, expected a finite number"):
        kd(**{argument: value})
