"""Squares cut from larger pictures: small images with the statistics of photographs that need no download."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stillroom.engine.loading import sample_seeds, uniforms


def patches(pictures: Sequence[Image.Image], count: int, size: int, *, seed: int = 0) -> Tensor:
    """Squares cut from larger pictures and brought to `size` pixels: uint8 [count, 3, size, size]; a pure function of the seed."""
    draws = uniforms(sample_seeds(seed, 1, np.arange(count)), 4)
    found = []
    for which, scale, across, down in draws.tolist():
        picture = pictures[int(which * len(pictures))]
        side = max(size, int((0.1 + 0.4 * scale) * min(picture.size)))
        left, top = int(across * (picture.width - side)), int(down * (picture.height - side))
        patch = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BOX)
        found.append(torch.from_numpy(np.array(patch.convert("RGB"))).permute(2, 0, 1))
    return torch.stack(found)
