"""The contrastive loss that CLIPs are trained with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stillroom.engine.distributed import gather_with_gradient, rank
from stillroom.losses.precision import in_one_type


def contrastive_loss(image_BD: Tensor, text_BD: Tensor, scale: Tensor | float) -> Tensor:
    """The symmetric contrastive loss: each image's own text among those of all processes, and the reverse, 1/2 each.

    Args:
        image_BD, text_BD: embeddings of this process's pairs, of unit length. Every process has as many.
        scale: gamma.

    Returns:
        A scalar: the mean over this process's rows. A caption that two images share counts as wrong for one of them.

    Source: Radford et al. 2021 (CLIP), figure 3.
    """
    first = rank() * len(image_BD)
    image_to_text = own_among_all(image_BD, gather_with_gradient(text_BD), first, scale)
    text_to_image = own_among_all(text_BD, gather_with_gradient(image_BD), first, scale)
    return (image_to_text + text_to_image) / 2


def own_among_all(rows_BD: Tensor, columns_ND: Tensor, first: int, scale: Tensor | float) -> Tensor:
    """One direction: cross-entropy of the softmaxed similarities, where row i's own column is `first` + i; the mean over rows."""
    rows_BD, columns_ND = in_one_type(rows_BD, columns_ND)
    with torch.autocast(rows_BD.device.type, enabled=False):
        return cross_entropy(scale * (rows_BD @ columns_ND.T), first + torch.arange(len(rows_BD), device=rows_BD.device))
