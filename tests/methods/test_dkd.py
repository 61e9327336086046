from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Progress, Teacher
from stillroom.errors import InputError
from stillroom.methods.dkd import DKD
from stillroom.tasks.classification import Batch


def net(width: int) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4))


def dkd(teacher: nn.Module | None = None, **options: Any) -> DKD:
    return DKD(net(6), Teacher(teacher or net(10), precision="fp32"), **{"warmup": 0, **options})


def batch(size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 4, torch.arange(size))


def decoupled(distiller: DKD, teacher: nn.Module, data: Batch, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """TCKD and NCKD as the paper writes them, sample by sample, in float64."""
    target, others = 0.0, 0.0
    for s, t, y in zip(distiller.student(data.images).double(), teacher(data.images).double(), data.labels, strict=True):
        p, q = (t / temperature).softmax(0), (s / temperature).softmax(0)
        for a, b in ((p[y], q[y]), (1 - p[y], 1 - q[y])):
            target = target + a * (a / b).log()
        rest = torch.arange(len(p)) != y
        p, q = p[rest] / p[rest].sum(), q[rest] / q[rest].sum()
        others = others + (p * (p / q).log()).sum()
    scale = temperature**2 / len(data.labels)
    return torch.as_tensor(scale * target).float(), torch.as_tensor(scale * others).float()


def test_terms_are_those_of_the_paper() -> None:
    teacher, data = net(10), batch()
    distiller = dkd(alpha=1.5, beta=6.0, temperature=3.0, task_weight=0.7)
    losses = distiller.losses(data)
    target, others = decoupled(distiller, teacher, data, 3.0)
    torch.testing.assert_close(losses.task["ce"], 0.7 * cross_entropy(distiller.student(data.images), data.labels))
    torch.testing.assert_close(losses.distill["dkd"], 1.5 * target + 6.0 * others)
    assert set(losses.terms) == {"ce", "dkd"}


@pytest.mark.parametrize(("epoch", "factor"), [(1, 0.05), (2, 0.1), (10, 0.5), (20, 1.0), (21, 1.0), (240, 1.0)])
def test_warm_up_counts_epochs_from_one(epoch: int, factor: float) -> None:
    distiller = dkd(warmup=20)
    distiller.progress = Progress(epoch=epoch, epochs=240, step=3, steps_per_epoch=2)
    losses, full = distiller.losses(batch()), dkd().losses(batch())
    torch.testing.assert_close(losses.distill["dkd"], factor * full.distill["dkd"])
    torch.testing.assert_close(losses.task["ce"], full.task["ce"])


def test_distillation_is_zero_where_the_student_is_the_teacher() -> None:
    distiller = dkd(net(6))
    distill = distiller.losses(batch()).distill["dkd"]
    torch.testing.assert_close(distill, torch.tensor(0.0), atol=1e-5, rtol=0)
    assert all(gradient.abs().max() < 1e-5 for gradient in torch.autograd.grad(distill, list(distiller.parameters())))


def test_no_gradient_reaches_the_teacher_and_all_of_it_the_student() -> None:
    teacher = net(10)
    distiller = dkd(teacher)
    losses = distiller.losses(batch())
    assert losses.distill_total is not None
    assert all(gradient.abs().sum() > 0 for gradient in torch.autograd.grad(losses.distill_total, list(distiller.student.parameters())))
    distiller.losses(batch()).total.backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_a_sure_teacher_gives_finite_gradients() -> None:
    class Sure(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 1e4 * nn.functional.one_hot(torch.arange(len(images)) % 4, 4).float()

    distiller = dkd(Sure())
    distiller.losses(batch()).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters())


def test_a_loop_of_one_s_own_lowers_the_loss() -> None:
    distiller = DKD(net(6), net(10), warmup=0)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.02, momentum=0.9)
    totals = []
    for _ in range(60):
        loss = distiller.losses(batch()).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.75 * totals[0]


def test_one_sample_and_reduced_precision() -> None:
    distiller = dkd()
    with torch.autocast("cpu", torch.bfloat16):
        losses = distiller.losses(batch(1))
    assert losses.total.dtype == torch.float32
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters())


@pytest.mark.parametrize(
    ("argument", "value"),
    [("temperature", 0.0), *((name, value) for name in ("alpha", "beta", "task_weight", "warmup") for value in (-1.0, float("nan")))],
)
def test_refuses_what_it_cannot_use(argument: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: got {value}, expected a finite number"):
        dkd(**{argument: value})
