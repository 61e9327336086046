"""Several experts on one trunk: the early stages are shared, each expert has late stages and a cosine classifier of its own.

Besides answering images [B, in_channels, H, W] with logits [B, C], the mean over the experts, these networks tell every expert's own
logits: `ExpertNetwork.experts`. Module paths: ``trunk``, ``branches.e`` (their output is expert e's pooled feature) and ``heads.e``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

from stillroom.engine.weights import read_weights
from stillroom.errors import InputError, positive
from stillroom.modules.convolutions import Add, Taps, conv_unit, global_average_pool, initialise_convolutions, stage

_SHOWN = 3  # keys of a file of weights in an error message


class CosineClassifier(nn.Module):
    """scale * cosine between a feature and each class's weight: features [B, D] -> logits [B, C] in [-scale, scale].

    Both are divided by max(length, epsilon), in float32 whatever the precision around it is. There is no bias. Every class's weight
    starts with length 1.

    Args:
        width: D.
        num_classes: C.
        scale: s > 0.
        epsilon: the shortest length that is divided by; a feature of zeros has the logits 0.

    Raises:
        InputError: the scale is not above 0.
    """

    def __init__(self, width: int, num_classes: int, *, scale: float = 30.0, epsilon: float = 1e-12) -> None:
        super().__init__()
        self.scale, self.epsilon = positive("scale", scale), epsilon
        self.weight = nn.Parameter(normalize(torch.empty(width, num_classes).uniform_(-1, 1), dim=0))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, C]."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        directions_BD = normalize(features.to(dtype), dim=1, eps=self.epsilon)
        return self.scale * (directions_BD @ normalize(self.weight.to(dtype), dim=0, eps=self.epsilon))

    def extra_repr(self) -> str:
        """For printing, and for telling architectures apart."""
        return f"{', '.join(map(str, self.weight.shape))}, scale={self.scale}"


class ExpertNetwork(nn.Module):
    """E experts on one trunk; the network's answer is the mean of their logits.

    It can be made of any trunk and branches; and any `nn.Module` that has its two methods, `forward` and `experts`, can take its place.

    Args:
        trunk: images [B, in_channels, H, W] to what all experts share.
        branches: E modules, from that to an expert's pooled feature [B, D] each.
        width: D.
        num_classes: C.
        scale: of the cosine classifiers.

    Raises:
        InputError: there is no branch.
    """

    def __init__(self, trunk: nn.Module, branches: Sequence[nn.Module], width: int, num_classes: int, *, scale: float = 30.0) -> None:
        super().__init__()
        if not branches:
            raise InputError("branches", "none", "at least one expert")
        self.trunk = trunk
        self.branches = nn.ModuleList(branches)
        self.heads = nn.ModuleList(CosineClassifier(width, num_classes, scale=scale) for _ in branches)

    def features(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> every expert's pooled feature [B, E, D]."""
        shared = self.trunk(images)
        return torch.stack([branch(shared) for branch in self.branches], dim=1)

    def experts(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> every expert's logits [B, E, C]."""
        features_BED = self.features(images)
        return torch.stack([head(features_BED[:, e]) for e, head in enumerate(self.heads)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, num_classes]: the mean of the experts' logits."""
        return self.experts(images).mean(dim=1)

    def classifier_parameters(self) -> list[nn.Parameter]:
        """The experts' classifiers, for methods that train them at a rate of their own."""
        return list(self.heads.parameters())

    @property
    def _middle(self) -> str:
        return f"branches.{len(self.branches) // 2}"


class PaddedShortcut(nn.Module):
    """Shortcut without parameters: every second row and column, and channels of zeros, as many before as behind.

    Source: He et al. 2016, option A.
    """

    def __init__(self, more_channels: int) -> None:
        super().__init__()
        self.each_side = more_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D + 2 * each_side, ceil(H / 2), ceil(W / 2)]."""
        return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.each_side, self.each_side))


class ExpertBasicBlock(nn.Module):
    """Two 3x3 convolutions beside the input itself or, where the shape changes, a `PaddedShortcut`.

    Args:
        in_channels, channels: of the input and of the result.
        stride: 2 where the channels change, 1 or 2 where they do not.

    Raises:
        InputError: a stride or a growth that the shortcut cannot follow.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        same_shape = stride == 1 and in_channels == channels
        if not same_shape and (stride != 2 or channels < in_channels or (channels - in_channels) % 2):
            raise InputError(
                "channels", f"{in_channels} to {channels} at stride {stride}", "as many at stride 1, or an even number more at stride 2"
            )
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if same_shape else PaddedShortcut(channels - in_channels)
        self.add = Add()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, H / stride, W / stride]."""
        inner = self.relu1(self.bn1(self.conv1(x)))
        return self.relu(self.add(self.bn2(self.conv2(inner)), self.shortcut(x)))


class ExpertResNet(ExpertNetwork):
    """ResNet for small images whose second and third stages every expert has for itself.

    Images [B, in_channels, H, W]: 3x3 stem and first stage, shared; two stages of stride 2 and a global pool for each expert; cosine
    classifiers.

    Args:
        depth: 6n + 2 layers on the way through one expert, n basic blocks in each stage.
        num_classes: C.
        in_channels: channels of the images.
        experts: E.
        widths: channels of the three stages; (16, 32, 64) is the whole width, of which the experts' stages have three quarters.
        scale: of the cosine classifiers.

    Raises:
        InputError: the depth is not 6n + 2, or the widths cannot be followed by shortcuts without parameters.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        in_channels: int = 3,
        experts: int = 3,
        widths: tuple[int, int, int] = (16, 24, 48),
        scale: float = 30.0,
    ) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise InputError("depth", depth, "6n + 2 with n of at least 1 (8, 14, 20, 32, 44, 56, 110, ...)")
        blocks = (depth - 2) // 6
        first, second, third = widths
        trunk = _named(stem=conv_unit(in_channels, first, 3), layer1=stage(ExpertBasicBlock, first, first, blocks, stride=1))
        branches = [
            _named(
                layer2=stage(ExpertBasicBlock, first, second, blocks, stride=2),
                layer3=stage(ExpertBasicBlock, second, third, blocks, stride=2),
                pool=global_average_pool(),
            )
            for _ in range(experts)
        ]
        super().__init__(trunk, branches, third, num_classes, scale=scale)
        self._last = blocks - 1
        initialise_convolutions(self, "fan_in")

    def taps(self) -> Taps:
        """Stem and the end of each stage, along the middle expert; before the activation: the stem's batch norm and the last sums."""
        stages = ("trunk.layer1", f"{self._middle}.layer2", f"{self._middle}.layer3")
        return Taps(("trunk.stem", *stages), ("trunk.stem.bn", *(f"{stage}.{self._last}.add" for stage in stages)), f"{self._middle}.pool")


