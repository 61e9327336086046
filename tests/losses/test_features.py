from __future__ import annotations

import pytest
import torch

from stillroom.errors import InputError
from stillroom.losses.features import hint_loss


def test_is_zero_at_equality_and_the_mean_of_squares_elsewhere() -> None:
    hint = torch.randn(2, 3, 4, 4)
    assert hint_loss(hint.clone(), hint) == 0
    torch.testing.assert_close(hint_loss(hint + 0.5, hint), torch.tensor(0.25))


def test_only_the_student_gets_gradient() -> None:
    student, teacher = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    hint_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    torch.testing.assert_close(student.grad, 2 * (student - teacher).detach() / 10)


def test_bf16_features_give_a_float32_loss() -> None:
    loss = hint_loss(torch.ones(1, 4, dtype=torch.bfloat16), torch.zeros(1, 4, dtype=torch.bfloat16))
    assert loss.dtype == torch.float32
    assert loss == 1


def test_shapes_that_differ_are_refused_rather_than_broadcast() -> None:
    with pytest.raises(InputError, match=r"student: .*\(2, 1\).*\(2, 5\)"):
        hint_loss(torch.zeros(2, 1), torch.zeros(2, 5))
