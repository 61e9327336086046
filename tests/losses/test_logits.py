"""The losses between logits: against their definitions, and where numbers get large."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import softmax

from stillroom.errors import InputError
from stillroom.losses.logits import dkd_loss, kd_loss, nckd_loss, tckd_loss

ARGUMENTS = {"alpha": 1.0, "beta": 8.0, "temperature": 4.0}


def draw(rows: int, classes: int, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (rows,), generator=generator)


def plain_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of two vectors, as a textbook writes it."""
    return (p * (p / q).log()).sum()


def plain_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    rows = [plain_kl(softmax(t / temperature, 0), softmax(s / temperature, 0)) for s, t in zip(student, teacher, strict=True)]
    return temperature**2 * torch.stack(rows).mean()


def plain_parts(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD, sample by sample."""
    tckd = nckd = torch.zeros((), dtype=torch.float64)
    for s, t, y in zip(student / temperature, teacher / temperature, labels.tolist(), strict=True):
        others = [c for c in range(len(s)) if c != y]
        p_s, p_t = softmax(s, 0), softmax(t, 0)
        tckd = tckd + plain_kl(torch.stack((p_t[y], p_t[others].sum())), torch.stack((p_s[y], p_s[others].sum())))
        nckd = nckd + plain_kl(softmax(t[others], 0), softmax(s[others], 0))
    return temperature**2 * tckd / len(labels), temperature**2 * nckd / len(labels)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 5), classes=st.integers(2, 7), temperature=st.floats(0.5, 20.0), seed=st.integers(0, 999))
def test_losses_equal_their_definitions(rows: int, classes: int, temperature: float, seed: int) -> None:
    student, teacher, labels = draw(rows, classes, seed)
    student.requires_grad_()
    tckd, nckd = plain_parts(student, teacher, labels, temperature)
    pairs = [
        (kd_loss(student, teacher, temperature), plain_kd(student, teacher, temperature)),
        (tckd_loss(student, teacher, labels, temperature), tckd),
        (nckd_loss(student, teacher, labels, temperature), nckd),
        (dkd_loss(student, teacher, labels, alpha=0.7, beta=3.0, temperature=temperature), 0.7 * tckd + 3.0 * nckd),
    ]
    for ours, plain in pairs:
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-10)
        gradients = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (ours, plain)]
        torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)


def both(student: Tensor, teacher: Tensor, labels: Tensor) -> list[Tensor]:
    return [kd_loss(student, teacher, 4.0), dkd_loss(student, teacher, labels, **ARGUMENTS)]


def test_gradients_are_those_of_finite_differences() -> None:
    student, teacher, labels = draw(3, 4)
    assert torch.autograd.gradcheck(lambda s: both(s, teacher, labels), (student.requires_grad_(),))


def test_zero_at_equal_logits_and_blind_to_a_constant() -> None:
    student, teacher, labels = draw(6, 10)
    for loss in both(teacher, teacher, labels):
        assert abs(loss.item()) < 1e-12
    for loss, shifted in zip(both(student, teacher, labels), both(student + 5.0, teacher - 3.0, labels), strict=True):
        torch.testing.assert_close(loss, shifted)


def test_gradient_sums_to_zero_over_classes_and_stops_at_the_teacher() -> None:
    student, teacher, labels = draw(6, 10)
    student.requires_grad_()
    teacher.requires_grad_()
    for loss in both(student, teacher, labels):
        to_student, to_teacher = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
        torch.testing.assert_close(to_student.sum(-1), torch.zeros(6, dtype=torch.float64))
        assert to_teacher is None


def test_kd_is_dkd_with_the_teachers_doubt_as_beta() -> None:
    """Equation 6 of the DKD paper, for one sample."""
    student, teacher, labels = draw(1, 10)
    doubt = 1 - softmax(teacher / 4.0, -1)[0, labels[0]].item()
    torch.testing.assert_close(dkd_loss(student, teacher, labels, alpha=1.0, beta=doubt, temperature=4.0), kd_loss(student, teacher, 4.0))


def test_two_classes_have_no_ranking_of_others() -> None:
    student, teacher, labels = draw(4, 2)
    loss = nckd_loss(student.requires_grad_(), teacher, labels, 4.0)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, student)[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_finite_for_large_logits(dtype: torch.dtype, temperature: float) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 1e4]], dtype=dtype).requires_grad_()
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 0.0, 0.0]], dtype=dtype)
    labels = torch.tensor([0, 0, 1])
    exact_student, exact_teacher = student.detach().double(), teacher.double()
    for loss, exact in (
        (kd_loss(student, teacher, temperature), kd_loss(exact_student, exact_teacher, temperature)),
        (
            dkd_loss(student, teacher, labels, alpha=1.0, beta=8.0, temperature=temperature),
            dkd_loss(exact_student, exact_teacher, labels, alpha=1.0, beta=8.0, temperature=temperature),
        ),
    ):
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
        assert torch.autograd.grad(loss, student)[0].isfinite().all()


def test_known_value_of_a_confident_mistake() -> None:
    """One sample: the teacher is certain of class 1, the student of class 0 by a margin of 2e4."""
    student, teacher = torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])
    assert kd_loss(student, teacher, 1.0).item() == 2e4
    assert tckd_loss(student, teacher, torch.tensor([1]), 1.0).item() == 2e4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_float32(dtype: torch.dtype) -> None:
    student, teacher, labels = draw(8, 100)
    student, teacher = student.to(dtype), teacher.to(dtype)
    for half, full in zip(both(student, teacher, labels), both(student.float(), teacher.float(), labels), strict=True):
        assert half.dtype == torch.float32
        assert torch.equal(half, full)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_a_temperature(temperature: float) -> None:
    student, teacher, labels = draw(2, 3)
    with pytest.raises(InputError, match="temperature"):
        kd_loss(student, teacher, temperature)
    with pytest.raises(InputError, match="temperature"):
        dkd_loss(student, teacher, labels, alpha=1.0, beta=1.0, temperature=temperature)


def test_refuses_shapes() -> None:
    student, teacher, labels = draw(2, 3)
    with pytest.raises(InputError, match="teacher_BC"):
        kd_loss(student, teacher[:1], 4.0)
    with pytest.raises(InputError, match="student_BC"):
        kd_loss(student[0], teacher[0], 4.0)
    with pytest.raises(InputError, match="student_BC"):
        kd_loss(student[:0], teacher[:0], 4.0)
    with pytest.raises(InputError, match="at least two classes"):
        dkd_loss(student[:, :1], teacher[:, :1], labels, **ARGUMENTS)
    with pytest.raises(InputError, match="labels_B"):
        dkd_loss(student, teacher, labels[:1], **ARGUMENTS)
    with pytest.raises(InputError, match="labels_B"):
        dkd_loss(student, teacher, labels.double(), **ARGUMENTS)
    with pytest.raises(RuntimeError):  # a label that is no class
        nckd_loss(student, teacher, labels + 3, 4.0)
