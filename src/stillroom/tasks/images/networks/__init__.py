"""The small networks of the distillation papers, which neither timm nor torchvision has.

`NETWORKS["resnet8x4"](num_classes=100)` builds one. Each is a plain `nn.Module` from images [B, in_channels, H, W] to logits
[B, num_classes] that reads every image size its strides allow, and has a method `taps()` that names its intermediate tensors by module
path. `BACKBONES` have no classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from stillroom.modules.convolutions import Taps
from stillroom.tasks.images.networks.convnet import ConvNet
from stillroom.tasks.images.networks.experts import ExpertBottleneckResNet, ExpertConvNet, ExpertNetwork, ExpertResNet
from stillroom.tasks.images.networks.mlp import MLP
from stillroom.tasks.images.networks.mobilenet import MobileNetV1, MobileNetV2Tiny
from stillroom.tasks.images.networks.resnet import ResNet
from stillroom.tasks.images.networks.resnet18 import ResNetSmallStem
from stillroom.tasks.images.networks.shufflenet import ShuffleNetV2
from stillroom.tasks.images.networks.strided import StridedNet
from stillroom.tasks.images.networks.vgg import CONVOLUTIONS, VGG, FivePools
from stillroom.tasks.images.networks.whitening import Whitened
from stillroom.tasks.images.networks.wrn import WideResNet

__all__ = [
    "BACKBONES",
    "MLP",
    "NETWORKS",
    "VGG",
    "ConvNet",
    "ExpertBottleneckResNet",
    "ExpertConvNet",
    "ExpertNetwork",
    "ExpertResNet",
    "MobileNetV1",
    "MobileNetV2Tiny",
    "ResNet",
    "ResNetSmallStem",
    "ShuffleNetV2",
    "StridedNet",
    "Taps",
    "Whitened",
    "WideResNet",
]

X4 = (32, 64, 128, 256)
_W24 = (24, 24, 48, 96)
WHOLE = (64, 128, 256, 512)
_WRN_28_2 = partial(WideResNet, 28, 2, slope=0.1)

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": partial(ResNet, depth) for depth in (8, 14, 20, 26, 32, 44, 56, 110)},
    # the end of the last stage is so many pixels of the image apart: teachers of feature maps
    "resnet8_stride8": partial(ResNet, 8, widths=_W24, strides=(1, 2, 2, 2)),
    "resnet8_stride16": partial(ResNet, 8, widths=_W24, strides=(2, 2, 2, 2)),
    **{f"convnet{width}": partial(ConvNet, width) for width in (3, 4, 6, 9, 12, 16, 24)},
    "mlp_256_128": partial(MLP, 256, 128),
    **{f"resnet{depth}x4": partial(ResNet, depth, widths=X4) for depth in (8, 32)},
    "resnet18": partial(ResNetSmallStem, (2, 2, 2, 2)),
    "resnet34": partial(ResNetSmallStem, (3, 4, 6, 3)),
    **{f"vgg{depth}": partial(VGG, depth) for depth in CONVOLUTIONS},
    "vgg16_five_pools": partial(FivePools, 16),
    **{f"wrn_{depth}_{width}": partial(WideResNet, depth, width) for depth, width in ((16, 1), (16, 2), (40, 1), (40, 2))},
    "wrn_28_2_leaky": _WRN_28_2,
    "wrn_28_2_whitened": partial(Whitened, _WRN_28_2),
    "shufflenetv2": ShuffleNetV2,
    "mobilenetv2_tiny": MobileNetV2Tiny,
    "mobilenetv1": MobileNetV1,
    # three experts on one trunk; "full": the experts' stages are as wide as the plain network's, so that its weights fit
    "convnet_experts": ExpertConvNet,
    "resnet32_experts": partial(ExpertResNet, 32),
    "resnet50_experts": partial(ExpertBottleneckResNet, (3, 4, 6, 3)),
    "resnext50_experts": partial(ExpertBottleneckResNet, (3, 4, 6, 3), groups=32, group_width=4),
    "resnet50_experts_full": partial(ExpertBottleneckResNet, (3, 4, 6, 3), widths=WHOLE),
    "resnet152_experts_full": partial(ExpertBottleneckResNet, (3, 8, 36, 3), widths=WHOLE),
}

# Images [B, 3, H, W] -> feature maps [B, C, h, w].
BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "strided64": partial(StridedNet, (16, 32, 64)),
    "strided24": partial(StridedNet, (8, 16, 24)),
}
