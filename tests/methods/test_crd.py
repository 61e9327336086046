from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Teacher
from stillroom.errors import InputError
from stillroom.methods.crd import CRD
from stillroom.tasks.classification import Batch

LABELS = torch.arange(40) % 4


def net(width: int) -> nn.Sequential:
    """Layers by path: 3 is the map [B, width, 4, 4], 4 the pooled one [B, width, 1, 1], 5 the pooled vector, 6 the classifier."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Identity(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )


def crd(student_layer: str = "5", teacher_layer: str = "5", **options: Any) -> CRD:
    torch.manual_seed(0)
    settings = {"train_labels": LABELS, "example": torch.zeros(2, 3, 8, 8), "embed_dim": 16, "negatives": 12}
    return CRD(
        net(6), Teacher(net(10), precision="fp32"), student_layer=student_layer, teacher_layer=teacher_layer, **{**settings, **options}
    )


def batch(size: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(40, generator=generator)[:size]
    return Batch(torch.randn(size, 3, 8, 8, generator=generator), LABELS[ids], ids)


def test_terms_and_their_weights() -> None:
    one, other = crd(), crd(task_weight=0.5, contrast_weight=2.4)
    torch.manual_seed(1)
    losses = one.losses(batch())
    torch.manual_seed(1)
    weighted = other.losses(batch())
    assert set(losses.task) == {"ce"}
    assert set(losses.distill) == {"crd"}
    torch.testing.assert_close(weighted.task["ce"], 0.5 * losses.task["ce"])
    torch.testing.assert_close(weighted.distill["crd"], 3 * losses.distill["crd"])  # 0.8 by default


def test_each_loss_reaches_its_own_parameters() -> None:
    distiller = crd()
    losses = distiller.losses(batch())
    names, parameters = zip(*distiller.named_parameters(), strict=True)
    reached = {
        kind: {
            name
            for name, gradient in zip(names, torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True), strict=True)
            if gradient is not None
        }
        for kind, total in (("task", losses.task_total), ("distill", losses.distill_total))
    }
    embeddings = {name for name in names if name.startswith(("student_embedding.", "teacher_embedding."))}
    classifier = {"student.6.weight", "student.6.bias"}
    assert len(embeddings) == 4
    assert reached["task"] == set(names) - embeddings
    assert reached["distill"] == set(names) - classifier


@pytest.mark.parametrize("layer", ["3", "4", "5"])
def test_maps_are_averaged_over_their_pixels(layer: str) -> None:
    distiller, other = crd(), crd(student_layer=layer, teacher_layer=layer)
    other.load_state_dict(distiller.state_dict())
    torch.manual_seed(2)
    expected = distiller.losses(batch())
    torch.manual_seed(2)
    torch.testing.assert_close(other.losses(batch()).distill["crd"], expected.distill["crd"])


def test_making_one_leaves_no_trace() -> None:
    student = net(6)
    student[3].eval()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    CRD(student, net(10), student_layer="5", teacher_layer="5", train_labels=LABELS, example=torch.randn(2, 3, 8, 8), negatives=4)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])
    assert student.training
    assert not student[3].training


def test_memory_takes_in_the_batch_in_train_mode_only() -> None:
    distiller, data = crd(), batch()
    before = distiller.memory.student_bank.clone()
    distiller.eval()
    distiller.losses(data)
    assert torch.equal(distiller.memory.student_bank, before)
    distiller.train()
    distiller.losses(data).total.backward()
    moved = (distiller.memory.student_bank != before).any(1).nonzero().flatten()
    assert torch.equal(moved, data.ids.sort().values)


def test_a_sample_finds_its_row_wherever_it_stands_in_the_batch() -> None:
    one, other, data, order = crd(), crd(), batch(), torch.randperm(8)
    one.losses(data)
    other.losses(Batch(*(field[order] for field in data[:3])))
    torch.testing.assert_close(one.memory.teacher_bank, other.memory.teacher_bank)


def test_state_survives_a_checkpoint() -> None:
    distiller = crd()
    distiller.losses(batch())
    restored = crd()
    restored.load_state_dict(distiller.state_dict())
    totals = []
    for one in (distiller, restored):
        torch.manual_seed(4)
        totals.append(one.losses(batch(seed=1)).total)
    assert torch.equal(*totals)
    assert not any("teacher." in name for name in distiller.state_dict())


def test_training_on_the_contrast_alone_lowers_it_and_pulls_pairs_together() -> None:
    distiller = crd(task_weight=0.0, negatives=30)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.02, momentum=0.9)
    data = batch(40)
    data = data._replace(images=data.images + 2 * torch.randn(40, 3, 1, 1))  # colours that survive the pooling
    history = []
    for _ in range(150):
        loss = distiller.losses(data).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-5:]) < 0.8 * sum(history[:5])
    agreement = distiller.memory.student_bank @ distiller.memory.teacher_bank.T
    assert agreement.diagonal().mean() > agreement[LABELS[:, None] != LABELS].mean() + 0.1


def test_one_sample_and_reduced_precision() -> None:
    distiller = crd()
    with torch.autocast("cpu", torch.bfloat16):
        losses = distiller.losses(batch(1))
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.parameters())


def test_task_term_is_plain_cross_entropy() -> None:
    distiller, data = crd(), batch()
    torch.testing.assert_close(distiller.losses(data).task["ce"], cross_entropy(distiller.student(data.images), data.labels))


@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("contrast_temperature", lambda: crd(contrast_temperature=0.0)),
        ("contrast_weight", lambda: crd(contrast_weight=-0.1)),
        ("task_weight", lambda: crd(task_weight=float("nan"))),
        ("negatives", lambda: crd(negatives=0)),
        ("momentum", lambda: crd(momentum=1.0)),
        ("labels", lambda: crd(train_labels=torch.zeros(40, dtype=torch.int64))),
        ("student_layer", lambda: crd(student_layer="9")),
        (
            "teacher_layer",
            lambda: CRD(net(6), Odd(), student_layer="5", teacher_layer="inner", train_labels=LABELS, example=torch.zeros(1, 3, 8, 8)),
        ),
    ],
)
def test_refuses_what_it_cannot_use(argument: str, make: Callable[[], CRD]) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: "):
        make()


class Odd(nn.Module):
    """A network whose feature is a sequence [B, L, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Flatten(2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images).mean(2)
