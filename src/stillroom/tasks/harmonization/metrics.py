"""How near harmonised pictures are to the real photos: errors of the whole and of the foreground, on values from 0 to 255."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.distributed import gather_samples, gathered
from stillroom.engine.report.results import Metric
from stillroom.tasks.images.quality import psnr, ssim_map

if TYPE_CHECKING:
    from stillroom.tasks.harmonization.batches import Batch

BINS = (0, 5), (5, 15), (15, 100)  # shares of the picture that the foreground takes, in %
SHOWN = 8  # pictures that a report may show
_FIGURES = {"fMSE": "outcome", "MSE": "mse", "PSNR": "psnr", "SSIM": "ssim", "fSSIM": "fssim"}
METRICS = {
    "fMSE": Metric("fMSE", "", 1, False),
    "MSE": Metric("MSE", "", 2, False),
    "PSNR": Metric("PSNR, peak of the truth", "dB", 2, True),
    "SSIM": Metric("SSIM", "", 4, True),
    "fSSIM": Metric("fSSIM", "", 4, True),
    **{f"fMSE {low}-{high} %": Metric(f"fMSE, foreground {low}-{high} %", "", 1, False) for low, high in BINS},
}
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


class HarmonyEvaluator:
    """Collects harmonised pictures over a validation set, in one process or many.

    Figures, means over the pictures: ``MSE`` and ``fMSE`` (see `squared_errors`), ``PSNR`` in dB, its peak being the largest value of the
    truth, ``SSIM`` and ``fSSIM``, the latter's mean over the foreground; and ``fMSE 0-5 %`` etc. of the pictures whose foreground takes
    such a share of them, where there are some. Values are from 0 to 255; the prediction is clamped and not rounded.

    Args:
        mean, std: what pictures are normalised with.
    """

    primary = "fMSE"
    higher_is_better = False

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = mean, std
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._rows: list[tuple[Tensor, ...]] = []
        self._pictures: dict[int, Tensor] = {}

    def to(self, device: torch.device | str) -> HarmonyEvaluator:
        """What is kept lies on the CPU."""
        return self

    def update(self, answers: Tensor, batch: Batch) -> None:
        """Takes in a batch's pictures [B, 3, H, W], normalised."""
        predicted, truth = (pixels(images.detach(), self.mean, self.std) for images in (answers, batch.reals))
        masks = batch.masks.to(truth.dtype)
        mse_B, fmse_B = squared_errors(predicted, truth, masks)
        similar = ssim_map(predicted, truth)
        columns = mse_B, fmse_B, psnr(predicted, truth), similar.mean((1, 2, 3)), foreground_mean(similar, masks), masks.mean((1, 2, 3))
        self._rows.append((batch.ids.cpu(), *(column.cpu() for column in columns)))
        for index, picture in zip(batch.ids.tolist(), predicted, strict=True):
            if index < SHOWN:
                self._pictures[index] = picture.round().to(torch.uint8).cpu()

    def compute(self) -> dict[str, float]:
        """The figures, over all processes."""
        details = self._columns()
        figures = {name: float(np.nanmean(details[column], dtype=np.float64)) for name, column in _FIGURES.items()}
        for (low, high), inside_N in in_bins(details["share"]).items():
            if inside_N.any():
                figures[f"fMSE {low}-{high} %"] = float(details["outcome"][inside_N].mean(dtype=np.float64))
        return figures

    def details(self) -> dict[str, np.ndarray]:
        """Of each picture, in the order of ids: `ids`, `outcome` (its fMSE), `mse`, `psnr`, `ssim`, `fssim`, the foreground's `share`; and
        `pictures` uint8 [K, 3, H, W], the answers to the first ones.

        With several processes all of them must call it.
        """
        shown = {index: picture for part in gathered(self._pictures) for index, picture in part.items()}
        pictures = {"pictures": torch.stack([shown[index] for index in sorted(shown)]).numpy()} if shown else {}
        return {**self._columns(), **pictures}

    def _columns(self) -> dict[str, np.ndarray]:
        names = ("ids", "mse", "outcome", "psnr", "ssim", "fssim", "share")
        return dict(zip(names, gather_samples(self._rows), strict=True))


def in_bins(share_N: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Which foregrounds take which share of their picture, by the paper's bins in %: bool [N] each."""
    return {(low, high): (100 * share_N >= low) & ((100 * share_N < high) | (high == 100)) for low, high in BINS}


def pixels(images_B3HW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised pictures as values from 0 to 255, float32 at least, clamped and not rounded."""
    images = images_B3HW.to(torch.promote_types(images_B3HW.dtype, torch.float32))
    means, deviations = (torch.tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1) for values in (mean, std))
    return ((images * deviations + means) * 255).clamp(0, 255)
