"""The head of CenterPoint: objects are peaks of a heatmap seen from above, and at each peak stand the codes of its box.

Per group of classes it predicts `heatmap` [B, K, ny, nx] (logits) and the code (offset 2, z 1, log sizes 3, sin and cos of the yaw 2,
velocity 2 where asked for) as `reg`, `height`, `dim`, `rot` and `vel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillroom.engine.distributed import averaged
from stillroom.errors import InputError
from stillroom.tasks.points.backbones import conv_norm
from stillroom.tasks.points.boxes import circle_nms, rotated_nms
from stillroom.tasks.points.grid import BevGrid, ClassList

CODE = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
Prediction = dict[str, Tensor]


class Detections(NamedTuple):
    """Boxes of one sample: boxes [M, 7 or 9], scores [M] in [0, 1], labels int64 [M]; by falling score."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def gaussian_radius(size: Tensor, overlap: float) -> Tensor:
    """How far a box may be shifted and still overlap itself by `overlap`, as CornerNet and CenterPoint compute it.

    Args:
        size: [..., 2], length and width in cells.
        overlap: an intersection over union in (0, 1).

    Returns:
        [...], in cells. (All three roots are divided by 2, whatever their quadratic's first coefficient, as in the released code.)
    """
    total, area = size.sum(-1), size.prod(-1)
    both = (total + (total.square() - 4 * area * (1 - overlap) / (1 + overlap)).sqrt()) / 2
    inner = (2 * total + (4 * total.square() - 16 * (1 - overlap) * area).sqrt()) / 2
    outer = (-2 * overlap * total + (4 * (overlap * total).square() + 16 * overlap * (1 - overlap) * area).sqrt()) / 2
    return torch.minimum(torch.minimum(both, inner), outer)


@dataclass(frozen=True)
class CenterTargets:
    """What the head should say of a batch. T groups of classes, S slots for boxes.

    Args:
        heatmap: [B, K, ny, nx] of all classes, 1 at a box's cell and a Gaussian around it.
        codes: [T, B, S, 8 or 10].
        index: int64 [T, B, S], the box's cell, row * nx + column.
        mask: bool [T, B, S], which slots hold a box.
    """

    heatmap: Tensor
    codes: Tensor
    index: Tensor
    mask: Tensor


def center_targets(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    classes: ClassList,
    grid: BevGrid,
    *,
    overlap: float = 0.1,
    min_radius: int = 2,
    max_objects: int = 500,
    cells: Sequence[Tensor] | None = None,
) -> CenterTargets:
    """Targets of a batch, all boxes at once.

    A group's boxes take its slots in the order of their classes, then as they came; one that lies outside the grid, or is not of finite,
    positive size, leaves its slot empty.

    Args:
        boxes: per sample [M, 7 or 9].
        labels: per sample int64 [M].
        classes: the classes and their groups.
        grid: of the head's map.
        overlap: of `gaussian_radius`.
        min_radius: cells.
        max_objects: S; further boxes of a group are left out.
        cells: per sample int64 [M, 2] (column, row), the cell that stands for each box; by default the one that its centre lies in.
    """
    flat, label = torch.cat(list(boxes)), torch.cat(list(labels))
    device, count, ny, nx = flat.device, len(boxes), grid.ny, grid.nx
    sizes = torch.tensor(classes.sizes, device=device)
    group_of = torch.arange(len(sizes), device=device).repeat_interleave(sizes)
    sample = torch.arange(count, device=device).repeat_interleave(torch.tensor([len(some) for some in boxes], device=device))
    order = (sample * len(classes) + label).argsort(stable=True)
    flat, label, sample = flat[order], label[order], sample[order]
    place = sample * len(sizes) + group_of[label]  # rising, since a group's classes are consecutive
    per = torch.bincount(place, minlength=count * len(sizes))
    slot = torch.arange(len(flat), device=device) - (per.cumsum(0) - per)[place]

    at = (flat[:, :2] - flat.new_tensor(grid.origin)) / grid.cell
    cell = at.trunc() if cells is None else torch.cat(list(cells)).to(at)[order]
    finite = flat[:, :7].isfinite().all(1) & (flat[:, 3:6] > 0).all(1)
    good = finite & (cell >= 0).all(1) & (cell < cell.new_tensor((nx, ny))).all(1) & (slot < max_objects)
    flat, label, sample, slot, at, cell = (value[good] for value in (flat, label, sample, slot, at, cell))
    group, column, row = group_of[label], cell[:, 0].long(), cell[:, 1].long()

    code = torch.cat((at - cell, flat[:, 2:3], flat[:, 3:6].log(), flat[:, 6:7].sin(), flat[:, 6:7].cos(), flat[:, 7:9]), 1)
    codes = code.new_zeros(len(sizes), count, max_objects, code.shape[1])
    index = torch.zeros(codes.shape[:3], dtype=torch.int64, device=device)
    mask = torch.zeros(codes.shape[:3], dtype=torch.bool, device=device)
    codes[group, sample, slot], index[group, sample, slot], mask[group, sample, slot] = code, row * nx + column, True

    radius = gaussian_radius(flat[:, 3:5] / grid.cell, overlap).int().clamp(min_radius, max(ny, nx))
    heatmap = flat.new_zeros(count * len(classes) * ny * nx)
    _draw_gaussians(heatmap, (sample * len(classes) + label) * ny * nx, row, column, radius, ny, nx)
    return CenterTargets(heatmap.view(count, len(classes), ny, nx), codes, index, mask)


