"""The teacher's network: a trunk under SimCLR's projection head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """Images as the student reads them, [B, 3, H, W] -> projections g(x) [B, D], which are not normalised.

    The projection head is Linear, ReLU, Linear; its first linear layer is the trunk's own last one. The trunk reads pixels brought from
    [0, 1] to [-1, 1].

    Args:
        trunk: any classifier with `hidden` outputs, its linear layer among them.
        mean, std: with which each channel of pixels in [0, 1] was normalised.
        hidden: width of the projection head.
        dim: D.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, mean: Sequence[float], std: Sequence[float], *, hidden: int = 512, dim: int = 128) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = nn.Sequential(nn.ReLU(), nn.Linear(hidden, dim))
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def pixels(self, images: Tensor) -> Tensor:
        """The images with pixels in [0, 1], which random views are made of."""
        return images * self.std + self.mean

    def project(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] -> projections."""
        return self.projection(self.trunk((pixels - 0.5) / 0.5))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.project(self.pixels(images))
