"""ResNet-18 and ResNet-34 for small images: ImageNet's four stages behind a stem that keeps the resolution."""

from __future__ import annotations

from torch import Tensor, nn

from stillroom.modules.convolutions import Taps, conv_unit, global_average_pool, initialise_convolutions, stage
from stillroom.tasks.images.networks.resnet import BasicBlock

_WIDTHS = (64, 128, 256, 512)


class ResNetSmallStem(nn.Module):
    """Images [B, in_channels, H, W] -> logits [B, num_classes]: 3x3 stem of 64 channels, no max-pool, four stages, global pool, linear.

    Args:
        blocks: basic blocks of each stage; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) ResNet-34.
        num_classes: C.
        in_channels: channels of the images.
        initialise: as He et al. 2015; else as PyTorch does.

    Source: He et al. 2016, table 1, with the stem that is usual for 32x32 images.
    """

    def __init__(self, blocks: tuple[int, int, int, int], *, num_classes: int, in_channels: int = 3, initialise: bool = True) -> None:
        super().__init__()
        self.stem = conv_unit(in_channels, _WIDTHS[0], 3)
        self.layer1 = stage(BasicBlock, _WIDTHS[0], _WIDTHS[0], blocks[0], stride=1)
        self.layer2 = stage(BasicBlock, _WIDTHS[0], _WIDTHS[1], blocks[1], stride=2)
        self.layer3 = stage(BasicBlock, _WIDTHS[1], _WIDTHS[2], blocks[2], stride=2)
        self.layer4 = stage(BasicBlock, _WIDTHS[2], _WIDTHS[3], blocks[3], stride=2)
        self.pool = global_average_pool()
        self.fc = nn.Linear(_WIDTHS[3], num_classes)
        self._blocks = blocks
        if initialise:
            initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, num_classes]."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(images)))))
        return self.fc(self.pool(x))

    def taps(self) -> Taps:
        """Stem and the end of each stage; before the activation: the stem's batch norm and the last block's sum."""
        stages = [f"layer{number}" for number in range(1, 5)]
        sums = [f"{name}.{blocks - 1}.add" for name, blocks in zip(stages, self._blocks, strict=True)]
        return Taps(("stem", *stages), ("stem.bn", *sums), "pool")
