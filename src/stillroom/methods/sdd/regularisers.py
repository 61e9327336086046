"""What keeps the edited image close to the unedited one."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from stillroom.losses.precision import in_one_type


def identity_loss(edited_BD: Tensor, source_BD: Tensor, weight: float = 1.0) -> Tensor:
    """L_id = weight * mean over the batch of (1 - <a(x), sg[a(x0)]>).

    The released trainer hands it the unedited image twice, where it is a constant; this is what was meant.

    Args:
        edited_BD: unit embeddings of the edited images, by a frozen network that is differentiated through.
        source_BD: of the unedited images; no gradient reaches them.
    """
    edited_BD, source_BD = in_one_type(edited_BD, source_BD.detach())
    return weight * (1 - (edited_BD * source_BD).sum(1)).mean()


def unit_embedding(features: Tensor) -> Tensor:
    """An embedding network's answer [B, ...] as unit rows [B, D]."""
    return normalize(features.flatten(1).float(), dim=1)


def image_l2(images: Tensor, unedited: Tensor, weight: float) -> Tensor:
    """L_2 of Student B: weight * mean (x - x0)^2; no gradient reaches x0."""
    return weight * (images - unedited.detach()).square().mean()
