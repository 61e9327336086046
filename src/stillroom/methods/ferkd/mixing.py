"""Mixing of crops and their labels: SelfMix, within one image (section 6), and MixUp / CutMix over the batch (section 7).

Each has two parts: what is drawn (`draw_mix`, `draw_partners`), and what is done with it (`mixup`, `cutmix`), which both kinds share: row
r is mixed with row `partners[r]`. SelfMix's partners are crops of the same image, those of the baseline any rows.

The rows are crop-major: row k * B + b is crop k of image b.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Box(NamedTuple):
    """A box along the tensors' dimensions 2 and 3, in pixels, the ends excluded."""

    top: int
    bottom: int
    left: int
    right: int


class Mix(NamedTuple):
    """What was drawn for a step.

    Attributes:
        share: lambda in [0, 1], how much of a row stays its own. For CutMix before clipping.
        box: what comes from the partner; None for MixUp.
    """

    share: float
    box: Box | None


def draw_mix(height: int, width: int, *, mixup_alpha: float = 0.8, cutmix_alpha: float = 1.0) -> Mix:
    """MixUp or CutMix, half of the time each; one lambda, and for CutMix one box, for the whole step.

    lambda ~ Beta(alpha, alpha); drawn on the CPU from the global generator.
    """
    is_mixup = torch.rand(()).item() < 0.5
    alpha = mixup_alpha if is_mixup else cutmix_alpha
    gammas = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64))  # a quotient of gammas is a beta
    share = float(gammas[0] / gammas.sum())
    if is_mixup:
        return Mix(share, None)
    centre = int(torch.randint(height, ())), int(torch.randint(width, ()))
    return Mix(share, cutmix_box((height, width), share, centre))


def cutmix_box(size: tuple[int, int], share: float, centre: tuple[int, int]) -> Box:
    """The box around a centre with side ratio sqrt(1 - lambda), clipped at the borders (the released code's rule).

    Args:
        size: S2, S3, the tensor's dimensions 2 and 3.
        share: lambda.
        centre: along the same dimensions.
    """
    ratio = math.sqrt(1 - share)
    edges = []
    for length, middle in zip(size, centre, strict=True):
        half = int(length * ratio) // 2
        edges += [min(max(middle - half, 0), length), min(max(middle + half, 0), length)]
    return Box(*edges)


def draw_partners(num_crops: int, images: int, labels_RC: Tensor | None = None) -> Tensor:
    """For each crop the crop of the same image that it is mixed with, row numbers int64 [K * B]; never itself, unless K = 1.

    A random cyclic shift for each image, partner(k, b) = (k + s_b) mod K with s_b in 1 .. K-1, drawn on the CPU [inferred].

    Args:
        num_crops: K.
        images: B.
        labels_RC: if given, the partner is instead the crop whose label has the largest cosine with this one's: similar regions [inferred].
    """
    if num_crops == 1:
        return torch.arange(images)
    if labels_RC is not None:
        labels_BKC = torch.nn.functional.normalize(labels_RC.view(num_crops, images, -1).transpose(0, 1), dim=-1)
        cosines_BKK = labels_BKC @ labels_BKC.transpose(1, 2)
        itself_KK = torch.eye(num_crops, dtype=torch.bool, device=labels_RC.device)
        return partner_rows(cosines_BKK.masked_fill(itself_KK, -2.0).argmax(-1).T)
    shift_B = torch.randint(1, num_crops, (images,))
    return partner_rows((torch.arange(num_crops)[:, None] + shift_B) % num_crops)


def partner_rows(partners_KB: Tensor) -> Tensor:
    """Row numbers int64 [K * B] of partners that are given as crops 0 .. K-1 of the same image, int64 [K, B]."""
    images = partners_KB.shape[1]
    return (partners_KB * images + torch.arange(images, device=partners_KB.device)).reshape(-1)


def mixup(images_RCHW: Tensor, labels_RC: Tensor, partners_R: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """lambda x_r + (1 - lambda) x_partner, and the same of the labels."""
    images = share * images_RCHW + (1 - share) * images_RCHW[partners_R]
    return images, _mixed_labels(labels_RC, partners_R, share)


def cutmix(images_RCHW: Tensor, labels_RC: Tensor, partners_R: Tensor, box: Box) -> tuple[Tensor, Tensor, float]:
    """The box's content comes from the partner, and with it that share of the label.

    Returns:
        Images, labels, and lambda = 1 - area of the box / area of the image.
    """
    height, width = images_RCHW.shape[2:]
    mixed = images_RCHW.clone()
    mixed[:, :, box.top : box.bottom, box.left : box.right] = images_RCHW[partners_R, :, box.top : box.bottom, box.left : box.right]
    share = 1 - (box.bottom - box.top) * (box.right - box.left) / (height * width)
    return mixed, _mixed_labels(labels_RC, partners_R, share), share


def mixed(images_RCHW: Tensor, labels_RC: Tensor, partners_R: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """What was drawn, done."""
    if mix.box is None:
        return mixup(images_RCHW, labels_RC, partners_R, mix.share)
    images, labels, _ = cutmix(images_RCHW, labels_RC, partners_R, mix.box)
    return images, labels


def _mixed_labels(labels_RC: Tensor, partners_R: Tensor, share: float) -> Tensor:
    return share * labels_RC + (1 - share) * labels_RC[partners_R]
