"""BCKD's two losses over the rows of one pyramid level (sections 2 and 3 of the specification of the method; the paper's eqs.).

Rows are positions of a level: logits z [N, C] and boxes b [N, 4] of student and teacher at the same position.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from stillroom.tasks.detection.boxes import IoUKind, paired_iou


def binary_classification_distillation(student_NC: Tensor, teacher_NC: Tensor, *, beta: float = 1.0, detach_gap: bool = False) -> Tensor:
    """sum over classes of |p_t - p_s|^beta * BCE(z_s, p_t), p = sigmoid(z); per row [N], float32.

    Zero, with zero gradient, exactly where the scores are equal: unlike a softmax, it does not forgive a constant added to all logits.

    Args:
        student_NC, teacher_NC: class logits; no gradient reaches the teacher.
        beta: exponent of the gap, which weighs each binary problem.
        detach_gap: let no gradient through the gap. The released code lets it through, as the quality focal loss does.
    """
    logits_NC, soft_NC = student_NC.float(), teacher_NC.detach().float().sigmoid()
    gap_NC = (soft_NC - logits_NC.sigmoid()).abs() ** beta
    if detach_gap:
        gap_NC = gap_NC.detach()
    return (gap_NC * binary_cross_entropy_with_logits(logits_NC, soft_NC, reduction="none")).sum(1)


def gap_weights(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """omega: the largest difference of a position's scores, max over classes of |p_t - p_s|; [N], float32, without gradient."""
    with torch.no_grad():
        return (teacher_NC.float().sigmoid() - student_NC.float().sigmoid()).abs().amax(1)


def iou_localisation_distillation(
    student_N4: Tensor, teacher_N4: Tensor, weights_N: Tensor, *, kind: IoUKind = "giou", eps: float = 1e-6
) -> Tensor:
    """omega * (1 - IoU(b_s, b_t)); per row [N], float32. The paper writes IoU, the released code takes GIoU.

    Args:
        student_N4, teacher_N4: boxes decoded from the same point, in any common unit; no gradient reaches the teacher's.
        weights_N: `gap_weights`, 0 where a row does not count.
        kind, eps: see `paired_iou`.
    """
    return weights_N * (1 - paired_iou(student_N4, teacher_N4.detach(), kind, eps))
