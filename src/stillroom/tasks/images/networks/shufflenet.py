"""ShuffleNetV2 x1 for 32x32 images (Ma et al. 2018): the stem keeps the resolution and there is no max-pool."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillroom.modules.convolutions import Taps, conv_unit, global_average_pool


class Shuffle(nn.Module):
    """Joins two branches of D channels each and interleaves them: channel 2i is the first branch's i-th, 2i + 1 the second's."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """[B, D, H, W] twice -> [B, 2D, H, W]. The same as concatenation and a channel shuffle of two groups, in one copy."""
        return torch.stack((first, second), dim=2).flatten(1, 2)


class ShuffleBlock(nn.Module):
    """Half of the channels pass unchanged, the other half through 1x1, depthwise 3x3 and 1x1 convolutions.

    The last ReLU stands after the shuffle, where it acts on the untouched half as well: that half has come out of such a ReLU before,
    so nothing changes in value or gradient, and the tensor before it is one place that can be tapped.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = _branch(half, half, stride=1)
        self.shuffle = Shuffle()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> the same shape."""
        passed, worked = x.chunk(2, dim=1)
        return self.relu(self.shuffle(passed, self.branch(worked)))


class DownBlock(nn.Module):
    """Halves the resolution: both branches read the whole input, each gives half of the output channels."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.shortcut = nn.Sequential(
            conv_unit(in_channels, in_channels, 3, 2, groups=in_channels, activation=None),
            conv_unit(in_channels, half, 1, activation=None),
        )
        self.branch = _branch(in_channels, half, stride=2)
        self.shuffle = Shuffle()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, H / 2, W / 2]."""
        return self.relu(self.shuffle(self.shortcut(x), self.branch(x)))


class ShuffleNetV2(nn.Module):
    """Images [B, in_channels, H, W] -> logits [B, num_classes].

    1x1 stem to 24 channels; stages of 116, 232 and 464 channels, each a down block and then 3, 7 and 3 blocks; 1x1 to 1024; global pool;
    linear. Convolutions keep PyTorch's initialisation.

    Args:
        num_classes: C.
        in_channels: channels of the images.

    Source: Ma, Zhang, Zheng, Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018, table 5 (1x).
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = conv_unit(in_channels, 24, 1)
        self.layer1 = _stage(24, 116, blocks=3)
        self.layer2 = _stage(116, 232, blocks=7)
        self.layer3 = _stage(232, 464, blocks=3)
        self.head = conv_unit(464, 1024, 1)
        self.pool = global_average_pool()
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, num_classes]."""
        x = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return self.fc(self.pool(self.head(x)))

    def taps(self) -> Taps:
        """Stem and the end of each stage; before the activation: the stem's batch norm and the last block's shuffled join."""
        return Taps(
            ("stem", "layer1", "layer2", "layer3"),
            ("stem.bn", "layer1.3.shuffle", "layer2.7.shuffle", "layer3.3.shuffle"),
            "pool",
        )


def _branch(in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv_unit(in_channels, channels, 1),
        conv_unit(channels, channels, 3, stride, groups=channels, activation=None),
        conv_unit(channels, channels, 1, activation=None),
    )


def _stage(in_channels: int, channels: int, *, blocks: int) -> nn.Sequential:
    return nn.Sequential(DownBlock(in_channels, channels), *(ShuffleBlock(channels) for _ in range(blocks)))
