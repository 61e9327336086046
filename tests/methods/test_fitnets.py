from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from stillroom.engine import Teacher
from stillroom.errors import InputError
from stillroom.methods.fitnets import FitNets
from stillroom.tasks.classification import Batch


def net(width: int, stride: int = 1) -> nn.Sequential:
    """Layer 2 is the map [B, width, 8 / stride, 8 / stride], 4 the pooled vector, 5 the classifier."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=stride, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )


def fitnets(student: nn.Module | None = None, teacher: nn.Module | None = None, layer: str = "2", **options: Any) -> FitNets:
    torch.manual_seed(0)
    student, teacher = student or net(6), Teacher(teacher or net(10, stride=2), precision="fp32")
    return FitNets(student, teacher, student_layer=layer, teacher_layer=layer, example=torch.zeros(2, 3, 8, 8), **options)


def batch(size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(size, 3, 8, 8, generator=generator), torch.arange(size) % 4, torch.arange(size))


def test_terms_are_cross_entropy_and_a_hundred_times_the_mean_squared_distance() -> None:
    teacher = net(10, stride=2)
    distiller, data = fitnets(teacher=teacher), batch()
    losses = distiller.losses(data)
    regressed = distiller.regressor(distiller.student[:3](data.images))
    hint = teacher.eval()[:3](data.images)
    assert regressed.shape == (8, 10, 4, 4)
    torch.testing.assert_close(losses.task["ce"], cross_entropy(distiller.student(data.images), data.labels))
    torch.testing.assert_close(losses.distill["hint"], 100 * mse_loss(regressed, hint))


def test_weights_scale_their_terms() -> None:
    losses, weighted = fitnets().losses(batch()), fitnets(task_weight=0.5, hint_weight=10.0).losses(batch())
    torch.testing.assert_close(weighted.task["ce"], 0.5 * losses.task["ce"])
    torch.testing.assert_close(weighted.distill["hint"], 0.1 * losses.distill["hint"])


def test_hint_is_zero_when_the_regressed_layer_is_the_hint() -> None:
    teacher, student = net(6), net(6)
    student.load_state_dict(teacher.state_dict())
    distiller = fitnets(student, teacher).eval()
    assert isinstance(distiller.regressor.conv, nn.Conv2d)
    with torch.no_grad():
        distiller.regressor.conv.weight.copy_(torch.eye(6)[:, :, None, None])
        distiller.regressor.norm.eps = 0.0  # with fresh statistics the identity
    torch.testing.assert_close(distiller.losses(batch()).distill["hint"], torch.tensor(0.0), atol=1e-8, rtol=0)


def test_each_loss_reaches_its_own_parameters() -> None:
    distiller = fitnets()
    losses = distiller.losses(batch())
    for total, absent in ((losses.task_total, "regressor."), (losses.distill_total, "student.5.")):
        assert total is not None
        gradients = torch.autograd.grad(total, list(distiller.parameters()), retain_graph=True, allow_unused=True)
        for (name, _), gradient in zip(distiller.named_parameters(), gradients, strict=True):
            assert (gradient is None) == name.startswith(absent), name


def test_training_on_the_hint_alone_lowers_it() -> None:
    distiller = fitnets(task_weight=0.0)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01, momentum=0.9)
    history = []
    for _ in range(30):
        loss = distiller.losses(batch()).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]


def test_making_one_leaves_no_trace_in_the_student() -> None:
    student = net(6)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    fitnets(student)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])
    assert student.training


def test_state_survives_a_checkpoint_without_the_teacher() -> None:
    distiller, restored = fitnets(), fitnets()
    distiller.losses(batch())
    restored.load_state_dict(distiller.state_dict())
    assert torch.equal(distiller.losses(batch()).total, restored.losses(batch()).total)
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"student", "regressor"}


def test_one_sample_and_reduced_precision() -> None:
    distiller = fitnets()
    with torch.autocast("cpu", torch.bfloat16):
        losses = distiller.losses(batch(1))
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters())


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("hint_weight", {"hint_weight": -1.0}),
        ("task_weight", {"task_weight": float("inf")}),
        ("student_layer", {"layer": "4"}),
        ("student_layer", {"layer": "nowhere"}),
    ],
)
def test_refuses_what_it_cannot_use(argument: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: "):
        fitnets(**options)
