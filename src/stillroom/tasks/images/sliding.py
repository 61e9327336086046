"""Sliding windows: a network for pictures of one size, on pictures of any size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_TOGETHER = 64  # windows that go through a network at a time


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side, in pixels: every `stride`, the last one so that it ends with the side; each pixel is in one."""
    return [0] if length <= window else [*range(0, length - window, stride), length - window]


def over_windows(network: Callable[[Tensor], Tensor], images: Sequence[Tensor], window: int, stride: int) -> list[Tensor]:
    """What a network answers to images of any sizes: at each pixel the mean of its answers to the windows that show it.

    Windows of one size go through the network together. A network that answers with its input returns exactly the images.

    Args:
        network: from [B, 3, h, w] to [B, C, h, w].
        images: [3, H, W] each; a side shorter than the window is its own window.
        window: its height and width in pixels.
        stride: pixels between two windows, from 1 to the window.

    Returns:
        [C, H, W] for each.
    """
    groups: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
    for number, image in enumerate(images):
        height, width = image.shape[1:]
        size = min(height, window), min(width, window)
        groups[size] += [(number, top, left) for top in starts(height, window, stride) for left in starts(width, window, stride)]
    answers: dict[int, Tensor] = {}
    seen = {number: image.new_zeros(image.shape[1:]) for number, image in enumerate(images)}
    for (rows, columns), places in groups.items():
        for first in range(0, len(places), _TOGETHER):
            part = places[first : first + _TOGETHER]
            batch = torch.stack([images[number][:, top : top + rows, left : left + columns] for number, top, left in part])
            for (number, top, left), answer_Chw in zip(part, network(batch), strict=True):
                mean = answers.setdefault(number, answer_Chw.new_zeros(len(answer_Chw), *images[number].shape[1:]))
                inside = slice(top, top + rows), slice(left, left + columns)
                seen[number][inside] += 1
                # as a running mean: of equal answers it is their value to the last bit, and nothing is divided by 0
                mean[:, inside[0], inside[1]] += (answer_Chw - mean[:, inside[0], inside[1]]) / seen[number][inside]
    return [answers[number] for number in range(len(images))]
