"""The methods that the paper compares RDD with, through the same adapter between the same maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.ops import batched_nms

from stillroom.engine import Losses, Teacher
from stillroom.errors import at_least_zero, one_of
from stillroom.methods.rdd.distiller import AdaptedDistiller, Answer
from stillroom.methods.rdd.loss import hint_loss_where, pp_heatmap_loss
from stillroom.methods.rdd.proposals import Peaks, boxes_of_peaks, proposal_regions, select_proposals
from stillroom.tasks.detection3d.networks import MapDetector, MapOutputs
from stillroom.tasks.points.center_head import (
    CenterHead,
    CenterTargets,
    at_cells,
    center_losses,
    center_targets,
    code_loss,
    gaussian_radius,
)
from stillroom.tasks.points.frames import FrameBatch
from stillroom.tasks.points.grid import BevGrid
from stillroom.tasks.points.regions import boxes_to_mask, crop_regions

Rival = Literal["hint", "fg", "gid-f", "gid-l", "lad", "pp"]
_INSTANCES, _INSTANCE_OVERLAP = 10, 0.3  # of GID: regions of a sample, and how much two may overlap


class RivalDistiller(AdaptedDistiller):
    """What the paper compares RDD with, each on the adapted neck or on the heads' answers.

    ``hint``: the mean squared difference of the whole necks. ``fg``: the same near true objects, inside boxes enlarged by their Gaussian
    radius. ``gid-f``, ``gid-l``: general instances, where the probabilities differ most, compared by their features or by their
    probabilities. ``lad``: the teacher says which of the nine cells around an object's centre stands for it. ``pp``: pivotal positions, the
    heatmaps where teacher and truth agree, and the codes at true centres.

    The papers of GID and LAD are of detectors on pictures; how they read from above is ours.

    Args:
        student, teacher: see `AdaptedDistiller`.
        kind: which.
        weight: of hint, fg, gid-f and gid-l.
    """

    def __init__(self, student: MapDetector, teacher: Teacher | nn.Module, *, kind: Rival, weight: float = 1.0) -> None:
        super().__init__(student, teacher)
        self.kind = one_of("kind", kind, get_args(Rival))
        if kind not in ("hint", "fg"):
            self.require_alike(CenterHead)
        self.weight = at_least_zero("weight", weight)
        if kind not in ("hint", "fg", "gid-f"):
            self.adapter.requires_grad_(False)  # not asked, so that DDP does not wait for its gradient

    def losses(self, batch: FrameBatch) -> Losses:
        """With ``lad`` the teacher changes what the detector's own losses ask; else they stay as they are."""
        if self.kind != "lad":
            return super().losses(batch)
        outputs = self.student.raw(batch.inputs, batch.previous)
        told: dict[str, Tensor] = self.teacher(batch)
        size = outputs.neck.shape[2:]
        cells = [
            _best_cells(boxes, labels, heat, self.student.grid)
            for boxes, labels, heat in zip(batch.boxes, batch.labels, _sized(told["heatmap"].sigmoid(), size), strict=True)
        ]
        targets = center_targets(batch.boxes, batch.labels, self.student.classes, self.student.grid, cells=cells)
        task = center_losses(outputs.predictions, targets, velocity_weight=self.student.velocity_weight)
        return Losses(task={**task, **self.student.extra_losses(outputs, batch)}, distill={})

    def compared(self, batch: FrameBatch, outputs: MapOutputs, mine: Answer, theirs: Answer) -> dict[str, Tensor]:
        """One term, named as the rival; of ``pp`` two."""
        return _COMPARED[self.kind](self, batch, outputs, mine, theirs)

    def _hint(self, batch: FrameBatch, outputs: MapOutputs, mine: Answer, theirs: Answer) -> dict[str, Tensor]:
        mask = None
        if self.kind == "fg":
            mask = torch.stack([_near(boxes, theirs.grid) for boxes in batch.boxes])[:, None].to(theirs.neck)
        return {self.kind: self.weight * hint_loss_where(_sized(mine.neck, theirs.neck.shape[2:]), theirs.neck, mask)}

    def _instances(self, batch: FrameBatch, outputs: MapOutputs, mine: Answer, theirs: Answer) -> dict[str, Tensor]:
        rectangles, sample = self._general(mine, theirs)
        pair = (mine.neck, theirs.neck) if self.kind == "gid-f" else (mine.probabilities, theirs.probabilities)
        crops = [crop_regions(bev, rectangles, sample, answer.grid) for bev, answer in zip(pair, (mine, theirs), strict=True)]
        term = hint_loss_where(*crops) if len(sample) else 0 * pair[0].sum()
        return {self.kind: self.weight * term}

    @torch.no_grad()
    def _general(self, mine: Answer, theirs: Answer) -> tuple[Tensor, Tensor]:
        """Where the probabilities differ most, with the box of whichever is surer; regions [n, 4] and the sample of each."""
        apart = _sized(mine.probabilities, theirs.probabilities.shape[2:]) - theirs.probabilities
        peaks = select_proposals(apart.abs(), most=4 * _INSTANCES)
        at = torch.stack((peaks.column, peaks.row), 1) + 0.5
        xy = at * theirs.grid.cell + at.new_tensor(theirs.grid.origin)
        column, row = mine.grid.to_cells(xy).long().unbind(1)
        there = Peaks(peaks.sample, peaks.label, row, column, peaks.score)
        classes = self.student.classes
        sides = boxes_of_peaks(peaks, theirs.codes, classes, theirs.grid)[0], boxes_of_peaks(there, mine.codes, classes, mine.grid)[0]
        if any(len(side) < len(xy) for side in sides):  # a size that is none: no box can be read there
            return xy.new_zeros(0, 4), peaks.sample[:0]
        surer = apart[peaks.sample, peaks.label, peaks.row, peaks.column] > 0
        boxes = torch.where(surer[:, None], sides[1], sides[0])
        rectangles = proposal_regions(boxes[:, :2], boxes[:, 3:5], theirs.grid.cell)
        kept = batched_nms(rectangles, peaks.score, peaks.sample, _INSTANCE_OVERLAP)
        kept = kept[_place_in_sample(peaks.sample[kept]) < _INSTANCES]
        return rectangles[kept], peaks.sample[kept]

    def _pivotal(self, batch: FrameBatch, outputs: MapOutputs, mine: Answer, theirs: Answer) -> dict[str, Tensor]:
        classes = self.student.classes
        wanted, known = (center_targets(batch.boxes, batch.labels, classes, grid) for grid in (mine.grid, theirs.grid))
        heat = _sized(theirs.probabilities, mine.probabilities.shape[2:])
        parts = zip(*(value.split(classes.sizes, 1) for value in (mine.probabilities, heat, wanted.heatmap)), strict=True)
        maps = [pp_heatmap_loss(*part) for part in parts]
        codes = _codes_told(theirs, wanted, known, mine.grid)
        every = zip(outputs.predictions, codes, wanted.index, wanted.mask & known.mask, strict=True)
        boxes = [code_loss(prediction, *rest, velocity_weight=1.0) for prediction, *rest in every]
        return {"pp_heatmap": torch.stack(maps).mean(), "pp_box": 0.2 * torch.stack(boxes).mean()}


