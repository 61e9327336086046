"""Wide ResNet for small images (Zagoruyko and Komodakis 2016): pre-activation residual blocks, few and wide."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.modules.convolutions import Taps, global_average_pool, initialise_convolutions, stage


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU (leaky with a `slope` above 0) come before each 3x3 convolution.

    Where the number of channels changes, the shortcut is a 1x1 convolution of the activated input; else it is the input itself.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, slope: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = _activation(slope)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = _activation(slope)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        same_shape = stride == 1 and in_channels == channels
        self.projection = None if same_shape else nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, H / stride, W / stride]."""
        activated = self.relu1(self.bn1(x))
        branch = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return branch + (x if self.projection is None else self.projection(activated))


class WideResNet(nn.Module):
    """Images [B, in_channels, H, W] -> logits [B, num_classes]: 3x3 stem of 16, stages of 16k, 32k, 64k, global pool, linear.

    Args:
        depth: 6n + 4 layers, n blocks in each stage; 16, 40, ...
        width: k, the factor on every stage's channels.
        num_classes: C.
        in_channels: channels of the images.
        slope: of every activation below zero. Semi-supervised learning's WRN-28-2 has 0.1, and Xavier-normal weights in its linear layer.

    Raises:
        InputError: when the depth is not 6n + 4.

    Source: Zagoruyko, Komodakis, "Wide Residual Networks", 2016, table 1, without dropout.
    """

    def __init__(self, depth: int, width: int, *, num_classes: int, in_channels: int = 3, slope: float = 0.0) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise InputError("depth", depth, "6n + 4 with n of at least 1 (10, 16, 22, 28, 40, ...)")
        blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False)
        block = partial(PreActivationBlock, slope=slope)
        self.layer1 = stage(block, 16, 16 * width, blocks, stride=1)
        self.layer2 = stage(block, 16 * width, 32 * width, blocks, stride=2)
        self.layer3 = stage(block, 32 * width, 64 * width, blocks, stride=2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.relu = _activation(slope)
        self.pool = global_average_pool()
        self.fc = nn.Linear(64 * width, num_classes)
        initialise_convolutions(self)
        nn.init.zeros_(self.fc.bias)
        if slope:
            nn.init.xavier_normal_(self.fc.weight)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, num_classes]."""
        x = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return self.fc(self.pool(self.relu(self.bn(x))))

    def taps(self) -> Taps:
        """Stem and the end of each stage, normalised: a stage's sum meets its batch norm and ReLU at the head of what follows it."""
        following = ("layer1.0", "layer2.0", "layer3.0")
        return Taps((*(f"{block}.relu1" for block in following), "relu"), (*(f"{block}.bn1" for block in following), "bn"), "pool")


def _activation(slope: float) -> nn.Module:
    return nn.LeakyReLU(slope) if slope else nn.ReLU()
