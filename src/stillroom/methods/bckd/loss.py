"""BCKD's two losses over the rows of one pyramid level (sections 2 and 3 of the specification of the method; the paper's eqs.).

Rows are positions of a level: logits z [N, C] and boxes b [N, 4] of student and teacher at the same position.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stillroom.errors import InputError, at_least_zero
from stillroom.losses.precision import at_least_float32, in_one_type
from stillroom.tasks.detection.boxes import IoUKind, paired_iou


def binary_classification_distillation(student_NC: Tensor, teacher_NC: Tensor, *, beta: float = 1.0, detach_gap: bool = False) -> Tensor:
    """sum over classes of |p_t - p_s|^beta * BCE(z_s, p_t), p = sigmoid(z); per row [N], float32 at least.

    Zero, with zero gradient, exactly where the scores are equal: unlike a softmax, it does not forgive a constant added to all logits.

    Args:
        student_NC, teacher_NC: class logits; no gradient reaches the teacher.
        beta: exponent of the gap, which weighs each binary problem.
        detach_gap: let no gradient through the gap. The released code lets it through, as the quality focal loss does.

    Raises:
        InputError: the shapes differ, or beta is below 0.
    """
    _same("teacher_NC", teacher_NC, student_NC)
    at_least_zero("beta", beta)
    logits_NC, teacher_NC = in_one_type(student_NC, teacher_NC.detach())
    soft_NC = teacher_NC.sigmoid()
    gap_NC = (soft_NC - logits_NC.sigmoid()).abs()
    if beta != 1:
        equal_NC = gap_NC == 0  # where the slope of a power below 1 is infinite, and the gradient would be NaN
        gap_NC = (gap_NC.masked_fill(equal_NC, 1.0) ** beta).masked_fill(equal_NC, 0.0**beta)
    if detach_gap:
        gap_NC = gap_NC.detach()
    return (gap_NC * binary_cross_entropy_with_logits(logits_NC, soft_NC, reduction="none")).sum(1)


def gap_weights(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """omega: the largest difference of a position's scores, max over classes of |p_t - p_s|; [N], float32 at least, without gradient.

    Raises:
        InputError: the shapes differ.
    """
    _same("teacher_NC", teacher_NC, student_NC)
    with torch.no_grad():
        return (at_least_float32(teacher_NC).sigmoid() - at_least_float32(student_NC).sigmoid()).abs().amax(1)


def iou_localisation_distillation(
    student_N4: Tensor, teacher_N4: Tensor, weights_N: Tensor, *, kind: IoUKind = "giou", eps: float = 1e-6
) -> Tensor:
    """omega * (1 - IoU(b_s, b_t)); per row [N], float32. The paper writes IoU, the released code takes GIoU.

    Args:
        student_N4, teacher_N4: boxes decoded from the same point, in any common unit; no gradient reaches the teacher's.
        weights_N: `gap_weights`, 0 where a row does not count.
        kind, eps: see `paired_iou`.

    Raises:
        InputError: there is not one weight for each row; see also `paired_iou`.
    """
    _same("weights_N", weights_N, student_N4[:, 0])
    return weights_N * (1 - paired_iou(student_N4, teacher_N4.detach(), kind, eps))


def _same(argument: str, found: Tensor, wanted: Tensor) -> None:
    if found.shape != wanted.shape:
        raise InputError(argument, f"shape {list(found.shape)}", f"the student's, {list(wanted.shape)}")