class ExpertBottleneck(nn.Module):
    """A 1x1, a (grouped) 3x3 and a 1x1 convolution beside the input, or a 1x1 convolution of it where the shape changes.

    Its entries have torchvision's and timm's names, so that their weights fit.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int, group_width: int) -> None:
        super().__init__()
        width = channels // self.expansion * group_width // 64 * groups
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        self.add = Add()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, H / stride, W / stride]."""
        inner = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        return self.relu(self.add(self.bn3(self.conv3(inner)), self.downsample(x)))


class ExpertBottleneckResNet(ExpertNetwork):
    """ResNet or ResNeXt for photographs whose third and fourth stages every expert has for itself.

    Images [B, in_channels, H, W]: 7x7 stem of stride 2, max-pool, first and second stage, shared; third and fourth stage and a global pool
    (7x7 at 224 pixels) for each expert; cosine classifiers.

    Args:
        blocks: bottlenecks in each of the four stages; (3, 4, 6, 3) is ResNet-50, (3, 8, 36, 3) ResNet-152.
        num_classes: C.
        in_channels: channels of the images.
        experts: E.
        widths: base widths of the stages, a quarter of their channels; (64, 128, 256, 512) is the whole width, of which the experts'
            stages have three quarters.
        groups: groups of the 3x3 convolutions; 32 of width 4 is ResNeXt's 32x4d.
        group_width: channels of a group at a base width of 64.
        scale: of the cosine classifiers.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        *,
        num_classes: int,
        in_channels: int = 3,
        experts: int = 3,
        widths: tuple[int, int, int, int] = (64, 128, 192, 384),
        groups: int = 1,
        group_width: int = 64,
        scale: float = 30.0,
    ) -> None:
        block = partial(ExpertBottleneck, groups=groups, group_width=group_width)
        channels = (64, *(ExpertBottleneck.expansion * width for width in widths))

        def layer(number: int) -> nn.Sequential:
            return stage(block, channels[number], channels[number + 1], blocks[number], stride=1 if number == 0 else 2)

        trunk = _named(
            conv1=nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False),
            bn1=nn.BatchNorm2d(64),
            relu=nn.ReLU(),
            maxpool=nn.MaxPool2d(3, 2, 1),
            layer1=layer(0),
            layer2=layer(1),
        )
        branches = [_named(layer3=layer(2), layer4=layer(3), pool=global_average_pool()) for _ in range(experts)]
        super().__init__(trunk, branches, channels[4], num_classes, scale=scale)
        self._last = tuple(count - 1 for count in blocks)
        initialise_convolutions(self)

    def load_backbone(self, path: str | Path, *, trust_pickle: bool = False, argument: str = "weights") -> None:
        """Start from a trained ResNet: its first layers go into the trunk, its third and fourth stage into every expert.

        The file's classifier is left out, and the cosine classifiers stay as they are. Entries are named as torchvision and timm name
        them, with any one prefix (``module.``).

        Args:
            path, trust_pickle, argument: see `engine.weights.read_weights`.

        Raises:
            InputError: as `read_weights`, or the file is not of a ResNet of these blocks and widths; the network is unchanged.
        """
        weights = read_weights(path, trust_pickle=trust_pickle, argument=argument)
        stem = next((key for key in weights if key.endswith("conv1.weight") and "layer" not in key), "conv1.weight")
        prefix = stem.removesuffix("conv1.weight")
        parts = (self.trunk, *self.branches)
        loaded = [_entries(part, weights, prefix) for part in parts]
        unfit = [
            key
            for part, found in zip(parts, loaded, strict=True)
            for key, value in part.state_dict().items()
            if not key.endswith("num_batches_tracked") and (key not in found or found[key].shape != value.shape)
        ]
        if unfit:
            names = ", ".join(dict.fromkeys(unfit[:_SHOWN]))
            raise InputError(
                argument,
                f"'{path}', in which {len(unfit)} entries are missing or of another shape ({names}, ...)",
                "the weights of a ResNet of the same depth and widths as these experts",
            )
        for part, found in zip(parts, loaded, strict=True):
            part.load_state_dict(found, strict=False)

    def taps(self) -> Taps:
        """Stem and the end of each stage, along the middle expert; before the activation: the stem's batch norm and the last sums."""
        stages = ("trunk.layer1", "trunk.layer2", f"{self._middle}.layer3", f"{self._middle}.layer4")
        sums = [f"{stage}.{last}.add" for stage, last in zip(stages, self._last, strict=True)]
        return Taps(("trunk.relu", *stages), ("trunk.bn1", *sums), f"{self._middle}.pool")


