"""The teacher's network: a trunk under SimCLR's projection head."""

from __future__ import annotations

from torch import Tensor, nn

from stillroom.tasks.classification.networks.parts import conv_unit, global_average_pool
from stillroom.tasks.classification.networks.resnet import BasicBlock


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] in [0, 1] -> projections g(x) [B, D], which are not normalised.

    The projection head is Linear, ReLU, Linear; its first linear layer is the trunk's own last one.

    Args:
        trunk: any classifier with `hidden` outputs, its linear layer among them.
        hidden: width of the projection head.
        dim: D.
    """

    def __init__(self, trunk: nn.Module, hidden: int = 512, dim: int = 128) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = nn.Sequential(nn.ReLU(), nn.Linear(hidden, dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class. Pixels are brought to (x - 0.5) / 0.5 first."""
        return self.projection(self.trunk((pixels - 0.5) / 0.5))


class ResNet18(nn.Module):
    """ResNet-18 for images of 32 pixels: 3x3 stem of 64 without max-pool, four stages of two basic blocks of 64 .. 512 channels.

    Weights keep PyTorch's initialisation [inferred].

    Args:
        num_classes: outputs of the linear layer.
        in_channels: channels of the images.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        widths = (64, 64, 128, 256, 512)
        self.stem = conv_unit(in_channels, 64, 3)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(BasicBlock(before, width, 1 if i == 0 else 2), BasicBlock(width, width, 1))
                for i, (before, width) in enumerate(zip(widths, widths[1:], strict=False))
            )
        )
        self.pool = global_average_pool()
        self.fc = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, num_classes]."""
        return self.fc(self.pool(self.layers(self.stem(images))))
