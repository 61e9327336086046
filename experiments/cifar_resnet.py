"""The ResNets for CIFAR of He et al. (2016), with shortcuts without parameters: somebody's own network, as `file.py:function`.

    stillroom run kd --data imagefolder:cifar10.zip --teacher experiments/cifar_resnet.py:resnet56@resnet56.safetensors ...

The names are those of widely used trained weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

NETWORK = Path(__file__)
STATISTICS: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # that the weights were trained with


class Block(nn.Module):
    """Two 3x3 convolutions; where it halves the size its shortcut takes every second pixel and pads the channels with zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.more = outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2 if self.more else 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2)) if self.more else x
        return F.relu(y + shortcut)


class ResNet(nn.Module):
    """Images [B, 3, 32, 32] to logits [B, C]; three stages of n blocks."""

    def __init__(self, n: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16) for _ in range(n)))
        self.layer2 = nn.Sequential(Block(16, 32), *(Block(32, 32) for _ in range(n - 1)))
        self.layer3 = nn.Sequential(Block(32, 64), *(Block(64, 64) for _ in range(n - 1)))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(images))))))
        return self.linear(x.mean((2, 3)))


def resnet20(num_classes: int) -> nn.Module:
    """0.27 M parameters."""
    return ResNet(3, num_classes)


def resnet56(num_classes: int) -> nn.Module:
    """0.86 M parameters."""
    return ResNet(9, num_classes)
