"""Losses between the logits of a student and of its teacher.

Symbols: z_s, z_t the logits [B, C] of student and teacher, y the labels [B], T the temperature, p = softmax(z / T).
Half-precision logits are compared in float32, float64 ones in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div, logsigmoid

from stillroom.errors import InputError, positive
from stillroom.losses.precision import in_one_type


def kd_loss(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation: the student's softened class probabilities follow the teacher's.

        KD = T^2 * 1/B sum_n KL( p_t || p_s )

    summed over the classes, averaged over the batch. T^2 keeps the size of the gradient independent of T.

    Args:
        student_BC: z_s, one row per sample.
        teacher_BC: z_t. No gradient reaches it.
        temperature: T > 0; a larger one shows more of the teacher's ranking of the wrong classes.

    Returns:
        A scalar, float32 (float64 if the logits are).

    Raises:
        InputError: the temperature is not above 0, or the logits are not two equal shapes [B, C].

    Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", eq. 1 and section 2.1.
    """
    log_q_BC, log_p_BC = _softened(student_BC, teacher_BC, temperature)
    return temperature**2 * _kl(log_p_BC.log_softmax(-1), log_q_BC.log_softmax(-1))


def dkd_loss(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, alpha: float, beta: float, temperature: float) -> Tensor:
    """Decoupled knowledge distillation: KD's two parts, each with a weight of its own.

        DKD = alpha * TCKD + beta * NCKD

    (`tckd_loss`, `nckd_loss`), averaged over the batch. The paper's warm-up over epochs is a factor that the caller multiplies.

    Args:
        student_BC: z_s, one row per sample.
        teacher_BC: z_t. No gradient reaches it.
        labels_B: y, integers in 0..C-1.
        alpha: weight of the target-class part.
        beta: weight of the non-target part. (KD itself is alpha = 1 with the teacher's 1 - p_y, sample by sample, as beta.)
        temperature: T > 0.

    Returns:
        A scalar, float32 (float64 if the logits are).

    Raises:
        InputError: as `kd_loss`; or the labels are not integers of shape [B]; or there are fewer than two classes.

    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation", eq. 7.
    """
    tckd = tckd_loss(student_BC, teacher_BC, labels_B, temperature)
    nckd = nckd_loss(student_BC, teacher_BC, labels_B, temperature)
    return alpha * tckd + beta * nckd


def tckd_loss(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """Target-class part of DKD: how sure teacher and student are of the label, against all other classes together.

        TCKD = T^2 * 1/B sum_n KL( b_t || b_s ),   b = ( p_y, sum_{c != y} p_c )

    Arguments, result and errors as `dkd_loss`. Source: Zhao et al. 2022, section 3.1.
    """
    z_s_BC, z_t_BC = _softened(student_BC, teacher_BC, temperature)
    target_BC = _target_mask(labels_B, z_s_BC)
    return temperature**2 * _kl(_log_target_or_not(z_t_BC, target_BC), _log_target_or_not(z_s_BC, target_BC))


def nckd_loss(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """Non-target part of DKD: the probabilities of the other classes among themselves. Zero when there are two classes.

        NCKD = T^2 * 1/B sum_n KL( q_t || q_s ),   q = softmax of z / T over the C - 1 classes c != y

    Arguments, result and errors as `dkd_loss`. Source: Zhao et al. 2022, section 3.1.
    """
    z_s_BC, z_t_BC = _softened(student_BC, teacher_BC, temperature)
    target_BC = _target_mask(labels_B, z_s_BC)
    return temperature**2 * _kl(_log_among_others(z_t_BC, target_BC), _log_among_others(z_s_BC, target_BC))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of rows of log-probabilities, averaged over the rows."""
    return kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def _log_target_or_not(logits_BC: Tensor, target_BC: Tensor) -> Tensor:
    """[B, 2]: log p_y and log (1 - p_y), from the target's margin over all others together: exact where one of the two rounds to 0."""
    target_B = logits_BC.masked_fill(~target_BC, 0.0).sum(-1)
    margin_B = target_B - logits_BC.masked_fill(target_BC, -torch.inf).logsumexp(-1)
    return torch.stack((logsigmoid(margin_B), logsigmoid(-margin_B)), dim=-1)


def _log_among_others(logits_BC: Tensor, target_BC: Tensor) -> Tensor:
    """[B, C]: log-probabilities of the classes but the target, whose place holds 0 in teacher and student alike and so adds nothing."""
    return logits_BC.masked_fill(target_BC, -torch.inf).log_softmax(-1).masked_fill(target_BC, 0.0)


def _softened(student_BC: Tensor, teacher_BC: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """z_s / T and z_t / T, checked, in at least float32, the teacher's without gradient."""
    positive("temperature", temperature)
    if student_BC.ndim != 2 or student_BC.numel() == 0:
        raise InputError("student_BC", f"shape {list(student_BC.shape)}", "logits [B, C] of at least one sample")
    if teacher_BC.shape != student_BC.shape:
        raise InputError("teacher_BC", f"shape {list(teacher_BC.shape)}", f"the student's shape {list(student_BC.shape)}")
    student_BC, teacher_BC = in_one_type(student_BC, teacher_BC.detach())
    return student_BC / temperature, teacher_BC / temperature


def _target_mask(labels_B: Tensor, logits_BC: Tensor) -> Tensor:
    """[B, C] bool: True at each row's label."""
    rows, classes = logits_BC.shape
    if classes < 2:
        raise InputError("student_BC", f"shape {list(logits_BC.shape)}", "at least two classes, a target and another")
    if labels_B.shape != (rows,) or labels_B.dtype.is_floating_point or labels_B.dtype == torch.bool:
        raise InputError("labels_B", f"shape {list(labels_B.shape)} of {labels_B.dtype}", f"integer labels of shape [{rows}]")
    return torch.zeros_like(logits_BC, dtype=torch.bool).scatter_(1, labels_B.long().unsqueeze(1), True)
