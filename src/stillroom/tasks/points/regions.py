"""Regions of a map seen from above that distillation compares: cells under boxes, crops of the same metres, pairs of proposals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

from stillroom.tasks.points.boxes import bev
from stillroom.tasks.points.grid import BevGrid


def boxes_to_mask(boxes: Tensor, grid: BevGrid, *, sample: str = "center") -> tuple[Tensor, Tensor]:
    """Which cells lie under a box, whatever its height.

    Args:
        boxes: [M, 7+], or rectangles [M, 5].
        grid: the raster.
        sample: the position that stands for a cell: its "center" or its lower "corner". A box smaller than a cell may hold none.

    Returns:
        Foreground bool [ny, nx], and the owner int64 [ny, nx]: the first of the boxes that cover a cell, -1 for none.
    """
    rectangles = boxes if boxes.shape[-1] == 5 else bev(boxes)
    owner = torch.full((grid.ny, grid.nx), -1, dtype=torch.int64, device=boxes.device)
    if not len(boxes):
        return owner >= 0, owner
    at = grid.positions(sample, device=boxes.device).to(rectangles)
    away = at.flatten(0, 1) - rectangles[:, None, :2]  # [M, ny nx, 2]
    cos, sin = rectangles[:, 4:5].cos(), rectangles[:, 4:5].sin()
    x, y = away.unbind(-1)
    inside = ((cos * x + sin * y).abs() <= rectangles[:, 2:3] / 2) & ((cos * y - sin * x).abs() <= rectangles[:, 3:4] / 2)
    first = inside.int().argmax(0)  # of equal ones the first
    owner = torch.where(inside.any(0), first, -1).view(grid.ny, grid.nx)
    return owner >= 0, owner


def crop_regions(map_BCYX: Tensor, rectangles: Tensor, sample: Tensor, grid: BevGrid, *, size: int = 7, sampling: int = 2) -> Tensor:
    """RoIAlign of axis-parallel rectangles that are given in metres, in float32; samples more than a cell outside the map give 0.

    Args:
        map_BCYX: [B, C, ny, nx].
        rectangles: [n, 4] (x0, y0, x1, y1), metres.
        sample: int64 [n], the sample of each.
        grid: of the map.
        size: P, bins per side.
        sampling: bilinear samples per bin and side, averaged.

    Returns:
        [n, C, P, P].
    """
    cells = grid.to_cells(rectangles.view(-1, 2, 2)).flatten(1)
    rois = torch.cat((sample[:, None].to(cells), cells), 1)
    with torch.autocast(map_BCYX.device.type, enabled=False):
        return roi_align(map_BCYX.float(), rois.float(), size, sampling_ratio=sampling, aligned=True)


def crop_bev(map_BCYX: Tensor, boxes: Tensor, sample: Tensor, grid: BevGrid, *, size: int = 7) -> Tensor:
    """Crops in the boxes' own frames: a raster of size x size positions, rows along the box's y and columns along its x.

    Args:
        map_BCYX: [B, C, ny, nx].
        boxes: [n, 7+], or rectangles [n, 5].
        sample: int64 [n], the sample of each.
        grid: of the map.
        size: positions per side, at the middles of as many equal parts.

    Returns:
        [n, C, size, size], bilinear between cells' centres, 0 outside the map.
    """
    rectangles = boxes if boxes.shape[-1] == 5 else bev(boxes)
    part = (torch.arange(size, device=boxes.device) + 0.5) / size - 0.5
    y, x = torch.meshgrid(part, part, indexing="ij")
    local = torch.stack((x, y), -1).flatten(0, 1) * rectangles[:, None, 2:4]
    cos, sin = rectangles[:, 4, None].cos(), rectangles[:, 4, None].sin()
    xy = torch.stack((cos * local[..., 0] - sin * local[..., 1], sin * local[..., 0] + cos * local[..., 1]), -1) + rectangles[:, None, :2]
    at = (grid.to_cells(xy) / xy.new_tensor((grid.nx, grid.ny)) * 2 - 1).unflatten(1, (size, size)).float()
    out = map_BCYX.new_zeros(len(boxes), map_BCYX.shape[1], size, size, dtype=torch.float32)
    with torch.autocast(map_BCYX.device.type, enabled=False):
        for place, each in enumerate(map_BCYX.float()):  # the maps are expanded, not copied, to the boxes of their sample
            mine = (sample == place).nonzero().squeeze(1)
            found = functional.grid_sample(each[None].expand(len(mine), -1, -1, -1), at[mine], align_corners=False)
            out = out.index_copy(0, mine, found)
    return out


class Pairs(NamedTuple):
    """The same regions for two networks: boxes [n, D], the sample int64 [n] of each, and bool [n] whether the teacher proposed it."""

    boxes: Tensor
    sample: Tensor
    from_teacher: Tensor


def pair_proposals(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Pairs:
    """Every proposal of either network becomes a region that is looked at in both; what both found is there twice.

    Args:
        teacher, student: per sample [M_b, D] and [N_b, D].
    """
    sides = []
    for boxes, mine in ((teacher, True), (student, False)):
        joined = torch.cat(list(boxes))
        counts = torch.tensor([len(some) for some in boxes], device=joined.device)
        sample = torch.arange(len(boxes), device=joined.device).repeat_interleave(counts)
        sides.append((joined, sample, torch.full_like(sample, mine, dtype=torch.bool)))
    return Pairs(*(torch.cat(parts) for parts in zip(*sides, strict=True)))
