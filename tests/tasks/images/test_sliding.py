"""Sliding windows: every pixel is seen, and what is seen twice is averaged without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stillroom.tasks.images.sliding import over_windows, starts


@pytest.mark.parametrize(("length", "window", "stride", "expected"), [(144, 64, 32, [0, 32, 64, 80]), (64, 64, 32, [0]), (40, 64, 32, [0])])
def test_the_last_window_ends_with_the_side(length: int, window: int, stride: int, expected: list[int]) -> None:
    assert starts(length, window, stride) == expected
    assert max(expected) + min(window, length) == length


def test_a_network_that_answers_with_its_input_returns_it_to_the_last_bit() -> None:
    images = [torch.randn(3, 144, 70), torch.randn(3, 20, 200), torch.randn(3, 64, 64)]
    for image, answer in zip(images, over_windows(lambda windows: windows, images, 64, 24), strict=True):
        assert torch.equal(image, answer)


def test_windows_that_differ_are_averaged_where_they_overlap() -> None:
    def by_first_pixel(windows: Tensor) -> Tensor:
        return windows[:, :1, :1, :1].expand(-1, 1, *windows.shape[2:])

    image = torch.arange(12.0).expand(1, 4, 12)
    (answer,) = over_windows(by_first_pixel, [image], 8, 4)
    assert answer[0, 0].tolist() == [0.0] * 4 + [2.0] * 4 + [4.0] * 4


def test_windows_of_several_images_go_through_the_network_together() -> None:
    shapes: list[tuple[int, ...]] = []

    def noted(windows: Tensor) -> Tensor:
        shapes.append(tuple(windows.shape))
        return windows

    over_windows(noted, [torch.randn(3, 32, 48), torch.randn(3, 32, 32)], 32, 16)
    assert shapes == [(3, 3, 32, 32)]
