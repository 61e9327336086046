"""Where teacher and student are compared: the proposals of both, and the region of the ground that each stands for (sections 2 and 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d
from torchvision.ops import nms

from stillroom.tasks.points.boxes import enclosing_rectangles
from stillroom.tasks.points.center_head import boxes_at, gaussian_radius
from stillroom.tasks.points.grid import BevGrid, ClassList

_LARGEST = 40.0  # metres: a box that is predicted larger has a region of this size


class Peaks(NamedTuple):
    """Proposals of a heatmap, sample by sample, of each the best first: its sample, label, row and column int64 [n], its score [n]."""

    sample: Tensor
    label: Tensor
    row: Tensor
    column: Tensor
    score: Tensor


def select_proposals(probabilities: Tensor, *, threshold: float = 0.1, most: int = 100) -> Peaks:
    """Cells that are the greatest of their 3 x 3 neighbourhood in their own class (equal neighbours all are) and exceed `threshold`.

    Args:
        probabilities: [B, K, ny, nx], of all classes.
        threshold: a probability.
        most: the best so many of a sample, over all classes.
    """
    p = probabilities.detach().float()
    peak = (p == max_pool2d(p, 3, 1, 1)) & (p > threshold)
    sample, label, row, column = peak.nonzero(as_tuple=True)
    score = p[sample, label, row, column]
    order = score.argsort(descending=True, stable=True)
    order = order[sample[order].argsort(stable=True)]
    counts = torch.bincount(sample, minlength=len(p))
    place = torch.arange(len(order), device=p.device) - (counts.cumsum(0) - counts)[sample[order]]
    kept = order[place < most]
    return Peaks(*(part[kept] for part in (sample, label, row, column, score)))


def boxes_of_peaks(peaks: Peaks, codes: Tensor, classes: ClassList, grid: BevGrid) -> tuple[Tensor, Tensor]:
    """The boxes [n', 7 or 9] that stand at peaks, without those whose size is not finite or not positive, and the sample of each.

    Args:
        peaks: of a head's heatmap.
        codes: [B, groups x 8 or 10, ny, nx], of all groups of classes.
        classes: the head's.
        grid: of its maps.
    """
    sizes = torch.tensor(classes.sizes, device=codes.device)
    group = torch.arange(len(sizes), device=codes.device).repeat_interleave(sizes)[peaks.label]
    mine = codes.detach().unflatten(1, (len(sizes), -1))[peaks.sample, group, :, peaks.row, peaks.column]
    boxes = boxes_at(mine, peaks.column, peaks.row, grid)
    sound = boxes[:, :7].isfinite().all(1) & (boxes[:, 3:6] > 0).all(1)
    return boxes[sound], peaks.sample[sound]


def proposal_regions(xy: Tensor, size: Tensor, cell: float, *, overlap: float = 0.1, min_radius: int = 2) -> Tensor:
    """The square that a centre-based proposal stands for: its centre +- (radius + 1/2) cells.

    Args:
        xy: centres [n, 2], metres.
        size: (dx, dy) [n, 2], metres, taken as no less than a cell and no more than 40 m.
        cell: side of a cell of the map that made the proposals, metres.
        overlap: of `gaussian_radius`.
        min_radius: cells.

    Returns:
        [n, 4] (x0, y0, x1, y1), metres.
    """
    cells = size.clamp(cell, max(_LARGEST, cell)) / cell
    radius = gaussian_radius(cells, overlap).int().clamp_min(min_radius)
    half = ((radius + 0.5) * cell)[:, None]
    return torch.cat((xy - half, xy + half), 1)


def anchor_proposals(
    boxes: Tensor, probabilities: Tensor, *, cell: float, threshold: float = 0.1, overlap: float = 0.5, most: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """Proposals of an anchor-based head for one sample, by greedy suppression whatever the class.

    Args:
        boxes: every anchor's decoded box [A, 7].
        probabilities: [A, K].
        cell: metres; a region is at least a cell wide.
        threshold: of the greatest probability of an anchor.
        overlap: intersection over union of the rectangles around two boxes, above which the less probable one goes.
        most: the best so many.

    Returns:
        The anchors' places int64 [n], best first, their scores [n], and their regions [n, 4] (x0, y0, x1, y1), metres: the axis-parallel
        rectangles around the boxes.
    """
    score = probabilities.detach().float().amax(1)
    sound = boxes.isfinite().all(1) & (boxes[:, 3:6] > 0).all(1)
    able = ((score > threshold) & sound).nonzero().squeeze(1)
    rectangles = enclosing_rectangles(boxes.detach()[able].float())
    kept = nms(rectangles, score[able], overlap)[:most]
    low, high = rectangles[kept].split(2, 1)
    middle, half = (low + high) / 2, ((high - low) / 2).clamp_min(cell / 2)
    return able[kept], score[able[kept]], torch.cat((middle - half, middle + half), 1)
