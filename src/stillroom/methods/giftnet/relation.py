"""Relation distillation: foreground and background of the composite are to be as alike as those of the real photo.

For positions p of the foreground and q of the background of a level, on a grid of at most g x g:

    R^s_pq = <n(F'_p), n(F'_q)>     R^t_pq = <n(G_p), n(G_q)>
    L_rel,l = mean over pairs of (R^s - R^t)^2, over images that have a pair;   L_rel = mean over levels

Inferred: the paper's abstract says that the similarities between foreground and background of real images teach, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from stillroom.losses.precision import in_one_type

_ZERO = 1e-12  # length under which a feature vector counts as zero


def relation_loss(student_BCHW: Tensor, teacher_BCHW: Tensor, mask_B1HW: Tensor, *, grid: int = 16, threshold: float = 0.5) -> Tensor:
    """L_rel,l of one level: the mean over pairs of an image, then over the images that have at least one; 0 where none has.

    Args:
        student_BCHW: F', of the composite.
        teacher_BCHW: G, of the real photo; no gradient reaches it. Of the same height and width.
        mask_B1HW: of the foreground, in any size.
        grid: g; larger maps are averaged down to it.
        threshold: share of a cell from which on it is foreground.
    """
    size = min(student_BCHW.shape[2], grid), min(student_BCHW.shape[3], grid)
    inside_BP = (adaptive_avg_pool2d(mask_B1HW.to(torch.promote_types(mask_B1HW.dtype, torch.float32)), size) >= threshold).flatten(1)
    student, teacher = in_one_type(student_BCHW, teacher_BCHW.detach())
    with torch.autocast(student.device.type, enabled=False):
        differ_BPP = _similarities(student, size) - _similarities(teacher, size)
        pairs_BPP = (inside_BP[:, :, None] & ~inside_BP[:, None, :]).to(differ_BPP.dtype)
        count_B = pairs_BPP.sum((1, 2))
        mean_B = (pairs_BPP * differ_BPP.square()).sum((1, 2)) / count_B.clamp_min(1)
        return mean_B.sum() / (count_B > 0).sum().clamp_min(1)


def relation_losses(
    student: Sequence[Tensor], teacher: Sequence[Tensor], mask_B1HW: Tensor, *, grid: int = 16, threshold: float = 0.5
) -> Tensor:
    """L_rel,l of each level, [L]; their mean is L_rel. See `relation_loss`."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([relation_loss(one, other, mask_B1HW, grid=grid, threshold=threshold) for one, other in pairs])


def _similarities(features_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Cosines [B, P, P] of all positions of a grid. A vector of zeros has none, and no gradient: behind a ReLU such are no exception."""
    vectors_BCP = adaptive_avg_pool2d(features_BCHW, size).flatten(2)
    length_B1P = vectors_BCP.norm(dim=1, keepdim=True)
    unit_BCP = torch.where(length_B1P > _ZERO, vectors_BCP / length_B1P.clamp_min(_ZERO), 0.0)
    return unit_BCP.transpose(1, 2) @ unit_BCP
