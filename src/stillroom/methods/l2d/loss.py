"""L2D's losses: logits label by label (MLD), and the structure of label-wise embeddings (LED)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, smooth_l1_loss

from stillroom.errors import InputError, one_of
from stillroom.losses.labels import binary
from stillroom.losses.precision import at_least_float32

Reduction = Literal["batchmean", "mean", "sum"]


def mld_loss(student_BK: Tensor, teacher_BK: Tensor, *, reduction: Reduction = "batchmean", eps: float = 1e-8) -> Tensor:
    """Multi-label logits distillation: every label is a two-way distribution of its own, KL(teacher || student).

        1/B sum_i sum_c [ p log(p / q) + (1 - p) log((1 - p) / (1 - q)) ],   p = sigma(t), q = sigma(s), both within [eps, 1 - eps]

    The probabilities are clamped by clamping the logits to +-log((1 - eps) / eps): in float32 the released code's 1 - 1e-8 is 1, and its
    loss of a sure student infinite. The gradient is (q - p) / B, and 0 where the student's logit is clamped.

    Args:
        student_BK: s.
        teacher_BK: t; no gradient reaches it.
        reduction: ``batchmean`` sums over labels and averages over the batch, as the method does; ``mean`` averages over both; ``sum``.
        eps: above 0 and below 1/2.

    Returns:
        A scalar, float32 at least.

    Raises:
        InputError: the shapes differ, or an unknown reduction.

    Source: specification, Method 2.
    """
    _same_logits(student_BK, teacher_BK)
    one_of("reduction", reduction, ("batchmean", "mean", "sum"))
    limit = math.log((1 - eps) / eps)
    s_BK = at_least_float32(student_BK).clamp(-limit, limit)
    t_BK = at_least_float32(teacher_BK.detach()).clamp(-limit, limit)
    yes_BK = t_BK.sigmoid() * (logsigmoid(t_BK) - logsigmoid(s_BK))
    no_BK = (-t_BK).sigmoid() * (logsigmoid(-t_BK) - logsigmoid(-s_BK))
    total = (yes_BK + no_BK).sum()
    return total / {"batchmean": len(student_BK), "mean": student_BK.numel(), "sum": 1}[reduction]


def distances(rows_SMD: Tensor, members_SM: Tensor | None = None, *, eps: float = 1e-12) -> Tensor:
    """Euclidean distances within each set of rows, [S, M, M]: sqrt(max(|a_j|^2 + |a_k|^2 - 2 <a_j, a_k>, eps)), exactly 0 for j = k.

    Neither the diagonal nor a clamped distance has a gradient.

    Args:
        rows_SMD: S sets of up to M rows.
        members_SM: bool, which rows are in their set; None for all. A distance to any other is 0.
        eps: the least squared distance.

    Source: specification, Method 3, step 1.
    """
    if members_SM is None:
        members_SM = torch.ones(rows_SMD.shape[:2], dtype=torch.bool, device=rows_SMD.device)
    with torch.autocast(rows_SMD.device.type, enabled=False):
        rows_SMD = at_least_float32(rows_SMD).masked_fill(~members_SM[:, :, None], 0.0)
        # Distances do not change when a set is moved as a whole, and around 0 the difference of squares keeps its digits.
        rows_SMD = rows_SMD - rows_SMD.detach().sum(1, keepdim=True) / members_SM.sum(1).clamp_min(1)[:, None, None]
        products_SMM = rows_SMD @ rows_SMD.transpose(1, 2)
        # Of the same products, so that equal rows are not apart by rounding.
        squares_SM = products_SMM.diagonal(dim1=1, dim2=2)
        squared_SMM = squares_SM[:, :, None] + squares_SM[:, None, :] - 2 * products_SMM
        itself_MM = torch.eye(rows_SMD.shape[1], dtype=torch.bool, device=rows_SMD.device)
        nothing_SMM = itself_MM | ~(members_SM[:, :, None] & members_SM[:, None, :])
        # 1 in their place: the root's gradient at 0 would be NaN times 0.
        return squared_SMM.clamp_min(eps).masked_fill(nothing_SMM, 1.0).sqrt().masked_fill(nothing_SMM, 0.0)


def structure_losses(
    student_SMD: Tensor, teacher_SME: Tensor, members_SM: Tensor | None = None, *, eps: float = 1e-12, beta: float = 1.0
) -> Tensor:
    """How far the student's relative distances within each set are from the teacher's.

        H(a, b) = 1/M sum_{j,k} huber( d_jk / mean(d) - d^T_jk / mean(d^T) ),   the mean being that of the set's entries above 0

    over ordered pairs of the set's M rows. A set of two has nothing but 0 to say (both normalised distances are 1), and so has a set of
    one or none. Student and teacher need not have embeddings of one length.

    Args:
        student_SMD: S sets of up to M embeddings.
        teacher_SME: the teacher's; no gradient reaches it.
        members_SM: bool, which rows are in their set; None for all.
        eps: the least squared distance.
        beta: where the Huber loss turns from quadratic to linear.

    Returns:
        [S], float32 at least; the gradient flows through the mean as well.

    Source: specification, Method 3.
    """
    if members_SM is None:
        members_SM = torch.ones(student_SMD.shape[:2], dtype=torch.bool, device=student_SMD.device)
    relative_SMM, wanted_SMM = _relative(student_SMD, members_SM, eps), _relative(teacher_SME.detach(), members_SM, eps)
    errors_SMM = smooth_l1_loss(relative_SMM, wanted_SMM.to(relative_SMM.dtype), reduction="none", beta=beta)
    return errors_SMM.sum((1, 2)) / members_SM.sum(1).clamp_min(1)


def _relative(rows_SMD: Tensor, members_SM: Tensor, eps: float) -> Tensor:
    """The distances within each set, divided by their mean; 0 elsewhere."""
    distances_SMM = distances(rows_SMD, members_SM, eps=eps)
    counted_S = (distances_SMM > 0).sum((1, 2))
    mean_S = distances_SMM.sum((1, 2)) / counted_S.clamp_min(1)
    return distances_SMM / mean_S.masked_fill(counted_S == 0, 1.0)[:, None, None]


def led_losses(student_BKD: Tensor, teacher_BKE: Tensor, labels_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Label-wise embedding distillation: the structure among one label's images (CD), and among one image's labels (ID).

        L_CD = sum_c H( {u_ic : y_ic = 1}, {v_ic} )        L_ID = sum_i H( {u_ic : y_ic = 1}, {v_ic} )

    Sums, not means, over the labels and the images with at least two embeddings to compare; 0, with a gradient of 0, without any. Rows are
    selected by the labels; the released code selects those that are not all 0, and fails where the networks differ in that.

    Args:
        student_BKD: u, an embedding for each image and label.
        teacher_BKE: v; lengths may differ. No gradient reaches it.
        labels_BK: y, 0 or 1.

    Returns:
        L_CD and L_ID, scalars, unweighted, float32 at least.

    Raises:
        InputError: embeddings of other shapes, as of a head with fewer queries than labels; see also `labels.binary`.

    Source: specification, Method 4.
    """
    for argument, found in (("student_BKD", student_BKD), ("teacher_BKE", teacher_BKE)):
        if found.ndim != 3 or found.shape[:2] != labels_BK.shape:
            raise InputError(argument, f"shape {list(found.shape)}", f"an embedding for each image and label, [{_shape(labels_BK)}, D]")
    targets_BK = binary(labels_BK, student_BKD[:, :, 0])
    positive_BK = targets_BK == 1
    by_label = structure_losses(student_BKD.transpose(0, 1), teacher_BKE.transpose(0, 1), positive_BK.T).sum()
    by_image = structure_losses(student_BKD, teacher_BKE, positive_BK).sum()
    unknown = 0 * targets_BK.sum()  # NaN where a label is
    return by_label + unknown, by_image + unknown


