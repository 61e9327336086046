"""Deformable attention: queries read a few points of several maps around a place of their own; and the layers made of it.

Source: Zhu et al. 2021 (Deformable DETR), section 4.1 and appendix A; the layer's composition is inferred from UniKD's parameter count.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.errors import InputError
from stillroom.losses.precision import at_least_float32
from stillroom.tasks.detection.backbones import shown

Maps = Sequence[Tensor]  # per level float [B, C, h, w], the finest first
Padding = Sequence[Tensor]  # per level bool [B, h, w], True on an image's padding


Method = TypeVar("Method", bound=Callable[..., Any])


def in_full_precision(method: Method) -> Method:
    """A module's method, computed in float32 whatever the precision around it: half of it would lose offsets below a cell."""

    @functools.wraps(method)
    def computed(self: nn.Module, *args: Any, **options: Any) -> Any:
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return method(self, *args, **options)

    return computed  # type: ignore[return-value]


def level_padding(images: Tensor, image_sizes: Tensor, maps: Maps) -> list[Tensor]:
    """Which cells of each level lie on padding: bool [B, h, w], by the pixel in each cell's upper left corner.

    Args:
        images: the padded batch [B, 3, H, W].
        image_sizes: int64 [B, 2], height and width of each image in it.
        maps: of any strides.
    """
    inside_B1HW = shown(images, image_sizes)[:, None].float()
    return [F.interpolate(inside_B1HW, size=level.shape[-2:])[:, 0] == 0 for level in maps]


def valid_ratio(padding_Bhw: Tensor) -> Tensor:
    """Width and height of the image over those of the padded map, [B, 2]."""
    inside = (~padding_Bhw).float()
    return torch.stack((inside[:, 0].mean(1), inside[:, :, 0].mean(1)), 1)


