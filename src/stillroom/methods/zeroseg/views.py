"""Multi-scale views: the image and the cells of its grids, each as the teacher reads it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stillroom.errors import InputError

Box = tuple[int, int, int, int]


def boxes(height: int, width: int, scales: Sequence[int]) -> list[Box]:
    """Of every scale s the s x s cells, row by row: top, bottom, left, right in pixels, the ends not included.

    Raises:
        InputError: scales that are no different whole numbers from 1, or an image with fewer pixels than cells.
    """
    if not scales or min(scales) < 1 or len(set(scales)) < len(scales):
        raise InputError("view_scales", list(scales), "different whole numbers of at least 1")
    if max(scales) > min(height, width):
        raise InputError("view_scales", list(scales), f"at most {min(height, width)} cells a side of an image of {width} x {height} pixels")
    found = []
    for s in scales:
        rows, columns = ([length * i // s for i in range(s + 1)] for length in (height, width))
        found += [(rows[r], rows[r + 1], columns[c], columns[c + 1]) for r in range(s) for c in range(s)]
    return found


def views(images_BCHW: Tensor, scales: Sequence[int], size: int) -> Tensor:
    """All views of each image, brought to `size` pixels by antialiased bicubic interpolation: [B, views, C, size, size].

    Raises:
        InputError: see `boxes`.
    """
    cut = boxes(images_BCHW.shape[2], images_BCHW.shape[3], scales)
    parts = [images_BCHW[:, :, top:bottom, left:right] for top, bottom, left, right in cut]
    return torch.stack([interpolate(part, (size, size), mode="bicubic", antialias=True, align_corners=False) for part in parts], 1)
