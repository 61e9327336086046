"""MemKD's losses: L = L_KD + lambda1 L_NM + lambda2 L_ORTH, and the losses of the methods that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stillroom.errors import one_of
from stillroom.losses.features import cosine_distances
from stillroom.losses.precision import in_one_type
from stillroom.methods.memkd.memory import EPS

Distillation = Literal["positions", "flat", "squared"]
Orthogonality = Literal["squared", "signed"]
Reduction = Literal["mean", "sum_batch"]


def distillation_loss(
    students: Sequence[Tensor], teachers: Sequence[Tensor], kd: Distillation = "positions", reduction: Reduction = "mean"
) -> Tensor:
    """L_KD: how far the student's features are from the teacher's, over all levels.

    Args:
        students, teachers: a map [B, C, H, W] of each level; no gradient reaches the teacher's.
        kd: ``positions``: 1 - cosine over channels at every position, mean over positions and levels, MemKD's; ``flat``: one cosine per
            level and image over the whole map, summed over the levels, as the released code of reverse distillation; ``squared``: half the
            squared distance of the maps with channels normalised, mean over positions, summed over the levels, STFPM's.
        reduction: ``mean`` over the batch, or its sum, as the reproduction has it.

    Returns:
        A scalar, float32 at least.

    Source: the specification's loss 1 and notes 2 and 9; Wang et al. 2021 (STFPM), eq. 1 and 2.
    """
    return reduced(distances(students, teachers, kd), kd, reduction)


def distances(students: Sequence[Tensor], teachers: Sequence[Tensor], kd: Distillation = "positions") -> Tensor:
    """How far each picture's maps are apart, [levels, B]: what `distillation_loss` reduces; its arguments."""
    one_of("kd", kd, get_args(Distillation))
    levels = []
    for student_BCHW, teacher_BCHW in zip(students, teachers, strict=True):
        if kd == "flat":
            shape = student_BCHW.shape[0], -1, 1, 1
            levels.append(cosine_distances(student_BCHW.reshape(shape), teacher_BCHW.reshape(shape)).flatten())
        elif kd == "squared":
            levels.append(_half_squared(student_BCHW, teacher_BCHW.detach()).mean((1, 2)))
        else:
            levels.append(cosine_distances(student_BCHW, teacher_BCHW).mean((1, 2)))
    return torch.stack(levels)


def reduced(distances_KB: Tensor, kd: Distillation = "positions", reduction: Reduction = "mean") -> Tensor:
    """`distances` over levels and batch, as `distillation_loss` says."""
    levels_K = _over_batch(distances_KB, reduction)
    return levels_K.mean() if kd == "positions" else levels_K.sum()


def memorisation_loss(read_outs: Sequence[Tensor], features: Sequence[Tensor], reduction: Reduction = "mean") -> Tensor:
    """L_NM: 1/2 || n(G_p) - n(R_p) ||^2, mean over positions and memories: normal features must be readable from the values.

    Args:
        read_outs: R, what each memory's values read of its features [B, C, H, W].
        features: G, the teacher's features of normal exemplars; no gradient reaches them.
        reduction: ``mean`` over the exemplars, or their sum, as the reproduction has it.

    Returns:
        A scalar in [0, 2], float32 at least.

    Source: the specification's loss 2.
    """
    each = [_half_squared(recalled, target.detach()) for recalled, target in zip(read_outs, features, strict=True)]
    return over_memories(each, reduction)


def over_memories(distances_BHW: Sequence[Tensor], reduction: Reduction = "mean") -> Tensor:
    """`memorisation_loss` of what each memory's `embedding_distances` are."""
    return torch.stack([_over_batch(each_BHW.mean((1, 2)), reduction) for each_BHW in distances_BHW]).mean()


def orthogonal_loss(keys: Sequence[Tensor], values: Sequence[Tensor], form: Orthogonality = "squared") -> Tensor:
    """L_ORTH: keeps the keys and values of each memory apart; summed over the memories.

    Args:
        keys, values: of each memory, [L, C].
        form: ``squared``: the mean squared cosine over all L x L pairs, which is least where they are orthogonal; ``signed``: the mean
            cosine, as the reproduction has it, which is least where they are opposite.

    Returns:
        A scalar: 0 where all are orthogonal.

    Source: the specification's loss 3 and note 3.
    """
    one_of("orth", form, get_args(Orthogonality))
    terms = []
    for keys_LC, values_LC in zip(keys, values, strict=True):
        keys_LC, values_LC = in_one_type(keys_LC, values_LC)
        with torch.autocast(keys_LC.device.type, enabled=False):
            cosine_LL = normalize(keys_LC, dim=1, eps=EPS) @ normalize(values_LC, dim=1, eps=EPS).T
        terms.append((cosine_LL.square() if form == "squared" else cosine_LL).mean())
    return torch.stack(terms).sum()


def _half_squared(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """Half the squared distance of two maps with channels normalised, [B, H, W]."""
    first_BCHW, second_BCHW = in_one_type(first_BCHW, second_BCHW)
    return (normalize(first_BCHW, dim=1, eps=EPS) - normalize(second_BCHW, dim=1, eps=EPS)).square().sum(1) / 2


def _over_batch(each_XB: Tensor, reduction: Reduction) -> Tensor:
    one_of("reduction", reduction, get_args(Reduction))
    return each_XB.mean(-1) if reduction == "mean" else each_XB.sum(-1)