def offset_bias(heads: int, levels: int, points: int) -> Tensor:
    """Where queries look at first: head i in direction 2 pi i / heads, as far as the point's number on the larger axis.

    Returns:
        [heads * levels * points * 2], ordered so; the last are x and y, in cells.
    """
    angles_H = torch.arange(heads, dtype=torch.float64) * 2 * math.pi / heads
    directions_H2 = torch.stack((angles_H.cos(), angles_H.sin()), 1)
    directions_H2 = directions_H2 / directions_H2.abs().amax(1, keepdim=True)
    far_K1 = torch.arange(1, points + 1, dtype=torch.float64)[:, None]
    every_HLK2 = (directions_H2[:, None, None] * far_K1).expand(heads, levels, points, 2)
    return every_HLK2.flatten().float()


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention.

    Args:
        width: C, of queries, maps and answers.
        heads: H, which share the width.
        levels: L maps.
        points: K that each head reads of each level.

    Raises:
        InputError: the heads cannot share the width evenly.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        if width % heads:
            raise InputError("heads", heads, f"a number that divides the width, {width}")
        self.heads, self.levels, self.points = heads, levels, points
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.offset, self.weight = nn.Linear(width, heads * levels * points * 2), nn.Linear(width, heads * levels * points)
        for layer in (self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.offset, self.weight):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.offset.bias.copy_(offset_bias(heads, levels, points))

    def forward(self, query_BNC: Tensor, reference_BNR: Tensor, maps: Maps, padding: Padding) -> Tensor:
        """What each query reads, [B, N, C].

        Args:
            query_BNC: decide where around the reference to look, and how much each point counts.
            reference_BNR: points (x, y) or boxes (centre x, centre y, width, height), relative to the unpadded image.
            maps, padding: of the L levels; gradients reach the maps.
        """
        batch, count, width = query_BNC.shape
        shape = batch, count, self.heads, self.levels, self.points
        offsets = self.offset(query_BNC).view(*shape, 2)
        shares = self.weight(query_BNC).view(batch, count, self.heads, -1).softmax(-1).view(shape)
        read = query_BNC.new_zeros(batch * self.heads, width // self.heads, count)
        for level, (features, hidden) in enumerate(zip(maps, padding, strict=True)):
            height, columns = features.shape[-2:]
            value = self.value(features.flatten(2).transpose(1, 2)).masked_fill(hidden.flatten(1)[..., None], 0)
            value = value.transpose(1, 2).reshape(batch * self.heads, -1, height, columns)
            ratio_B1R = valid_ratio(hidden).to(query_BNC.dtype).repeat(1, reference_BNR.shape[-1] // 2)[:, None]
            at = (reference_BNR * ratio_B1R)[:, :, None, None]
            if reference_BNR.shape[-1] == 2:
                places = at + offsets[:, :, :, level] / offsets.new_tensor([columns, height])
            else:
                places = at[..., :2] + offsets[:, :, :, level] / self.points * at[..., 2:] * 0.5
            grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)
            sampled = F.grid_sample(value, grid, align_corners=False)
            read = read + (sampled * shares[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        joined: Tensor = self.out(read.view(batch, width, count).transpose(1, 2))
        return joined


class ExtractorLayer(nn.Module):
    """u = LayerNorm(q + attention(q)), z = LayerNorm(u + FFN(u)), the FFN as wide as the rest; no self-attention, no dropout.

    Args:
        width, heads, levels, points: see `DeformableAttention`.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(width, heads, levels, points)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn1, self.ffn2 = nn.Linear(width, width), nn.Linear(width, width)

    @in_full_precision
    def forward(self, query_BNC: Tensor, reference_BNR: Tensor, maps: Maps, padding: Padding, where: Tensor | None = None) -> Tensor:
        """Embeddings [B, N, C]; `where`, added to the queries inside the attention alone, says which place each stands for."""
        query_BNC, maps = at_least_float32(query_BNC), [at_least_float32(level) for level in maps]
        asked_BNC = query_BNC if where is None else query_BNC + where
        u = self.norm1(query_BNC + self.attention(asked_BNC, reference_BNR, maps, padding))
        z: Tensor = self.norm2(u + self.ffn2(F.relu(self.ffn1(u))))
        return z


class Adapter(nn.Module):
    """phi: brings a student's maps to the extractors' width by one linear map, then lets them look at each other.

    Args:
        channels: of the student's maps, on every level.
        width: C.
        levels: L.
        layers: of deformable self-attention over all levels together; 0 for none.
        heads, points: of theirs.

    Raises:
        InputError: layers of a width that cannot hold sines and cosines of two coordinates.
    """

    def __init__(self, channels: int, width: int, levels: int, layers: int, *, heads: int = 8, points: int = 4) -> None:
        super().__init__()
        if layers and width % 4:
            raise InputError("width", width, "a multiple of 4 for an adapter with layers")
        self.linear = nn.Conv2d(channels, width, 1)
        self.layers = nn.ModuleList(ExtractorLayer(width, heads, levels, points) for _ in range(layers))
        self.level = nn.Parameter(torch.randn(levels, width)) if layers else None

    def forward(self, maps: Maps, padding: Padding) -> list[Tensor]:
        """Per level [B, C_s, h, w] -> [B, C, h, w]."""
        adapted = [self.linear(level) for level in maps]
        if self.level is None:
            return adapted
        shapes = [level.shape[-2:] for level in adapted]
        centres = [cell_centres(hidden) for hidden in padding]
        reference_BP2 = torch.cat([level.flatten(1, 2) for level in centres], 1)
        where_BPC = torch.cat(
            [sine_positions(level, self.level.shape[1]).flatten(1, 2) + own for level, own in zip(centres, self.level, strict=True)], 1
        )
        for layer in self.layers:
            query_BPC = torch.cat([level.flatten(2).transpose(1, 2) for level in adapted], 1)
            mixed_BPC = layer(query_BPC, reference_BP2, adapted, padding, where_BPC)
            parts = mixed_BPC.split([height * width for height, width in shapes], 1)
            adapted = [part.transpose(1, 2).unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]
        return adapted


def cell_centres(padding_Bhw: Tensor) -> Tensor:
    """Where a level's cells are, relative to the unpadded image: [B, h, w, 2], x and y; beyond 1 on the padding."""
    height, width = padding_Bhw.shape[-2:]
    rows_h, columns_w = ((torch.arange(n, device=padding_Bhw.device) + 0.5) / n for n in (height, width))
    every_hw2 = torch.stack(torch.meshgrid(columns_w, rows_h, indexing="xy"), -1)
    return every_hw2 / valid_ratio(padding_Bhw)[:, None, None]


def sine_positions(centres: Tensor, width: int) -> Tensor:
    """Sines and cosines of places in [0, 1], of x and of y: [..., 2] -> [..., width].

    Source: Carion et al. 2020 (DETR), section A.4, normalised, temperature 10 000.
    """
    frequencies = 2 * math.pi / 10_000 ** (torch.arange(width // 4, device=centres.device) * 4 / width)
    angles = centres[..., None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), -1).flatten(-2)