def partial_softmax_loss(student_BK: Tensor, teacher_BK: Tensor, labels_BK: Tensor) -> Tensor:
    """A rival of MLD: softmax distillation as far as several labels allow it.

    For every positive, KL(teacher || student) of the softmax over it and all negatives of its image; summed over positives and images,
    divided by B.

    Args:
        student_BK: logits.
        teacher_BK: logits; no gradient reaches them.
        labels_BK: 0 or 1.

    Returns:
        A scalar, float32 at least.

    Raises:
        InputError: the shapes differ; see also `labels.binary`.

    Source: specification, Reference vectors, `psm`.
    """
    _same_logits(student_BK, teacher_BK)
    targets_BK = binary(labels_BK, student_BK)
    s_BK, t_BK = at_least_float32(student_BK), at_least_float32(teacher_BK.detach())
    positive_BK = targets_BK == 1
    none_B1 = positive_BK.all(1, keepdim=True)
    hidden_BK = positive_BK & ~none_B1  # where there is no negative, any finite stand-in: its share below is 0
    rest_s_B1, rest_t_B1 = (x_BK.masked_fill(hidden_BK, -torch.inf).logsumexp(1, keepdim=True) for x_BK in (s_BK, t_BK))
    gap_BK = t_BK - s_BK
    shares_BK = t_BK.masked_fill(hidden_BK, -torch.inf).softmax(1)
    rest_gap_B1 = (shares_BK * gap_BK).sum(1, keepdim=True)  # mean over the negatives of t - s, as the teacher weighs them
    alone_t_BK, alone_s_BK = t_BK - rest_t_B1, s_BK - rest_s_B1
    # With w the teacher's probability that it is none of the negatives: KL = w (t - s) + (1 - w) mean(t - s) - (log Z_t - log Z_s).
    normaliser_BK = (rest_t_B1 - logsigmoid(-alone_t_BK)) - (rest_s_B1 - logsigmoid(-alone_s_BK))
    losses_BK = alone_t_BK.sigmoid() * gap_BK + (-alone_t_BK).sigmoid() * rest_gap_B1 - normaliser_BK
    wanted_BK = positive_BK & ~none_B1
    return losses_BK.masked_fill(~wanted_BK, 0.0).sum() / len(s_BK) + 0 * targets_BK.sum()


def _same_logits(student_BK: Tensor, teacher_BK: Tensor) -> None:
    if student_BK.ndim != 2 or student_BK.shape != teacher_BK.shape:
        raise InputError("teacher_BK", f"shape {list(teacher_BK.shape)}", f"[B, K], as the student's {list(student_BK.shape)}")


def _shape(tensor: Tensor) -> str:
    return ", ".join(map(str, tensor.shape))
