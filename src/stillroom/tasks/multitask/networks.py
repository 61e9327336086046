"""Networks of several dense targets: one encoder, a head for each target; and several networks that answer as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stillroom.modules.convolutions import conv_unit
from stillroom.tasks.images.padding import padded
from stillroom.tasks.multitask.targets import Target


class Pyramid(nn.Module):
    """A small encoder: four stages of two 3x3 convolutions, the first of each with stride 2.

    Args:
        width: channels of the first stage; stage k has k times as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels, self.strides = tuple(width * stage for stage in range(1, 5)), (2, 4, 8, 16)
        self.stages = nn.ModuleList(nn.Sequential(conv_unit(a, b, 3, 2), conv_unit(b, b, 3)) for a, b in pairwise((3, *self.channels)))

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """A map of each stage."""
        maps, x = [], images_B3HW
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class MultiTaskNetwork(nn.Module):
    """Images [B, 3, H, W] of any size to raw answers {target: [B, C_t, ceil(H / s), ceil(W / s)]}, s the encoder's first stride.

    The encoder's maps are brought to the first one's size and put together; of each target a 3x3 convolution to a quarter of their
    channels, batch norm, ReLU, and a 1x1 convolution.

    Args:
        encoder: images to maps; with `channels` and `strides` of these.
        targets: what is answered.

    Source: section 1 of KDAM, the baseline head of multi-task papers.
    """

    def __init__(self, encoder: nn.Module, targets: Sequence[Target]) -> None:
        super().__init__()
        self.encoder = encoder
        channels, strides = _sizes(encoder)
        self.first, self.last = strides[0], strides[-1]
        width = sum(channels)
        self.heads = nn.ModuleDict({target.name: _head(width, target.channels) for target in targets})

    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """By the targets' names."""
        height, width = (-(-int(side) // self.first) for side in images_B3HW.shape[2:])
        maps = self.encoder(padded(images_B3HW, self.last))
        size = maps[0].shape[2:]
        same = [maps[0], *(interpolate(one, size, mode="bilinear", align_corners=False) for one in maps[1:])]
        features = torch.cat(same, 1)[:, :, :height, :width]
        return {name: head(features) for name, head in self.heads.items()}


def _sizes(encoder: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(map(int, encoder.channels)), tuple(map(int, encoder.strides))  # type: ignore[arg-type]


def _head(width: int, channels: int) -> nn.Sequential:
    # As torch makes them: with the Kaiming weights of He and last weights of 0.01, AdamW taught no class but the ground in 320 steps.
    hidden = max(width // 4, 1)
    return nn.Sequential(conv_unit(width, hidden, 3), nn.Conv2d(hidden, channels, 1))


class SideBySide(nn.Module):
    """Several networks that answer as one: each reads the images, their answers are put together.

    Args:
        networks: by a name for each; no two answer to the same target.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, images_B3HW: Tensor) -> dict[str, Tensor]:
        """All their answers."""
        return {name: raw for network in self.networks.values() for name, raw in network(images_B3HW).items()}
