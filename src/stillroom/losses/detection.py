"""Losses of dense detectors that score each class by a sigmoid and may tell a box by distributions over its sides' distances."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from stillroom.losses.precision import at_least_float32, in_one_type


def quality_focal_loss(logits_NC: Tensor, labels_N: Tensor, quality_N: Tensor, beta: float = 2.0) -> Tensor:
    """|q - sigmoid(z)|^beta * BCE(z, q) with q the quality at a positive's class, else 0; summed over classes, [N], float32 at least.

    The modulating factor has a gradient.

    Args:
        logits_NC: class logits of every position.
        labels_N: int64, 0 .. C-1; C for background.
        quality_N: IoU of the predicted box with its object; read at positives only.
        beta: of the focus on what is far from its target.

    Source: Li et al. 2020 (Generalized Focal Loss), eq. 5.
    """
    logits_NC = at_least_float32(logits_NC)
    count, classes = logits_NC.shape
    padded = logits_NC.new_zeros(count, classes + 1)
    target_NC = padded.scatter_(1, labels_N[:, None], quality_N.detach().to(padded.dtype)[:, None])[:, :classes]
    loss_NC = binary_cross_entropy_with_logits(logits_NC, target_NC, reduction="none")
    return ((target_NC - logits_NC.sigmoid()).abs() ** beta * loss_NC).sum(1)


def distribution_focal_loss(bins_MK: Tensor, targets_M: Tensor) -> Tensor:
    """Cross-entropy with the two bins around each target, weighted by how near it is to them; [M], float32 at least.

    Args:
        bins_MK: logits over the distances 0 .. n = K - 1.
        targets_M: distances in [0, n).

    Source: Li et al. 2020 (Generalized Focal Loss), eq. 6.
    """
    bins_MK = at_least_float32(bins_MK)
    lower_M = targets_M.floor().long()
    share_M = targets_M - lower_M
    below, above = (cross_entropy(bins_MK, bin_M, reduction="none") for bin_M in (lower_M, lower_M + 1))
    return below * (1 - share_M) + above * share_M


def mean_kl(student_NK: Tensor, teacher_NK: Tensor, temperature: float) -> Tensor:
    """T^2 * mean over the K entries of p_t (log p_t - log p_s), softened by T; [N], float32 at least. No gradient reaches the teacher.

    Dense detectors' releases take the mean over entries where KD takes the sum: a weight made for 80 classes is 80 / K too strong for K.

    Source: Zheng et al. 2022 (Localization Distillation), release.
    """
    student_NK, teacher_NK = in_one_type(student_NK, teacher_NK.detach())
    log_student, log_teacher = ((logits_NK / temperature).log_softmax(-1) for logits_NK in (student_NK, teacher_NK))
    return temperature**2 * torch.nn.functional.kl_div(log_student, log_teacher, log_target=True, reduction="none").mean(-1)
