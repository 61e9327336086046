"""The two MobileNets of the distillation tables: V1 for ImageNet (Howard et al. 2017), V2 for Tiny-ImageNet (Sandler et al. 2018)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from stillroom.modules.convolutions import Add, Taps, conv_unit, global_average_pool, stage


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; a shortcut where input and output have one shape.

    With an expansion of 1 there is no expanding convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int = 6) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = nn.Identity() if expansion == 1 else conv_unit(in_channels, hidden, 1, activation=nn.ReLU6)
        self.depthwise = conv_unit(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6)
        self.project = conv_unit(hidden, channels, 1, activation=None)
        self.add = Add() if stride == 1 and in_channels == channels else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, H / stride, W / stride]."""
        branch = self.project(self.depthwise(self.expand(x)))
        return branch if self.add is None else self.add(branch, x)


class MobileNetV2Tiny(nn.Module):
    """Images [B, in_channels, H, W] -> logits [B, num_classes], made for the 64x64 images of Tiny-ImageNet.

    1x1 stem with a border of one pixel to 32 channels (64 -> 66 pixels); seven stages of inverted residuals, of which those of 24, 32 and
    64 channels halve the resolution; 1x1 to 1280; global pool; linear. Convolutions have no bias and keep PyTorch's initialisation.

    Args:
        num_classes: C.
        in_channels: channels of the images.

    Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, table 2, with the strides of small images.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = conv_unit(in_channels, 32, 1, padding=1, activation=nn.ReLU6)
        self.layer1 = stage(partial(InvertedResidual, expansion=1), 32, 16, 1, stride=1)
        self.layer2 = stage(InvertedResidual, 16, 24, 2, stride=2)
        self.layer3 = stage(InvertedResidual, 24, 32, 3, stride=2)
        self.layer4 = stage(InvertedResidual, 32, 64, 4, stride=2)
        self.layer5 = stage(InvertedResidual, 64, 96, 3, stride=1)
        self.layer6 = stage(InvertedResidual, 96, 160, 3, stride=1)
        self.layer7 = stage(InvertedResidual, 160, 320, 1, stride=1)
        self.head = conv_unit(320, 1280, 1, activation=nn.ReLU6)
        self.pool = global_average_pool()
        self.fc = nn.Linear(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, num_classes]."""
        x = self.layer3(self.layer2(self.layer1(self.stem(images))))
        x = self.layer7(self.layer6(self.layer5(self.layer4(x))))
        return self.fc(self.pool(self.head(x)))

    def taps(self) -> Taps:
        """Stem and the end of each resolution.

        A linear bottleneck ends without an activation, so the place is the first ReLU6 that a stage's output meets: in the expansion at
        the head of the stage that follows, and after the last stage in the 1x1 to 1280.
        """
        following = ("layer2.0.expand", "layer3.0.expand", "layer4.0.expand", "head")
        return Taps(("stem", *following), ("stem.bn", *(f"{unit}.bn" for unit in following)), "pool")


class MobileNetV1(nn.Module):
    """Images [B, in_channels, H, W] -> logits [B, num_classes], made for the 224x224 images of ImageNet.

    3x3 stem of 32 at stride 2, then depthwise-separable convolutions of 64 | 128, 128 | 256, 256 | six of 512 | 1024, 1024, each group
    after the first at half the resolution; global pool; linear. Convolutions keep PyTorch's initialisation.

    Args:
        num_classes: C.
        in_channels: channels of the images.

    Source: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017, table 1.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = conv_unit(in_channels, 32, 3, 2)
        self.layer1 = stage(_separable, 32, 64, 1, stride=1)
        self.layer2 = stage(_separable, 64, 128, 2, stride=2)
        self.layer3 = stage(_separable, 128, 256, 2, stride=2)
        self.layer4 = stage(_separable, 256, 512, 6, stride=2)
        self.layer5 = stage(_separable, 512, 1024, 2, stride=2)
        self.pool = global_average_pool()
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, num_classes]."""
        x = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return self.fc(self.pool(self.layer5(self.layer4(x))))

    def taps(self) -> Taps:
        """Stem and the end of each resolution; before the activation: the batch norm of the last pointwise convolution."""
        return Taps(
            ("stem", "layer1", "layer2", "layer3", "layer4", "layer5"),
            ("stem.bn", "layer1.0.1.bn", "layer2.1.1.bn", "layer3.1.1.bn", "layer4.5.1.bn", "layer5.1.1.bn"),
            "pool",
        )


def _separable(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(conv_unit(in_channels, in_channels, 3, stride, groups=in_channels), conv_unit(in_channels, channels, 1))
