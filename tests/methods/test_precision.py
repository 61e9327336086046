"""In a loop of one's own the networks may be in float64, and then the task's term is, as the distillation's; half precision is widened."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Teacher
from stillroom.methods.crd import CRD
from stillroom.methods.dkd import DKD
from stillroom.methods.fitnets import FitNets
from stillroom.methods.kd import KD
from stillroom.methods.wad import WAD
from stillroom.tasks.classification import Batch, Supervised

LABELS = torch.arange(8) % 4
EXAMPLE = torch.zeros(2, 3, 8, 8, dtype=torch.float64)


def net(width: int) -> nn.Sequential:
    """Layer 2 is the pooled vector."""
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)).double()


def teacher() -> Teacher:
    return Teacher(net(10), precision="fp32")


METHODS: dict[str, Callable[[nn.Module], Distiller]] = {
    "supervised": Supervised,
    "kd": lambda student: KD(student, teacher(), task_weight=1.0),
    "dkd": lambda student: DKD(student, teacher(), warmup=0),
    "fitnets": lambda student: FitNets(student, teacher(), student_layer="0", teacher_layer="0", example=EXAMPLE),
    "crd": lambda student: CRD(student, teacher(), student_layer="2", teacher_layer="2", train_labels=LABELS, example=EXAMPLE),
}


def batch(dtype: torch.dtype) -> Batch:
    images = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Batch(images.to(dtype), LABELS, torch.arange(8))


@pytest.mark.parametrize("name", METHODS)
def test_the_labels_term_keeps_float64(name: str) -> None:
    student, shown = net(6), batch(torch.float64)
    distiller = METHODS[name](student).double()
    distiller.at(0, steps_per_epoch=1, epochs=1)
    term = distiller.losses(shown).task["ce"]
    assert term.dtype == torch.float64
    assert term.item() == cross_entropy(student(shown.images), LABELS).item()


def test_wads_terms_keep_float64() -> None:
    student, shown = net(6), batch(torch.float64)
    losses = WAD(student, LABELS, torch.ones(8)).losses({"labelled": shown, "unlabelled": shown})
    expected = cross_entropy(student(shown.images), LABELS)
    assert [term.item() for term in losses.terms.values()] == pytest.approx([expected.item()] * 2, rel=1e-14)
    assert {term.dtype for term in losses.terms.values()} == {torch.float64}


def test_the_labels_term_of_a_student_in_half_precision_is_computed_in_float32() -> None:
    student, shown = net(6).bfloat16(), batch(torch.bfloat16)
    term = Supervised(student).losses(shown).task["ce"]
    assert torch.equal(term, cross_entropy(student(shown.images).float(), LABELS))
