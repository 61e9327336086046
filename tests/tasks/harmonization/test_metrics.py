"""Figures of harmonised pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stillroom.tasks.harmonization import Batch, HarmonyData
from stillroom.tasks.harmonization.metrics import HarmonyEvaluator, in_bins, squared_errors

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_a_soft_mask_weights_the_error_and_not_the_pictures() -> None:
    truth = torch.rand(1, 3, 8, 8) * 200
    mse, fmse = squared_errors(truth + 10, truth, torch.full((1, 1, 8, 8), 0.5))
    assert mse.item() == pytest.approx(100, rel=1e-4)
    assert fmse.item() == pytest.approx(100, rel=1e-4)  # 50 where both pictures were weighted


def test_an_empty_mask_has_no_error() -> None:
    truth = torch.rand(1, 3, 8, 8) * 200
    assert squared_errors(truth + 10, truth, torch.zeros(1, 1, 8, 8))[1].item() == 0


def scored(composites: torch.Tensor, reals: torch.Tensor, masks: torch.Tensor) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    evaluator = HarmonyEvaluator(MEAN, STD)
    for ids in torch.arange(len(reals)).split(3):
        evaluator.update(composites[ids], Batch(composites[ids], masks[ids], reals[ids], ids))
    return evaluator.compute(), evaluator.details()


def test_each_picture_counts_once_whatever_the_batches() -> None:
    data = HarmonyData("patches,train=40,val=16")
    batch = data.val_batch(range(7))
    figures, details = scored(batch.composites, batch.reals, batch.masks)
    mse, fmse = squared_errors(data.pixels(batch.composites), data.pixels(batch.reals), batch.masks)
    assert figures["MSE"] == pytest.approx(mse.mean().item(), rel=1e-5)
    assert figures["fMSE"] == pytest.approx(fmse.mean().item(), rel=1e-5) == pytest.approx(details["outcome"].mean(), rel=1e-5)
    assert details["ids"].tolist() == list(range(7))
    assert details["pictures"].shape == (7, 3, 32, 32)
    perfect, _ = scored(batch.reals, batch.reals, batch.masks)
    assert (perfect["fMSE"], perfect["SSIM"], perfect["fSSIM"]) == pytest.approx((0, 1, 1), abs=1e-6)


def test_figures_by_the_foregrounds_share() -> None:
    share = np.array([0.0, 0.049, 0.05, 0.2, 1.0])
    assert [bin_.tolist() for bin_ in in_bins(share).values()] == [
        [True, True, False, False, False],
        [False, False, True, False, False],
        [False, False, False, True, True],
    ]
    reals = torch.zeros(2, 3, 10, 10)
    masks = torch.zeros(2, 1, 10, 10)
    masks[0, 0, 0, :3] = 1  # 3 %
    masks[1, 0, :5] = 1  # half of it
    figures, _ = scored(reals + 0.1, reals, masks)
    assert {name for name in figures if "%" in name} == {"fMSE 0-5 %", "fMSE 15-100 %"}


def test_answers_beyond_the_range_are_clamped_and_a_lost_foreground_spoils_no_mean() -> None:
    reals, masks = torch.full((2, 3, 8, 8), 10.0), torch.zeros(2, 1, 8, 8)
    masks[0, 0, :4] = 1
    figures, _ = scored(reals + 5, reals, masks)
    assert figures["fMSE"] == 0
    assert np.isfinite(figures["fSSIM"])