def _draw_gaussians(flat: Tensor, start: Tensor, row: Tensor, column: Tensor, radius: Tensor, ny: int, nx: int) -> None:
    """Writes exp(-d^2 / 2 s^2), s = (2 radius + 1) / 6, around each (row, column) into the map that begins at `start`, where it is greater.

    All boxes share a window of the largest radius; a few million cells are drawn at once.
    """
    if not len(row):
        return
    reach = int(radius.max())
    offset = torch.arange(-reach, reach + 1, device=flat.device)
    for some in torch.arange(len(row), device=flat.device).split(max(1, (1 << 22) // len(offset) ** 2)):
        r, c = row[some, None, None] + offset[:, None], column[some, None, None] + offset
        far = radius[some, None, None]
        within = (offset.abs()[:, None] <= far) & (offset.abs() <= far) & (r >= 0) & (r < ny) & (c >= 0) & (c < nx)
        distance = (offset.square()[:, None] + offset.square()).to(flat)
        values = torch.exp(-18 * distance / (2 * far + 1).square())
        cells = start[some, None, None] + r * nx + c
        flat.scatter_reduce_(0, cells[within], values[within], "amax")


def gaussian_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss of a heatmap: sum over all cells / number of cells whose target is 1 (at least 1, averaged over processes).

    -log(p) (1 - p)^2 where the target is 1 and -log(1 - p) p^2 (1 - target)^4 elsewhere, p = sigmoid clamped to [1e-4, 1 - 1e-4].

    Args:
        logits, target: the same shape.

    Source: CornerNet (alpha 2, beta 4), as in CenterPoint's code.
    """
    p = logits.float().sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = target == 1
    positive = -(p + 1e-12).log() * (1 - p).square()
    negative = -(1 - p + 1e-12).log() * p.square() * (1 - target).pow(4)
    return torch.where(peak, positive, negative).sum() / averaged(peak.sum().float()).clamp_min(1)


def codes_of(prediction: Prediction) -> Tensor:
    """The code's map of one group of classes: [B, 8 or 10, ny, nx]."""
    return torch.cat([prediction[name] for name in CODE if name in prediction], 1)


def at_cells(map_BCYX: Tensor, index: Tensor) -> Tensor:
    """Values of a map [B, C, ny, nx] at cells int64 [B, S] (row * nx + column): [B, S, C]."""
    return map_BCYX.flatten(2).gather(2, index[:, None].expand(-1, map_BCYX.shape[1], -1)).transpose(1, 2)


def code_loss(prediction: Prediction, codes: Tensor, index: Tensor, mask: Tensor, *, velocity_weight: float = 0.2) -> Tensor:
    """L1 of the codes at the boxes' cells: sum / (number of boxes + 1e-4), the number averaged over processes.

    Args:
        prediction: of one group of classes.
        codes, index, mask: that group's in `CenterTargets`. A component that is no number (the
            velocity of an object seen once) is left out.
        velocity_weight: of the two components of the velocity; the others weigh 1.
    """
    found = at_cells(codes_of(prediction), index).float()
    codes = codes[..., : found.shape[-1]]
    known = mask[..., None] & ~codes.isnan()
    weight = torch.ones(found.shape[-1], device=found.device)
    weight[8:] = velocity_weight
    error = (found - torch.where(known, codes, found.detach())).abs() * known * weight
    return error.sum() / (averaged(mask.sum().float()) + 1e-4)


def center_losses(
    predictions: Sequence[Prediction], targets: CenterTargets, *, velocity_weight: float = 0.2, code_weight: float = 0.25
) -> dict[str, Tensor]:
    """The detector's two terms, each summed over the groups of classes: `heatmap` (focal) and `box` (`code_weight` x L1)."""
    heatmaps = targets.heatmap.split([prediction["heatmap"].shape[1] for prediction in predictions], 1)
    focal = [gaussian_focal_loss(prediction["heatmap"], heat) for prediction, heat in zip(predictions, heatmaps, strict=True)]
    every = zip(predictions, targets.codes, targets.index, targets.mask, strict=True)
    box = [code_loss(prediction, *wanted, velocity_weight=velocity_weight) for prediction, *wanted in every]
    return {"heatmap": torch.stack(focal).sum(), "box": code_weight * torch.stack(box).sum()}


def heatmap_logits(predictions: Sequence[Prediction]) -> Tensor:
    """The heatmaps of all groups, in the order of the classes: [B, K, ny, nx]."""
    return torch.cat([prediction["heatmap"] for prediction in predictions], 1)


def boxes_at(codes: Tensor, column: Tensor, row: Tensor, grid: BevGrid) -> Tensor:
    """Boxes of codes.

    Args:
        codes: [..., 8 or 10].
        column, row: [...], the cell that each was predicted at.
        grid: of the map.

    Returns:
        [..., 7 or 9].
    """
    codes = codes.float()
    corner = torch.stack((column, row), -1) + codes[..., :2]
    xy = corner * grid.cell + corner.new_tensor(grid.origin)
    yaw = torch.atan2(codes[..., 6:7], codes[..., 7:8])
    return torch.cat((xy, codes[..., 2:3], codes[..., 3:6].exp(), yaw, codes[..., 8:]), -1)


def decode(
    heat: Tensor,
    codes: Tensor,
    grid: BevGrid,
    *,
    max_boxes: int = 500,
    threshold: float = 0.1,
    centre_range: Sequence[float] | None = None,
    peaks: bool = False,
) -> list[Detections]:
    """The boxes of one group of classes before any suppression.

    Args:
        heat: [B, K, ny, nx], probabilities.
        codes: [B, 8 or 10, ny, nx].
        grid: of the map.
        max_boxes: the best so many cells over all classes of the group.
        threshold: scores above it are kept.
        centre_range: (x0, y0, z0, x1, y1, z1), metres, within which centres must lie; None: anywhere.
        peaks: only cells that are the greatest of their 3x3 neighbourhood in their class.

    Returns:
        Per sample the detections, labels counted within the group.
    """
    heat = heat.detach().float()
    if peaks:
        heat = heat * (functional.max_pool2d(heat, 3, 1, 1) == heat)
    ny, nx = heat.shape[2:]
    scores, place = heat.flatten(1).topk(min(max_boxes, heat[0].numel()), 1)
    label, cell = place // (ny * nx), place % (ny * nx)
    boxes = boxes_at(at_cells(codes.detach(), cell), cell % nx, cell // nx, grid)
    # sizes that overflowed to infinity or shrank to nothing are no boxes
    keep = (scores > threshold) & boxes[..., :7].isfinite().all(-1) & (boxes[..., 3:6] > 0).all(-1)
    if centre_range is not None:
        low, high = boxes.new_tensor(centre_range).split(3)
        keep &= ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(-1)
    every = zip(boxes, scores, label, keep, strict=True)
    return [Detections(box[kept], score[kept], labels[kept]) for box, score, labels, kept in every]


@dataclass(frozen=True)
class Suppression:
    """How overlapping detections of one group of classes are thinned out.

    Args:
        kind: "circle" (distance of centres), "rotated" (overlap from above), or "none".
        threshold: square metres for "circle", an overlap for "rotated"; one number, or one per group of classes.
        scale: "rotated" only: per class of all groups what its boxes are multiplied with first (scale-NMS); empty: 1.
        max_kept: per group.
    """

    kind: Literal["circle", "rotated", "none"] = "rotated"
    threshold: float | tuple[float, ...] = 0.2
    scale: tuple[float, ...] = ()
    max_kept: int = 83

    def __post_init__(self) -> None:
        if self.kind not in ("circle", "rotated", "none"):
            raise InputError("kind", self.kind, "circle, rotated or none")

    def keep(self, found: Detections, group: int) -> Tensor:
        """Places of the detections (labels counted over all groups) that stay, by falling score."""
        threshold = self.threshold if isinstance(self.threshold, int | float) else self.threshold[group]
        if self.kind == "none":
            return found.scores.argsort(descending=True, stable=True)[: self.max_kept]
        if self.kind == "circle":
            return circle_nms(found.boxes[:, :2], found.scores, threshold, max_kept=self.max_kept)
        scale = found.boxes.new_tensor(self.scale)[found.labels] if self.scale else 1.0
        return rotated_nms(found.boxes, found.scores, threshold, max_kept=self.max_kept, scale=scale)


NUSCENES_CIRCLES = Suppression("circle", (4.0, 12.0, 10.0, 1.0, 0.85, 0.175))


class CenterHead(nn.Module):
    """A shared 3x3 convolution, then per group of classes a branch of two convolutions for the heatmap and for each part of the code.

    Args:
        in_channels: of the neck.
        classes: the classes and their groups.
        grid: of the neck's map.
        velocity: whether the code holds one.
        width: of the shared convolution and within the branches.
        suppression: of `detect`.
        threshold: least score of a detection.
        max_boxes: cells per group that are looked at.
        centre_range: of `decode`.
    """

    def __init__(
        self,
        in_channels: int,
        classes: ClassList,
        grid: BevGrid,
        *,
        velocity: bool = False,
        width: int = 64,
        suppression: Suppression | None = None,
        threshold: float = 0.1,
        max_boxes: int = 500,
        centre_range: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.classes, self.grid = in_channels, classes, grid
        self.suppression = Suppression() if suppression is None else suppression
        self.threshold, self.max_boxes, self.centre_range = threshold, max_boxes, centre_range
        self.shared = conv_norm(in_channels, width)
        parts = {name: size for name, size in CODE.items() if velocity or name != "vel"}
        self.tasks = nn.ModuleList(
            nn.ModuleDict({name: self._branch(width, size) for name, size in {"heatmap": count, **parts}.items()})
            for count in classes.sizes
        )
        for task in self.tasks:
            nn.init.constant_(task["heatmap"][-1].bias, -2.19)  # type: ignore[index]  # a sigmoid of 0.1: few cells hold an object

    @staticmethod
    def _branch(width: int, out: int) -> nn.Sequential:
        return nn.Sequential(conv_norm(width, width), nn.Conv2d(width, out, 3, padding=1))

    def forward(self, neck: Tensor) -> list[Prediction]:
        """[B, in_channels, ny, nx] -> per group of classes its maps."""
        shared = self.shared(neck)
        return [{name: branch(shared) for name, branch in task.items()} for task in self.tasks]  # type: ignore[operator]

    def dense(self, predictions: Sequence[Prediction]) -> tuple[Tensor, Tensor]:
        """Logits of all classes [B, K, ny, nx], and codes of all groups [B, groups x 8 or 10, ny, nx]."""
        return heatmap_logits(predictions), torch.cat([codes_of(prediction) for prediction in predictions], 1)

    def losses(
        self, predictions: Sequence[Prediction], boxes: Sequence[Tensor], labels: Sequence[Tensor], *, velocity_weight: float = 0.2
    ) -> dict[str, Tensor]:
        """``heatmap`` and ``box``, see `center_targets` and `center_losses`."""
        targets = center_targets(boxes, labels, self.classes, self.grid)
        return center_losses(predictions, targets, velocity_weight=velocity_weight)

    @torch.no_grad()
    def detect(self, predictions: Sequence[Prediction]) -> list[Detections]:
        """Per sample the detections of all groups after suppression, by falling score."""
        per_sample: list[list[Detections]] = [[] for _ in predictions[0]["heatmap"]]
        for group, (first, prediction) in enumerate(zip(self.classes.first, predictions, strict=True)):
            heat, codes = prediction["heatmap"].float().sigmoid(), codes_of(prediction)
            found = decode(heat, codes, self.grid, max_boxes=self.max_boxes, threshold=self.threshold, centre_range=self.centre_range)
            for sample, (boxes, scores, labels) in zip(per_sample, found, strict=True):
                there = Detections(boxes, scores, labels + first)
                kept = self.suppression.keep(there, group)
                sample.append(Detections(*(value[kept] for value in there)))
        joined = [Detections(*(torch.cat(parts) for parts in zip(*sample, strict=True))) for sample in per_sample]
        orders = [found.scores.argsort(descending=True, stable=True) for found in joined]
        return [Detections(*(value[order] for value in found)) for found, order in zip(joined, orders, strict=True)]
