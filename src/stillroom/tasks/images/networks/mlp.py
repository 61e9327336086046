"""A perceptron of two layers for images of a few pixels."""

from __future__ import annotations

from torch import Tensor, nn

from stillroom.modules.convolutions import Taps

_SIDE = 8


class MLP(nn.Module):
    """Images [B, in_channels, H, W] -> logits [B, num_classes]: averaged to 8 x 8 cells, then linear, layer norm, GELU, linear, linear.

    Args:
        hidden: width of the first layer.
        width: of the second, whose answer is the features.
        num_classes: C.
        in_channels: channels of the images.
    """

    def __init__(self, hidden: int, width: int, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(_SIDE)
        self.layer1 = nn.Sequential(nn.Linear(in_channels * _SIDE**2, hidden), nn.LayerNorm(hidden), nn.GELU())
        self.layer2 = nn.Linear(hidden, width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, num_classes]."""
        return self.fc(self.layer2(self.layer1(self.pool(images).flatten(1))))

    def taps(self) -> Taps:
        """Both layers; they have no maps of their own, and the features are the second's answer."""
        return Taps(("layer1", "layer2"), ("layer1.1", "layer2"), "layer2")
