"""ORC's three teachings as losses of logits: intensive (the pivot learns), private (a temporary teacher learns), group (a student learns).

Each is averaged over the batch. Whoever teaches is a constant: its gradient is stopped here. Half-precision logits are compared in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.losses.logits import kd_loss
from stillroom.losses.precision import at_least_float32

Teaching = Literal["individual", "ensemble"]


def intensive_loss(mixed_NC: Tensor, labels_N: Tensor, feedback_labels_N: Tensor, lam: Tensor) -> Tensor:
    """Intensive teaching: the pivot learns images mixed with what the student group got wrong.

        L_I = lambda * H(y_t, P_PT(x~)) + (1 - lambda) * H(y_F, P_PT(x~)),   x~ = lambda x_t + (1 - lambda) x_F

    Args:
        mixed_NC: the pivot's logits of the mixed images x~.
        labels_N: y_t of the batch.
        feedback_labels_N: y_F of each image's feedback partner.
        lam: lambda in [0, 1], one for the batch, of shape [].
    """
    return lam * _ce(mixed_NC, labels_N) + (1 - lam) * _ce(mixed_NC, feedback_labels_N)


def private_loss(temporary_NC: Tensor, pivot_NC: Tensor, labels_N: Tensor, *, beta: float, temperature: float) -> Tensor:
    """Private teaching: the pivot corrects one temporary teacher.

        L_P = (1 - beta) * H(y_t, P_TT) + beta * L_KD(P_TT, P_PT)

    Args:
        temporary_NC: logits of the temporary teacher, which learns.
        pivot_NC: logits of the pivot, which teaches.
        labels_N: y_t.
        beta: balance, in [0, 1].
        temperature: T > 0.
    """
    return labels_loss(temporary_NC, labels_N, beta=beta) + beta * kd_loss(temporary_NC, pivot_NC, temperature)


def group_loss(student_NC: Tensor, teachers: Sequence[Tensor], *, temperature: float, teaching: Teaching = "individual") -> Tensor:
    """What the teacher group tells one student.

        individual:   L_G = sum_j L_KD(P_S, P_TTj) + L_KD(P_S, P_PT)
        ensemble:     L_G = (k + 1) * L_KD(P_S, softmax of the mean teacher logits)

    Args:
        student_NC: logits of the student, which learns.
        teachers: logits [N, C] of the k temporary teachers and of the pivot.
        temperature: T > 0.
        teaching: one term for each teacher (the paper's choice), or one for all.
    """
    if teaching == "ensemble":
        return len(teachers) * kd_loss(student_NC, torch.stack(list(teachers)).mean(0), temperature)
    return torch.stack([kd_loss(student_NC, teacher_NC, temperature) for teacher_NC in teachers]).sum()


def student_loss(
    student_NC: Tensor,
    teachers: Sequence[Tensor],
    labels_N: Tensor,
    *,
    beta: float,
    temperature: float,
    teaching: Teaching = "individual",
) -> Tensor:
    """Group teaching of one student, whose sum over the students is L_T: (1 - beta) * H(y_t, P_S) + beta * L_G. See `group_loss`."""
    return labels_loss(student_NC, labels_N, beta=beta) + beta * group_loss(
        student_NC, teachers, temperature=temperature, teaching=teaching
    )


def labels_loss(logits_NC: Tensor, labels_N: Tensor, *, beta: float) -> Tensor:
    """(1 - beta) * H(y_t, P): the labels' share; all that a temporary teacher learns from without private teaching [inferred]."""
    return (1 - beta) * _ce(logits_NC, labels_N)


def _ce(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(at_least_float32(logits_NC), labels_N)
