"""A small encoder-decoder: what a segmentation network is made of where nothing larger is asked for."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from stillroom.modules.convolutions import conv_unit, initialise_convolutions
from stillroom.tasks.images.padding import cropped, padded


class UNet(nn.Module):
    """Images [B, 3, H, W] of any size to scores [B, C, H, W].

    Levels of two 3x3 convolutions with batch norm, each of half the resolution and twice the channels of the one above; the decoder
    enlarges, appends the encoder's features of the level, and convolves once.

    Args:
        width: channels of the first level.
        levels: how many there are.
        num_classes: C.

    Source: Ronneberger et al. 2015, in small.
    """

    def __init__(self, width: int, levels: int, num_classes: int) -> None:
        super().__init__()
        channels = [3, *(width << level for level in range(levels))]
        self.encoder = nn.ModuleList(nn.Sequential(conv_unit(a, b, 3), conv_unit(b, b, 3)) for a, b in pairwise(channels))
        self.decoder = nn.ModuleList(conv_unit(3 * width << level, width << level, 3) for level in range(levels - 1))
        self.classifier = nn.Conv2d(width, num_classes, 1)
        initialise_convolutions(self)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """[B, C, H, W]."""
        x = padded(images_B3HW, 1 << len(self.decoder))
        features: list[Tensor] = []
        for level in self.encoder:
            x = level(x if not features else max_pool2d(x, 2))
            features.append(x)
        for level, above in zip(reversed(self.decoder), reversed(features[:-1]), strict=True):
            x = level(torch.cat((above, interpolate(x, scale_factor=2.0, mode="nearest")), 1))
        size = int(images_B3HW.shape[2]), int(images_B3HW.shape[3])
        return cropped(self.classifier(x), size)
