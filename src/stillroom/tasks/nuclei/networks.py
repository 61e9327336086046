"""Networks of three branches: where nuclei are, how far each pixel is from its nucleus's centre, and of what type it is.

HoVer-Net (Graham et al. 2019) on a ResNet-50, and the same shape in small. A branch's decoder ends in features [B, D, H, W] of the
picture's size, which its 1x1 head reads.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from stillroom.modules.convolutions import conv_unit, initialise_convolutions
from stillroom.tasks.images.padding import cropped, padded

NUCLEI, DISTANCES, TYPES = "nuclei", "distances", "types"


class Maps(NamedTuple):
    """What such a network answers to pictures.

    Attributes:
        nuclei: scores of background and nucleus, [B, 2, H, W].
        distances: horizontal and vertical, [B, 2, H, W].
        types: scores of background and C classes, [B, 1 + C, H, W].
    """

    nuclei: Tensor
    distances: Tensor
    types: Tensor


class NucleiNetwork(nn.Module):
    """Pictures [B, 3, H, W] of any size to `Maps`.

    Args:
        encoder: to maps of each level, the finest first, each of half the size of the one before.
        decoder: makes a branch from these to features [B, D, H, W].
        width: D.
        num_classes: C, without background.
        cell: pixels that sides of what the encoder reads are multiples of; pictures are filled up to that.
    """

    def __init__(self, encoder: nn.Module, decoder: Callable[[], nn.Module], width: int, num_classes: int, *, cell: int) -> None:
        super().__init__()
        self.encoder, self.width, self.num_classes, self.cell = encoder, width, num_classes, cell
        self.decoders = nn.ModuleDict({name: decoder() for name in (TYPES, NUCLEI, DISTANCES)})
        sizes = {NUCLEI: 2, DISTANCES: 2, TYPES: 1 + num_classes}
        self.heads = nn.ModuleDict({name: nn.Conv2d(width, size, 1) for name, size in sizes.items()})

    def features(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """What the heads read, by branch: [B, D, H, W] each."""
        size = int(images_B3HW.shape[2]), int(images_B3HW.shape[3])
        levels = self.encoder(padded(images_B3HW, self.cell))
        return {name: cropped(decoder(levels), size) for name, decoder in self.decoders.items()}

    def answers(self, features: dict[str, Tensor]) -> Maps:
        """What the heads make of them."""
        return Maps(*(self.heads[name](features[name]) for name in (NUCLEI, DISTANCES, TYPES)))

    def forward(self, images_B3HW: Tensor) -> Maps:
        """See `Maps`."""
        return self.answers(self.features(images_B3HW))


# In small -------------------------------------------------------------------------------------------------------------------------------


class _SmallEncoder(nn.Module):
    """Levels of two 3x3 convolutions with batch norm, each of half the resolution and twice the channels."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        channels = [3, *(width << level for level in range(levels))]
        self.levels = nn.ModuleList(nn.Sequential(conv_unit(a, b, 3), conv_unit(b, b, 3)) for a, b in pairwise(channels))

    def forward(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for level in self.levels:
            found.append(level(x if not found else max_pool2d(found[-1], 2)))
        return found


class _SmallDecoder(nn.Module):
    """Enlarges, appends the encoder's level, and convolves once, to `out` channels at every level."""

    def __init__(self, width: int, levels: int, out: int) -> None:
        super().__init__()
        below = [(width << levels - 1), *[out] * (levels - 2)]
        skips = [width << level for level in reversed(range(levels - 1))]
        self.units = nn.ModuleList(conv_unit(a + b, out, 3) for a, b in zip(below, skips, strict=True))

    def forward(self, levels: list[Tensor]) -> Tensor:
        x = levels[-1]
        for unit, skip in zip(self.units, reversed(levels[:-1]), strict=True):
            x = unit(torch.cat((doubled(x), skip), 1))
        return x


def doubled(x: Tensor) -> Tensor:
    """Twice the size, each pixel repeated."""
    return interpolate(x, scale_factor=2.0, mode="nearest")


def small_network(width: int, levels: int, num_classes: int) -> NucleiNetwork:
    """The small one: `width` channels at the first level, as many features before the heads, at least 16."""
    features = max(width, 16)

    def decoder() -> nn.Module:
        return _SmallDecoder(width, levels, features)

    network = NucleiNetwork(_SmallEncoder(width, levels), decoder, features, num_classes, cell=1 << (levels - 1))
    for part in (network.encoder, network.decoders):  # the heads, which no norm follows, start small
        initialise_convolutions(part)
    return network


# HoVer-Net ------------------------------------------------------------------------------------------------------------------------------


class _ResNet50(nn.Module):
    """ResNet-50 whose first convolution keeps the size, without max-pooling: 256, 512, 1024 and 2048 channels, the last brought to 1024."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50

        whole = resnet50(weights=None)
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 1, 3), whole.bn1
        self.layers = nn.ModuleList((whole.layer1, whole.layer2, whole.layer3, whole.layer4))
        self.bridge = nn.Conv2d(2048, 1024, 1, bias=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.bn1(self.conv1(x)).relu(), []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return [*found[:-1], self.bridge(found[-1])]


class _Dense(nn.Module):
    """Units BN-ReLU-conv1x1-BN-ReLU-conv3x3 of 4 groups, each of whose 32 channels are appended; BN-ReLU at the end."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            nn.Sequential(
                *(nn.BatchNorm2d(channels + 32 * number), nn.ReLU(), nn.Conv2d(channels + 32 * number, 128, 1, bias=False)),
                *(nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 32, 3, padding=1, groups=4, bias=False)),
            )
            for number in range(units)
        )
        self.end = nn.Sequential(nn.BatchNorm2d(channels + 32 * units), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = torch.cat((x, unit(x)), 1)
        found: Tensor = self.end(x)
        return found


class _Decoder(nn.Module):
    """HoVer-Net's: enlarges, adds the encoder's level, convolves; dense blocks of 8 and 4 units; 64 features."""

    def __init__(self) -> None:
        super().__init__()
        self.u3 = nn.Sequential(nn.Conv2d(1024, 256, 3, padding=1, bias=False), _Dense(256, 8), nn.Conv2d(512, 512, 1, bias=False))
        self.u2 = nn.Sequential(nn.Conv2d(512, 128, 3, padding=1, bias=False), _Dense(128, 4), nn.Conv2d(256, 256, 1, bias=False))
        self.u1 = nn.Conv2d(256, 64, 3, padding=1, bias=False)
        self.u0 = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU())

    def forward(self, levels: list[Tensor]) -> Tensor:
        d0, d1, d2, d3 = levels
        u3 = self.u3(doubled(d3) + d2)
        u2 = self.u2(doubled(u3) + d1)
        found: Tensor = self.u0(self.u1(doubled(u2) + d0))
        return found


def hovernet(num_classes: int) -> NucleiNetwork:
    """HoVer-Net on a ResNet-50, with convolutions that keep the size."""
    return NucleiNetwork(_ResNet50(), _Decoder, 64, num_classes, cell=8)
