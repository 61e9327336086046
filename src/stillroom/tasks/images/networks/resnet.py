"""ResNet for small images (He et al. 2016, section 4.2), and its widened "x4" form that distillation papers use as a pair."""

from __future__ import annotations

from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.modules.convolutions import Add, Taps, conv_unit, global_average_pool, initialise_convolutions, stage


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution with batch norm where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        same_shape = stride == 1 and in_channels == channels
        self.unit1 = conv_unit(in_channels, channels, 3, stride)
        self.unit2 = conv_unit(channels, channels, 3, activation=None)
        self.shortcut = nn.Identity() if same_shape else conv_unit(in_channels, channels, 1, stride, activation=None)
        self.add = Add()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, H / stride, W / stride]."""
        return self.relu(self.add(self.unit2(self.unit1(x)), self.shortcut(x)))


class ResNet(nn.Module):
    """Images [B, in_channels, H, W] -> logits [B, num_classes]: 3x3 stem, three stages of n basic blocks, global pool, linear.

    Args:
        depth: 6n + 2 layers, n blocks in each stage; 8, 20, 32, 56, 110, ...
        num_classes: C.
        in_channels: channels of the images.
        widths: channels of the stem and of the three stages. ResNet8x4 and ResNet32x4 use (32, 64, 128, 256).
        strides: of the stem and of the three stages; larger ones are for larger images.

    Raises:
        InputError: when the depth is not 6n + 2.

    Source: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2016, section 4.2, with projection shortcuts.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        in_channels: int = 3,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        strides: tuple[int, int, int, int] = (1, 1, 2, 2),
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InputError("depth", depth, "6n + 2 with n of at least 1 (8, 14, 20, 32, 44, 56, 110, ...)")
        blocks = (depth - 2) // 6
        self.stem = conv_unit(in_channels, widths[0], 3, strides[0])
        self.layer1 = stage(BasicBlock, widths[0], widths[1], blocks, stride=strides[1])
        self.layer2 = stage(BasicBlock, widths[1], widths[2], blocks, stride=strides[2])
        self.layer3 = stage(BasicBlock, widths[2], widths[3], blocks, stride=strides[3])
        self.pool = global_average_pool()
        self.fc = nn.Linear(widths[3], num_classes)
        self._last = blocks - 1
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, num_classes]."""
        x = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return self.fc(self.pool(x))

    def taps(self) -> Taps:
        """Stem and the end of each stage; before the activation: the stem's batch norm and the last block's sum."""
        stages = ("layer1", "layer2", "layer3")
        return Taps(("stem", *stages), ("stem.bn", *(f"{stage}.{self._last}.add" for stage in stages)), "pool")
