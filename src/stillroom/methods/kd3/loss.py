"""KD^3's part 2: weighted feature alignment. (Part 3b, the contrast, is `stillroom.losses.contrast.nt_xent` with t = 0.3.)

L_feat = mean over (B, C, H, W) of w_i (m_s - m_t)^2        w_i = sigmoid(d_i)        d_i = || z_s,i - z_t,i + 1e-6 ||_2
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pairwise_distance

from stillroom.errors import InputError
from stillroom.losses.precision import at_least_float32, in_one_type


@torch.no_grad()
def disagreement_weight(student_BK: Tensor, teacher_BK: Tensor) -> tuple[Tensor, Tensor]:
    """d and w of each image: those on which the student still disagrees with the teacher weigh more.

    Args:
        student_BK: z_s, through the shared classifier.
        teacher_BK: z_t.

    Returns:
        d >= 0, [B]; and w in (0.5, 1], [B], both float32 at least. Both are constants: no gradient flows through the weight.

    Raises:
        InputError: the logits are not two equal shapes [B, K].

    Source: part 2; 1e-6 is what PyTorch's pairwise distance adds to every component of the difference.
    """
    if student_BK.ndim != 2 or student_BK.shape != teacher_BK.shape:
        raise InputError("student_BK", f"shape {list(student_BK.shape)}", f"logits [B, K] as the teacher's {list(teacher_BK.shape)}")
    distance_B = pairwise_distance(*in_one_type(student_BK, teacher_BK), p=2.0, eps=1e-6)
    return distance_B, distance_B.sigmoid()


def weighted_feature_loss(student_BCHW: Tensor, teacher_BCHW: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Squared distance of the student's connected map to the teacher's, each image with its weight; the mean over (B, C, H, W).

    Args:
        student_BCHW: m_s, the connector's answer.
        teacher_BCHW: m_t, the teacher's map in the same shape. No gradient reaches it.
        weight_B: w; no gradient reaches it. None for no weights: a plain mean squared error.

    Returns:
        A scalar, float32 at least.

    Raises:
        InputError: the maps are not two equal shapes [B, C, H, W], or there are not as many weights.

    Source: part 2, L_feat. The released code loops over the batch; this is the same product at once.
    """
    if student_BCHW.ndim != 4 or student_BCHW.shape != teacher_BCHW.shape:
        raise InputError("student_BCHW", f"shape {list(student_BCHW.shape)}", f"[B, C, H, W] as the teacher's {list(teacher_BCHW.shape)}")
    squared_BCHW = (at_least_float32(student_BCHW) - teacher_BCHW.detach()).square()
    if weight_B is None:
        return squared_BCHW.mean()
    if weight_B.shape != student_BCHW.shape[:1]:
        raise InputError("weight_B", f"shape {list(weight_B.shape)}", f"[{len(student_BCHW)}], one for each image")
    return (weight_B.detach()[:, None, None, None] * squared_BCHW).mean()
