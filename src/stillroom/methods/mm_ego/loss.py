"""What the student minimises: the divergence from the ensemble's softened answers to every head.

Labels, where they are asked for, are `tasks.video.supervised.label_term`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stillroom.losses.logits import kd_loss
from stillroom.tasks.video.supervised import heads_of


def distillation_term(
    student: Mapping[str, Tensor], ensemble: Mapping[str, Tensor], weights: Mapping[str, float], temperature: float
) -> Tensor:
    """L_KD = 1/|A| sum_a tau^2 KL( softmax(T_a / tau) || softmax(s_a / tau) ), each divergence a mean over the batch.

    The heads' weights say which of them count (A), and scale nothing here.

    Args:
        student: s_a, logits [B, C_a] by head.
        ensemble: T_a, likewise. No gradient reaches it.
        weights: of the heads.
        temperature: tau > 0.

    Returns:
        A scalar, float32 or wider.

    Raises:
        InputError: no head counts, or the temperature is not above 0.

    Source: section "Student training" of the specification; from the released code.
    """
    chosen = heads_of(weights)
    return torch.stack([kd_loss(student[head], ensemble[head], temperature) for head in chosen]).mean()
