"""Weights of several layers and teachers without training (section 7 of Auto-KD's specification)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stillroom.losses.similarity import linear_cka

TAU_W = 0.1


def similarities(students: Sequence[Sequence[Tensor]], teachers: Sequence[Sequence[Tensor]]) -> Tensor:
    """rho [M, L]: CKA of each teacher's layers with those of an untrained student, the mean over its initialisations.

    Args:
        students: for each initialisation, the features of each of L layers for the same samples.
        teachers: for each of M teachers, the features of its L layers.
    """
    return torch.stack(
        [
            torch.stack(
                [torch.stack([linear_cka(student[layer], features) for student in students]).mean() for layer, features in enumerate(one)]
            )
            for one in teachers
        ]
    )


def weights_of(similarity: Tensor, tau: float = TAU_W) -> Tensor:
    """n * softmax(rho / tau) over the last dimension: the more similar, the heavier; their mean is 1."""
    return similarity.shape[-1] * (similarity / tau).softmax(-1)


def layer_and_teacher_weights(similarity_ML: Tensor, tau: float = TAU_W) -> tuple[Tensor, Tensor]:
    """lambda [M, L], of the layers within each teacher, and mu [M], of the teachers by the mean over their layers."""
    return weights_of(similarity_ML, tau), weights_of(similarity_ML.mean(1), tau)
