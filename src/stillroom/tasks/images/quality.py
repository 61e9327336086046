"""How far pictures are from what they should be: PSNR and the map of structural similarity, on values from 0 to 255.

Two conventions differ between programs and are fixed here: the peak of PSNR is the largest value of the truth, not 255 (a flat truth of 100
with an error of 10 has 20.0 dB, not 28.1); SSIM is taken on maps padded with zeros, and its range is that of the prediction.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

_STEADY = 1e-6  # added to the error, so that equal pictures have a finite PSNR


def psnr(predicted_BCHW: Tensor, truth_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, [B]: 10 log10( max(truth)^2 / (MSE + 1e-6) ).

    Source: iSSAM/iDIH release; its published tables are by this peak.
    """
    error_B = (predicted_BCHW - truth_BCHW).square().flatten(1).mean(1)
    return 10 * torch.log10(truth_BCHW.flatten(1).amax(1).square() / (error_B + _STEADY))


def gaussian_window(side: int, sigma: float) -> Tensor:
    """Weights [side, side] in float64 that sum to 1, centred; `sigma` in pixels."""
    place = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.exp(-(place**2) / (2 * sigma**2))
    window = torch.outer(line, line)
    return window / window.sum()


def ssim_map(
    predicted_BCHW: Tensor, truth_BCHW: Tensor, *, window: int = 7, sigma: float = 1.5, data_range: Tensor | float | None = None
) -> Tensor:
    """Structural similarity at each place of each channel, [B, C, H, W]; its mean is a picture's SSIM.

    Args:
        predicted_BCHW, truth_BCHW: of one type and range.
        window: side of the Gaussian window in pixels, odd; the pictures are padded with zeros.
        sigma: of the window, in pixels.
        data_range: R of C1 = (0.01 R)^2 and C2 = (0.03 R)^2, one number or [B]; by default max - min of each prediction.

    Source: Wang et al. 2004, in the form of the CDTNet release.
    """
    if data_range is None:
        flat = predicted_BCHW.flatten(1)
        data_range = (flat.amax(1) - flat.amin(1)).clamp_min(1)  # one grey level, of a flat picture
    range_B111 = torch.as_tensor(data_range, dtype=predicted_BCHW.dtype, device=predicted_BCHW.device).reshape(-1, 1, 1, 1)
    weights = gaussian_window(window, sigma).to(predicted_BCHW)[None, None].expand(predicted_BCHW.shape[1], 1, -1, -1)

    def around(values: Tensor) -> Tensor:
        return conv2d(values, weights, padding=window // 2, groups=values.shape[1])

    mean_p, mean_t = around(predicted_BCHW), around(truth_BCHW)
    variance_p, variance_t = around(predicted_BCHW**2) - mean_p**2, around(truth_BCHW**2) - mean_t**2
    covariance = around(predicted_BCHW * truth_BCHW) - mean_p * mean_t
    c1, c2 = (0.01 * range_B111) ** 2, (0.03 * range_B111) ** 2
    return ((2 * mean_p * mean_t + c1) * (2 * covariance + c2)) / ((mean_p**2 + mean_t**2 + c1) * (variance_p + variance_t + c2))
