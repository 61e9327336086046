"""Pseudo labels of target images, and their mixing with annotated nuclei of the few.

A pixel's pseudo label is the most probable class, or background where that has less than the threshold's probability. Every annotated
nucleus of the few image i is pasted over the target image i, with its labels: M few + (1 - M) target.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stillroom.losses.precision import at_least_float32


def pseudo_labels(logits_BCHW: Tensor, threshold: float) -> Tensor:
    """int64 [B, H, W]: the most probable class, 0 where its probability is below the threshold. Without gradient."""
    probability_BHW, label_BHW = at_least_float32(logits_BCHW.detach()).softmax(1).max(1)
    return label_BHW.where(probability_BHW >= threshold, 0)


@dataclass(frozen=True)
class Mixed:
    """Target images with pasted nuclei.

    Attributes:
        images: [B, 3, H, W].
        nuclei: pseudo and true labels, int64 [B, H, W], 0 or 1.
        types: the same, of the fine classes.
    """

    images: Tensor
    nuclei: Tensor
    types: Tensor


def mix(target: Mixed, few: Mixed) -> Mixed:
    """`target` with every nucleus of `few`: pixels whose type is none of the background's, in images and labels."""
    pasted_BHW = few.types > 0
    return Mixed(
        torch.where(pasted_BHW[:, None], few.images, target.images),
        few.nuclei.where(pasted_BHW, target.nuclei),
        few.types.where(pasted_BHW, target.types),
    )
