"""VGG with batch norm for small images: the convolutions of Simonyan and Zisserman 2015 under one linear layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.modules.convolutions import Taps, conv_unit, global_average_pool, initialise_convolutions

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Images [B, in_channels, H, W] -> logits [B, num_classes]: five blocks of 3x3 convolutions, global pool, linear.

    A 2x2 max-pool follows blocks 0, 1 and 2, and block 3 too when the network is built for images of 64 pixels or more.

    Args:
        depth: 8, 11, 13, 16 or 19, as in the original's table, whose three linear layers are one here.
        num_classes: C.
        in_channels: channels of the images.
        image_size: side of the images in pixels; decides only whether block 3 is pooled. Other sizes (8 at least) can be read all the same.

    Raises:
        InputError: when the depth is another.

    Source: Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015, table 1.
    """

    def __init__(self, depth: int, *, num_classes: int, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise InputError("depth", depth, f"one of {', '.join(map(str, CONVOLUTIONS))}")
        self._convolutions = CONVOLUTIONS[depth]
        inputs = (in_channels, *WIDTHS)
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(inputs[i], WIDTHS[i], self._convolutions[i]) for i in range(5)
        )
        self.pool0, self.pool1, self.pool2 = nn.MaxPool2d(2), nn.MaxPool2d(2), nn.MaxPool2d(2)
        self.pool3 = nn.MaxPool2d(2) if image_size >= 64 else nn.Identity()
        self.pool = global_average_pool()
        self.fc = nn.Linear(WIDTHS[-1], num_classes)
        initialise_convolutions(self)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, num_classes]."""
        x = self.pool0(self.block0(images))
        x = self.pool1(self.block1(x))
        x = self.pool2(self.block2(x))
        x = self.pool3(self.block3(x))
        return self.fc(self.pool(self.block4(x)))

    def taps(self) -> Taps:
        """The end of each block, before its max-pool; before the activation: the last batch norm of the block."""
        blocks = tuple(f"block{i}" for i in range(5))
        return Taps(blocks, tuple(f"{block}.{n - 1}.bn" for block, n in zip(blocks, self._convolutions, strict=True)), "pool")


class FivePools(VGG):
    """As `VGG`, with a 2x2 max-pool behind every block, as in the original's table: images of 32 pixels end in one position.

    Args:
        depth, options: those of `VGG`.
    """

    def __init__(self, depth: int, **options: Any) -> None:
        super().__init__(depth, **options)
        self.pool3 = nn.MaxPool2d(2)
        self.pool = nn.Sequential(nn.MaxPool2d(2), global_average_pool())


def _block(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    # the bias changes nothing before a batch norm; it is there because the papers' networks, and so their parameter counts, have it
    inputs = (in_channels, *[channels] * (convolutions - 1))
    return nn.Sequential(*(conv_unit(width, channels, 3, bias=True) for width in inputs))