class ExpertConvNet(ExpertNetwork):
    """For experiments of minutes: four 3x3 convolutions with batch norm and ReLU, the last two of them each expert's own.

    Channels 16 and, at stride 2, 24 in the trunk; 32 at stride 2, 48 and a global pool in every expert; cosine classifiers. With three
    experts and 10 classes there are 68 000 parameters.

    Args:
        num_classes: C.
        in_channels: channels of the images.
        experts: E.
        scale: of the cosine classifiers.
    """

    def __init__(self, *, num_classes: int, in_channels: int = 3, experts: int = 3, scale: float = 30.0) -> None:
        trunk = _named(layer1=conv_unit(in_channels, 16, 3), layer2=conv_unit(16, 24, 3, 2))
        branches = [_named(layer3=conv_unit(24, 32, 3, 2), layer4=conv_unit(32, 48, 3), pool=global_average_pool()) for _ in range(experts)]
        super().__init__(trunk, branches, 48, num_classes, scale=scale)
        initialise_convolutions(self, "fan_in")

    def taps(self) -> Taps:
        """The end of each layer, along the middle expert; before the activation: its batch norm."""
        layers = ("trunk.layer1", "trunk.layer2", f"{self._middle}.layer3", f"{self._middle}.layer4")
        return Taps(layers, tuple(f"{layer}.bn" for layer in layers), f"{self._middle}.pool")


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _entries(part: nn.Module, weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key: weights[prefix + key] for key in part.state_dict() if prefix + key in weights}
