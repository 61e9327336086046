"""How near harmonised pictures are to the real photos: errors of the whole and of the foreground, on values from 0 to 255."""

from __future__ import annotations

from torch import Tensor

_STEADY = 1e-6  # of fMSE's denominator, so that it is 0 where the foreground is empty


def squared_errors(predicted_B3HW: Tensor, truth_B3HW: Tensor, mask_B1HW: Tensor) -> tuple[Tensor, Tensor]:
    """MSE and fMSE of each picture, [B] both: mean of d^2, and sum(M d^2) / (3 sum(M) + 1e-6).

    A soft mask weights the error, not the pictures: where it is 0.5 everywhere and every value is off by 10, fMSE is 100, not 50.

    Source: iSSAM/iDIH release.
    """
    squared = (predicted_B3HW - truth_B3HW).square()
    inside_B = (mask_B1HW * squared).sum((1, 2, 3)) / (squared.shape[1] * mask_B1HW.sum((1, 2, 3)) + _STEADY)
    return squared.flatten(1).mean(1), inside_B


def foreground_mean(values_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
    """The mean over each picture's foreground, then over channels, [B]: fSSIM, of a map of SSIM. NaN where there is no foreground."""
    return ((values_BCHW * mask_B1HW).sum((2, 3)) / mask_B1HW.sum((2, 3))).mean(1)
