"""PSNR, SSIM, padding: the conventions that programs differ in."""

from __future__ import annotations

import pytest
import torch

from stillroom.tasks.images.padding import cropped, padded
from stillroom.tasks.images.quality import gaussian_window, psnr, ssim_map


def test_the_peak_of_psnr_is_that_of_the_truth() -> None:
    flat = torch.full((1, 3, 8, 8), 100.0)
    assert psnr(flat + 10, flat).item() == pytest.approx(20.0, abs=1e-3)  # 28.1 with a peak of 255
    assert psnr(flat, flat).isfinite().all()


def test_each_picture_has_its_own_psnr() -> None:
    truth = torch.rand(3, 3, 8, 8) * 255
    noise = torch.tensor([1.0, 5.0, 20.0]).view(3, 1, 1, 1)
    one_by_one = torch.cat([psnr(truth[i : i + 1] + noise[i], truth[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(psnr(truth + noise, truth), one_by_one)
    assert one_by_one[0] > one_by_one[1] > one_by_one[2]


def test_ssim_of_equal_pictures_is_one_and_flat_ones_have_one() -> None:
    picture = torch.rand(2, 3, 20, 24) * 255
    torch.testing.assert_close(ssim_map(picture, picture), torch.ones(2, 3, 20, 24))
    flat = torch.full((1, 3, 12, 12), 7.0)
    assert ssim_map(flat, flat).isfinite().all()
    assert ssim_map(picture.flip(0), picture).mean() < 0.5


def test_the_window_is_centred_and_sums_to_one() -> None:
    window = gaussian_window(7, 1.5)
    assert window.sum().item() == pytest.approx(1)
    torch.testing.assert_close(window, window.flip(0, 1))
    assert window.argmax() == 24


@pytest.mark.parametrize("size", [(427, 640), (5, 3), (16, 32)])
def test_padded_to_a_multiple_and_cropped_back(size: tuple[int, int]) -> None:
    pictures = torch.rand(1, 4, *size)
    whole = padded(pictures, 8)
    assert all(side % 8 == 0 and 0 <= side - before < 8 for side, before in zip(whole.shape[2:], size, strict=True))
    assert whole.sum() == pictures.sum() or torch.isclose(whole.sum(), pictures.sum())
    assert torch.equal(cropped(whole, size), pictures)
