"""L_f: audio features are drawn to a teacher's though nothing says which belongs where; and the losses that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate, kl_div, mse_loss

from stillroom.errors import at_least_zero
from stillroom.losses.precision import in_one_type

Negatives = Literal["all", "adjacent"]
_SHORTEST = 1e-8  # a norm counts as at least this


def cosines(teacher_BVC: Tensor, audio_BAC: Tensor) -> Tensor:
    """Cosine similarity of each teacher position with each audio position, [B, V, A]; norms are clamped at 1e-8."""
    teacher, audio = in_one_type(teacher_BVC.detach(), audio_BAC)
    unit_teacher, unit_audio = (features / features.norm(dim=-1, keepdim=True).clamp_min(_SHORTEST) for features in (teacher, audio))
    return unit_teacher @ unit_audio.transpose(1, 2)


def positives(cosine_BVA: Tensor) -> Tensor:
    """k(j): the audio position that is nearest to each teacher position, int64 [B, V]; no gradient goes through the choice."""
    return cosine_BVA.detach().argmax(-1)


def feature_triplet(teacher_BVC: Tensor, audio_BAC: Tensor, *, margin: float = 0.3, negative_index_BV: Tensor | None = None) -> Tensor:
    """The loose triplet loss, the mean over teacher positions and the batch.

        (1 / V) sum_j sum_(k' in N) max(0, m - v(j) * a(k(j)) + v(j) * a(k')),    * the cosine

    Args:
        teacher_BVC: v. No gradient reaches it.
        audio_BAC: a.
        margin: m.
        negative_index_BV: the one negative of each position (see `adjacent`), -1 for none; None: N is all other positions, and their sum.

    Returns:
        A scalar; 0 where there is but one audio position.

    Source: eq. of L_f^i in the paper.
    """
    at_least_zero("margin", margin)
    cosine_BVA = cosines(teacher_BVC, audio_BAC)
    positive_BV = positives(cosine_BVA)
    best_BV1 = cosine_BVA.gather(-1, positive_BV[..., None])
    if negative_index_BV is None:
        hinge_BVA = (margin - best_BV1 + cosine_BVA).clamp_min(0)
        others_BVA = torch.ones_like(hinge_BVA).scatter(-1, positive_BV[..., None], 0)
        return (hinge_BVA * others_BVA).sum(-1).mean()
    chosen_BV1 = cosine_BVA.gather(-1, negative_index_BV.clamp_min(0)[..., None])
    return torch.where(negative_index_BV >= 0, (margin - best_BV1 + chosen_BV1).clamp_min(0)[..., 0], 0.0).mean()


def adjacent(positive_BV: Tensor, grid: Sequence[int]) -> Tensor:
    """A neighbour of each position, drawn at random among those that there are, int64 [B, V]; -1 where there is none.

    Args:
        positive_BV: positions, numbered row by row.
        grid: the audio features' sides: [A], or [rows, columns] with four neighbours.
    """
    found, valid, stride = [], [], 1
    for side in reversed(grid):
        place_BV = positive_BV // stride % side
        for step in (-1, 1):
            found.append(positive_BV + step * stride)
            valid.append((place_BV + step >= 0) & (place_BV + step < side))
        stride *= side
    known_NBV = torch.stack(valid)
    drawn_NBV = torch.rand(known_NBV.shape, device=positive_BV.device).masked_fill(~known_NBV, -1)
    chosen_BV = torch.stack(found).gather(0, drawn_NBV.argmax(0, keepdim=True))[0]
    return torch.where(known_NBV.any(0), chosen_BV, -1)


# What it is compared with ---------------------------------------------------------------------------------------------------------------


def resized(features_BAC: Tensor, grid: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Features of one layout interpolated to another, [B, V, C]; a line of features lies along the last side, the same in all others."""
    channels_first = features_BAC.transpose(1, 2)
    batch, channels = channels_first.shape[:2]
    whole = channels_first.reshape(batch, channels, *(1,) * (len(wanted) - len(grid)), *grid)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(wanted)]
    return interpolate(whole, size=tuple(wanted), mode=mode, align_corners=False).flatten(2).transpose(1, 2)


def feature_mse(teacher_BVC: Tensor, student_BVC: Tensor) -> Tensor:
    """Mean squared difference. No gradient reaches the teacher."""
    student, teacher = in_one_type(student_BVC, teacher_BVC.detach())
    return mse_loss(student, teacher)


def attention_kl(teacher_BVC: Tensor, student_BVC: Tensor) -> Tensor:
    """MTA: KL(teacher || student) of the spatial attention maps softmax_l sum_c f^2, the mean over the batch.

    Source: MM-DistillNet, as the paper's baselines have it.
    """
    student, teacher = in_one_type(student_BVC, teacher_BVC.detach())
    log_q, log_p = (features.square().sum(-1).log_softmax(-1) for features in (student, teacher))
    return kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def ranking(teacher_BVC: Tensor, student_BVC: Tensor, *, margin: float = 0.3) -> Tensor:
    """Triplets over the batch: a student's pooled features are to be nearer to its own teacher's than to any other sample's.

    The mean over samples and their negatives; 0 for one sample.

    Source: the ranking loss of audio-visual distillation that the paper compares with [inferred: cosine, all negatives, margin of L_f].
    """
    cosine_1BB = cosines(teacher_BVC.mean(1)[None], student_BVC.mean(1)[None])[0]
    hinge_BB = (margin - cosine_1BB.diagonal()[:, None] + cosine_1BB).clamp_min(0)
    others_BB = 1 - torch.eye(len(hinge_BB), dtype=hinge_BB.dtype, device=hinge_BB.device)
    return (hinge_BB * others_BB).sum() / others_BB.sum().clamp_min(1)
