"""Losses on the maps of nuclei: classes of pixels, and each nucleus pixel's place in its nucleus.

    CE   = mean over pixels of -log clamp(softmax_y, 1e-7, 1 - 1e-7)
    Dice = sum over classes of 1 - (2 sum(p t) + s) / (sum p + sum t + s),   sums over the batch of all processes
    MSE  = mean (v - v*)^2,   MSGE = sum over nucleus pixels of (S * v - S * v*)^2 / (2 nucleus pixels)

v are distances [B, 2, H, W] to the nucleus's centre, horizontal and vertical, from -1 to 1; S a derivative filter of 5 x 5.

Source: HoVer-Net (Graham et al. 2019), section 2.2, with the filter of its code.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, mse_loss, one_hot

from stillroom.engine.distributed import whole_batch
from stillroom.losses.precision import at_least_float32

_CLAMP, _SMOOTH, _KERNEL, _EPS = 1e-7, 1e-3, 5, 1e-8


def cross_entropy(logits_BCHW: Tensor, labels_BHW: Tensor, *, clamp: float = _CLAMP) -> Tensor:
    """CE: cross-entropy of clamped probabilities, averaged over all pixels.

    Args:
        logits_BCHW: scores of the classes.
        labels_BHW: int64, from 0 to C - 1.
        clamp: least distance of a probability from 0 and 1.
    """
    probabilities = at_least_float32(logits_BCHW).softmax(1).gather(1, labels_BHW[:, None])
    return -probabilities.clamp(clamp, 1 - clamp).log().mean()


def dice_loss(logits_BCHW: Tensor, labels_BHW: Tensor, *, smooth: float = _SMOOTH) -> Tensor:
    """Dice: summed over the classes, background included; of the batch as a whole.

    Args:
        logits_BCHW, labels_BHW: as in `cross_entropy`.
        smooth: s, added above and below.
    """
    p_BCHW = at_least_float32(logits_BCHW).softmax(1)
    t_BCHW = one_hot(labels_BHW, p_BCHW.shape[1]).movedim(-1, 1).to(p_BCHW.dtype)
    both_C, sizes_C = _of_all((p_BCHW * t_BCHW).sum((0, 2, 3)), p_BCHW.sum((0, 2, 3)) + t_BCHW.sum((0, 2, 3)))
    return (1 - (2 * both_C + smooth) / (sizes_C + smooth)).sum()


def class_loss(logits_BCHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """CE + Dice."""
    return cross_entropy(logits_BCHW, labels_BHW) + dice_loss(logits_BCHW, labels_BHW)


def derivative_kernels(size: int, like: Tensor) -> Tensor:
    """The filters of the horizontal and of the vertical distances, [2, 1, size, size].

    That of the horizontal ones varies along rows, as in HoVer-Net's code, whose grid has matrix indices.
    """
    steps = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
    x, y = torch.meshgrid(steps, steps, indexing="ij")
    squared = x**2 + y**2 + 1e-15
    return torch.stack((x / squared, y / squared))[:, None]


def distance_mse(found_B2HW: Tensor, true_B2HW: Tensor) -> Tensor:
    """MSE of distances, averaged over pixels, background included, and both directions."""
    return mse_loss(at_least_float32(found_B2HW), at_least_float32(true_B2HW))


def distance_msge(found_B2HW: Tensor, true_B2HW: Tensor, nuclei_BHW: Tensor, *, kernel: int = _KERNEL) -> Tensor:
    """MSGE: mean squared error of the distances' derivatives over nucleus pixels and both directions.

    Args:
        found_B2HW, true_B2HW: distances.
        nuclei_BHW: 1 in nuclei, else 0; without a nucleus the loss is 0.
        kernel: side of the filters in pixels.
    """
    error_B2HW = at_least_float32(found_B2HW) - at_least_float32(true_B2HW)
    derived = conv2d(error_B2HW, derivative_kernels(kernel, error_B2HW), padding=kernel // 2, groups=2)
    inside_B1HW = nuclei_BHW[:, None].to(derived.dtype)
    error, inside = _of_all((inside_B1HW * derived**2).sum(), inside_B1HW.sum())
    return error / (2 * inside + _EPS)


def _of_all(above: Tensor, below: Tensor) -> Tensor:
    """Both sums over the images of all processes, [2, ...]: a quotient of sums is no mean of the processes' quotients."""
    return whole_batch(torch.stack((above, below))[None]).sum(0)


def distance_loss(found_B2HW: Tensor, true_B2HW: Tensor, nuclei_BHW: Tensor) -> Tensor:
    """MSE + MSGE."""
    return distance_mse(found_B2HW, true_B2HW) + distance_msge(found_B2HW, true_B2HW, nuclei_BHW)
