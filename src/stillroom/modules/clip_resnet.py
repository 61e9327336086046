"""CLIP's ResNet as the image tower: a stem of three convolutions, four stages of bottlenecks that shrink by averaging, and attention that
pools the last map.

Names of parameters are those of open_clip's ``ModifiedResNet``: ``layer1.0.conv1.weight``, ``attnpool.q_proj.weight``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

from stillroom.errors import InputError, at_least

CELL = 32  # pixels, down and across, to a place of the last map
_STAGES = 4
_OUT = 4  # channels that a bottleneck answers with, to one inside


@dataclass(frozen=True)
class ResNetShape:
    """The sizes of CLIP's ResNet.

    Args:
        width: w, channels of the stem's answer and inside the blocks of the first stage; each further stage has twice as many inside, and
            every block answers with four times as many. Half as many are inside the stem.
        blocks: of each of the four stages.
        head_width: d_h, of the heads that pool; as many of them as fill the last map's 32 w channels.

    Raises:
        InputError: a number out of its range, or heads that do not fill the channels.
    """

    width: int
    blocks: tuple[int, ...]
    head_width: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))
        at_least("head_width", self.head_width, 1)
        if self.width < 1 or self.width % 2 or self.channels % self.head_width:
            raise InputError("width", self.width, f"an even number, 32 times which is a multiple of the heads' {self.head_width}")
        if len(self.blocks) != _STAGES or min(self.blocks) < 1:
            raise InputError("blocks", self.blocks, f"a number from 1 for each of {_STAGES} stages")

    @property
    def channels(self) -> int:
        """Of the last map."""
        return self.width * 2 ** (_STAGES - 1) * _OUT

    @property
    def heads(self) -> int:
        """n_h of the pooling."""
        return self.channels // self.head_width


class Bottleneck(nn.Module):
    """x + three convolutions of x; where it strides, averages are taken before the last one and in the shortcut."""

    def __init__(self, read: int, inside: int, stride: int) -> None:
        super().__init__()
        answered = _OUT * inside
        self.conv1, self.bn1 = nn.Conv2d(read, inside, 1, bias=False), nn.BatchNorm2d(inside)
        self.conv2, self.bn2 = nn.Conv2d(inside, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside)
        self.conv3, self.bn3 = nn.Conv2d(inside, answered, 1, bias=False), nn.BatchNorm2d(answered)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample: nn.Sequential | None = None
        if stride > 1 or read != answered:
            self.downsample = nn.Sequential(nn.Conv2d(read, answered, 1, bias=False), nn.BatchNorm2d(answered))
        nn.init.zeros_(self.bn3.weight)  # so that a block begins as its shortcut

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 4 inside, H / stride, W / stride]."""
        y_BCHW = relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = relu(self.bn2(self.conv2(y_BCHW)))
        y_BCHW = self.bn3(self.conv3(self.pool(y_BCHW)))
        return relu(y_BCHW + (x_BCHW if self.downsample is None else self.downsample(self.pool(x_BCHW))))


class AttentionPool(nn.Module):
    """What the mean of a map's places attends to among itself and the places, each with its position.

    Args:
        channels: C, of the map.
        places: N, of the map.
        heads: that fill the channels.
        embedding: D, of the answer.
    """

    def __init__(self, channels: int, places: int, heads: int, embedding: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(channels**-0.5 * torch.randn(places + 1, channels))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, channels) for _ in range(3))
        self.c_proj = nn.Linear(channels, embedding)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(layer.weight, std=channels**-0.5)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D]."""
        places_BNC = map_BCHW.flatten(2).transpose(1, 2)
        x_BTC = torch.cat((places_BNC.mean(1, keepdim=True), places_BNC), 1) + self.positional_embedding
        of_each = self.q_proj(x_BTC[:, :1]), self.k_proj(x_BTC), self.v_proj(x_BTC)
        q, k, v = (one.unflatten(2, (self.heads, -1)).transpose(1, 2) for one in of_each)
        mixed_BH1E = scaled_dot_product_attention(q, k, v)
        embedding_BD: Tensor = self.c_proj(mixed_BH1E.flatten(1))
        return embedding_BD


class ResNetTower(nn.Module):
    """Images [B, 3, H, W], normalised -> embeddings [B, D], not of unit length.

    Args:
        shape: its sizes.
        embedding: D.
        image_size: H and W, a multiple of `CELL`.
    """

    def __init__(self, shape: ResNetShape, embedding: int, image_size: int) -> None:
        super().__init__()
        self.shape = shape
        width, half = shape.width, shape.width // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        read, stages = width, []
        for stage, blocks in enumerate(shape.blocks):
            inside = width * 2**stage
            first = Bottleneck(read, inside, 1 if stage == 0 else 2)
            read = _OUT * inside
            stages.append(nn.Sequential(first, *(Bottleneck(read, inside, 1) for _ in range(1, blocks))))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attnpool = AttentionPool(shape.channels, (image_size // CELL) ** 2, shape.heads, embedding)

    def forward(self, images_B3HW: Tensor, masks: None = None) -> Tensor:
        """[B, 3, H, W] -> [B, D]; of masks there are none for this tower."""
        x_BCHW = relu(self.bn1(self.conv1(images_B3HW)))
        x_BCHW = relu(self.bn2(self.conv2(x_BCHW)))
        x_BCHW = self.avgpool(relu(self.bn3(self.conv3(x_BCHW))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x_BCHW = stage(x_BCHW)
        embedding_BD: Tensor = self.attnpool(x_BCHW)
        return embedding_BD
