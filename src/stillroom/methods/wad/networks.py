"""The teacher's network: a trunk under SimCLR's projection head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stillroom.modules.convolutions import conv_unit, global_average_pool
from stillroom.tasks.images.networks.resnet import BasicBlock


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


class ResNet18(nn.Module):
    """ResNet-18 for images of 32 pixels: 3x3 stem of 64 without max-pool, four stages of two basic blocks of 64 .. 512 channels.

    Weights keep PyTorch's initialisation [inferred].

    Args:
        num_classes: outputs of the linear layer.
        in_channels: channels of the images.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = conv_unit(in_channels, 64, 3)
        self.layer1 = _stage(64, 64, stride=1)
        self.layer2 = _stage(64, 128, stride=2)
        self.layer3 = _stage(128, 256, stride=2)
        self.layer4 = _stage(256, 512, stride=2)
        self.pool = global_average_pool()
        self.fc = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, num_classes]."""
        return self.fc(self.pool(self.layer4(self.layer3(self.layer2(self.layer1(self.stem(images)))))))


def _stage(in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(in_channels, channels, stride), BasicBlock(channels, channels, 1))
