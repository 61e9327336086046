"""The label losses of a step: of the source, of the few, and of the mixed images with pseudo labels and in the coarse classes.

L_src = (CE + Dice)(nuclei) + (CE + Dice)(coarse types) + MSE + MSGE,   L_few the same with the fine types
mixed: (CE + Dice) of the mix's nuclei, coarse types and fine types, and of the few's coarse types
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from stillroom.tasks.nuclei.losses import class_loss, distance_loss


class Answers(NamedTuple):
    """What the network says of a batch of images: scores [B, C, H, W] of the nuclei, the coarse and the fine types, and distances
    [B, 2, H, W]."""

    nuclei: Tensor
    distances: Tensor
    coarse: Tensor
    fine: Tensor


def source_loss(found: Answers, nuclei_BHW: Tensor, coarse_BHW: Tensor, distances_B2HW: Tensor) -> Tensor:
    """L_src.

    Args:
        found: of the source's images; the fine types are not read.
        nuclei_BHW: int64, 0 or 1.
        coarse_BHW: int64, true types of the coarse classes.
        distances_B2HW: true ones.
    """
    outlined = class_loss(found.nuclei, nuclei_BHW) + distance_loss(found.distances, distances_B2HW, nuclei_BHW)
    return outlined + class_loss(found.coarse, coarse_BHW)


def few_loss(found: Answers, nuclei_BHW: Tensor, fine_BHW: Tensor, distances_B2HW: Tensor) -> Tensor:
    """L_few, not weighted; as `source_loss`, with the fine types."""
    return source_loss(found._replace(coarse=found.fine), nuclei_BHW, fine_BHW, distances_B2HW)


def mixed_losses(
    mixed: Answers, nuclei_BHW: Tensor, fine_BHW: Tensor, few: Answers, few_fine_BHW: Tensor, coarse_of: Tensor
) -> dict[str, Tensor]:
    """The terms on mixed images, and those of the few in coarse classes, not weighted.

    Args:
        mixed: of the mixed images.
        nuclei_BHW, fine_BHW: their labels, pseudo and true.
        few: of the few.
        few_fine_BHW: their true types.
        coarse_of: tax, the coarse class of each fine one, int64 [C].
    """
    return {
        "mix_nuclei": class_loss(mixed.nuclei, nuclei_BHW),
        "mix_coarse": class_loss(mixed.coarse, coarse_of[fine_BHW]) + class_loss(few.coarse, coarse_of[few_fine_BHW]),
        "mix_types": class_loss(mixed.fine, fine_BHW),
    }
