"""Backbones for experiments of minutes, without a classifier."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from stillroom.modules.convolutions import conv_unit, initialise_convolutions


class StridedNet(nn.Module):
    """Three 3x3 convolutions with batch norm and ReLU, strides 1, 2 and 2: images -> a feature map.

    Args:
        widths: channels of each.
        in_channels: of the images.
    """

    def __init__(self, widths: tuple[int, int, int], *, in_channels: int = 3) -> None:
        super().__init__()
        channels = (in_channels, *widths)
        layers = [(f"layer{i + 1}", conv_unit(channels[i], channels[i + 1], 3, stride)) for i, stride in enumerate((1, 2, 2))]
        self.layers = nn.Sequential(OrderedDict(layers))
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, widths[2], H / 4, W / 4]."""
        maps: Tensor = self.layers(images)
        return maps