_COMPARED: dict[str, Callable[..., dict[str, Tensor]]] = {
    "hint": RivalDistiller._hint,
    "fg": RivalDistiller._hint,
    "gid-f": RivalDistiller._instances,
    "gid-l": RivalDistiller._instances,
    "pp": RivalDistiller._pivotal,
}


def _sized(maps: Tensor, size: Any) -> Tensor:
    """Maps [B, C, h, w] at another resolution of the same ground."""
    return maps if maps.shape[2:] == size else interpolate(maps.float(), size, mode="bilinear", align_corners=False)


def _near(boxes: Tensor, grid: BevGrid) -> Tensor:
    """Cells [ny, nx] inside boxes enlarged by their Gaussian radius on every side."""
    sound = boxes[boxes[:, :7].isfinite().all(1) & (boxes[:, 3:6] > 0).all(1)]
    more = 2 * grid.cell * gaussian_radius(sound[:, 3:5] / grid.cell, 0.1).int().clamp_min(2)
    wide = torch.cat((sound[:, :2], sound[:, 3:5] + more[:, None], sound[:, 6:7]), 1)
    return boxes_to_mask(wide, grid)[0]


def _place_in_sample(sample: Tensor) -> Tensor:
    """How many rows of the same sample stand before each row: int64 [n]."""
    same = sample[:, None] == sample[None]
    return same.tril(-1).sum(1)


def _best_cells(boxes: Tensor, labels: Tensor, heat: Tensor, grid: BevGrid) -> Tensor:
    """Of the nine cells around each box's centre the one where `heat` [K, ny, nx] is greatest for its class: int64 [M, 2] (column, row).

    A centre outside the grid keeps its own, so that the box is left out as it would be.
    """
    own = grid.to_cells(boxes[:, :2].nan_to_num(torch.inf)).clamp(-2, max(grid.nx, grid.ny) + 1).trunc().long()
    shift = torch.tensor([[x, y] for y in (-1, 0, 1) for x in (-1, 0, 1)], device=boxes.device)
    near = own[:, None] + shift
    last = near.new_tensor((grid.nx - 1, grid.ny - 1))
    inside = ((near >= 0) & (near <= last)).all(-1)
    column, row = near.clamp_min(0).minimum(last).unbind(-1)
    best = torch.where(inside, heat[labels[:, None], row, column], -1.0).argmax(1)
    chosen = near[torch.arange(len(boxes), device=boxes.device), best]
    return torch.where(((own >= 0) & (own <= last)).all(1, keepdim=True), chosen, own)


def _codes_told(theirs: Answer, wanted: CenterTargets, known: CenterTargets, grid: BevGrid) -> Tensor:
    """The teacher's codes at true centres [T, B, S, D], their offsets counted from the student's cells."""
    groups = len(wanted.index)
    codes = torch.stack([at_cells(part, index) for part, index in zip(theirs.codes.chunk(groups, 1), known.index, strict=True)])
    cells = [torch.stack((index % nx, index // nx), -1) for index, nx in ((known.index, theirs.grid.nx), (wanted.index, grid.nx))]
    offset = (cells[0] + codes[..., :2]) * (theirs.grid.cell / grid.cell) - cells[1]
    return torch.cat((offset, codes[..., 2:]), -1)
