"""Pyramids: a backbone and the maps that a detector reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SmallBackbone(nn.Module):
    """conv-BN-ReLU: a stem of stride 2 and stages of stride 2 each; what procedural scenes are detected with.

    Args:
        stem: channels of the stem.
        stages: channels of each stage; stage i has the stride 2^(i + 2).
        extra: further 3x3 convolutions of each stage.
    """

    def __init__(self, stem: int, stages: Sequence[int], extra: int = 0) -> None:
        super().__init__()
        self.channels = tuple(stages)
        self.strides = tuple(2 ** (i + 2) for i in range(len(stages)))
        self.stem = _block(3, stem, stride=2)
        self.stages = nn.ModuleList()
        width = stem
        for channels in stages:
            self.stages.append(nn.Sequential(_block(width, channels, stride=2), *(_block(channels, channels) for _ in range(extra))))
            width = channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images -> one map for each stage."""
        x, maps = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class TimmBackbone(nn.Module):
    """Any timm network as a backbone: its maps at the given strides.

    Args:
        name: timm's, e.g. ``resnet18``.
        strides: of the maps that are read.
        pretrained: load timm's published weights.
        frozen: stages, counted from the stem, that are not trained (the paper's: the stem and the first stage, 2); BatchNorm statistics
            are never updated then, in no stage.
    """

    def __init__(self, name: str, strides: Sequence[int] = (8, 16, 32), *, pretrained: bool = False, frozen: int = 0) -> None:
        super().__init__()
        import timm

        whole = timm.create_model(name, features_only=True, pretrained=False)
        info: Any = whole.feature_info
        found = list(info.reduction())
        self.strides = tuple(strides)
        self.network = timm.create_model(
            name, features_only=True, pretrained=pretrained, out_indices=tuple(found.index(stride) for stride in strides)
        )
        chosen: Any = self.network.feature_info
        self.channels = tuple(chosen.channels())
        self.frozen = frozen
        if frozen:
            children = [child for child in self.network.children() if any(True for _ in child.parameters())]
            # stem: everything before the first stage of blocks, which timm's networks keep in several children
            first = next((i for i, child in enumerate(children) if isinstance(child, nn.Sequential)), 1)
            for child in children[: first + frozen - 1]:
                child.requires_grad_(False)

    def train(self, mode: bool = True) -> TimmBackbone:
        """With frozen stages the running statistics stay as they are."""
        super().train(mode)
        if self.frozen:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images -> one map for each stride."""
        maps: list[Tensor] = self.network(images)
        return maps


class Pyramid(nn.Module):
    """A feature pyramid: lateral 1x1 convolutions, nearest-neighbour top-down addition, 3x3 output convolutions, and further levels by
    3x3 convolutions of stride 2. No norm, no activation; Xavier-uniform weights, zero biases.

    Args:
        channels: of the backbone's maps.
        width: D, of the pyramid's.
        extra: further levels.

    Source: Lin et al. 2017; the further levels of Tian et al. 2019 (FCOS) without ReLU between them.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, extra: int = 2) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.extra = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in range(extra))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps, fine to coarse -> the pyramid's."""
        levels = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[-2:], mode="nearest")
        out = [output(level) for output, level in zip(self.output, levels, strict=True)]
        for convolution in self.extra:
            out.append(convolution(out[-1]))
        return out


def strides_of(strides: Sequence[int], extra: int) -> tuple[int, ...]:
    """Strides of a pyramid over maps of these strides."""
    return (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(extra)))


def padded_size(size: int, divisor: int) -> int:
    """The smallest multiple of `divisor` that is not below `size`."""
    return -(-size // divisor) * divisor


def pad_batch(images: Sequence[Tensor], divisor: int = 32, canvas: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Images [3, h, w] of any sizes as one batch [B, 3, H, W], zeros at the right and the bottom, H and W multiples of `divisor` that the
    largest fits into, or those of the `canvas`; and their sizes int64 [B, 2]."""
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = canvas or (padded_size(int(most), divisor) for most in sizes.amax(0))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[-2], : image.shape[-1]] = image
    return batch, sizes
