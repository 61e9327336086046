"""Images in another style, as pictures from elsewhere have: for an unlabelled collection that shows what `data` does, but otherwise.

Five styles, one for each image by its seed: grey with a tint; three levels of brightness; channels exchanged and strong contrast; heavily
blurred; a sketch of its edges.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad
from torchvision.transforms.v2.functional import gaussian_blur

from stillroom.engine.loading import sample_seeds, uniforms
from stillroom.modules.pixels import grey


def restyled(pixels_NCHW: Tensor, *, seed: int = 0) -> Tensor:
    """Each image in one of the styles; a pure function of the seed and the image's place.

    Args:
        pixels_NCHW: uint8 [N, 3, H, W].
        seed: of the styles and what is random in them.

    Returns:
        uint8 [N, 3, H, W].
    """
    draws = uniforms(sample_seeds(seed, 0, np.arange(len(pixels_NCHW))), 4)
    style_N = torch.from_numpy((draws[:, 0] * len(_STYLES)).astype(np.int64))
    numbers_N3 = torch.from_numpy(draws[:, 1:]).float()
    changed = pixels_NCHW.clone()
    for number, style in enumerate(_STYLES):
        here = style_N == number
        if here.any():
            changed[here] = (style(pixels_NCHW[here].float() / 255, numbers_N3[here]).clamp(0, 1) * 255).round().to(torch.uint8)
    return changed


def _tinted(images: Tensor, numbers_N3: Tensor) -> Tensor:
    return grey(images) * (0.4 + 0.6 * numbers_N3[:, :, None, None])


def _posterised(images: Tensor, numbers_N3: Tensor) -> Tensor:
    return (images * 2).round() / 2


def _exchanged(images: Tensor, numbers_N3: Tensor) -> Tensor:
    # The order of three random numbers is a random permutation; contrast around the image's own mean.
    order_N3 = numbers_N3.argsort(1)
    exchanged = images.gather(1, order_N3[:, :, None, None].expand_as(images))
    mean = exchanged.mean((1, 2, 3), keepdim=True)
    return mean + 2.5 * (exchanged - mean)


def _blurred(images: Tensor, numbers_N3: Tensor) -> Tensor:
    side = min(images.shape[-2:])
    radius = max(1, side // 10)
    return gaussian_blur(images, [2 * radius + 1] * 2, [side / 16])


def _sketched(images: Tensor, numbers_N3: Tensor) -> Tensor:
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack((across, across.T))[:, None]
    slopes = conv2d(pad(grey(images), (1, 1, 1, 1), mode="replicate"), kernels).square().sum(1, keepdim=True).sqrt()
    return (slopes / slopes.amax((2, 3), keepdim=True).clamp_min(1e-6)).expand(-1, 3, -1, -1)


_STYLES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_tinted, _posterised, _exchanged, _blurred, _sketched)
