"""The head of SECOND and PointPillars: at each cell stand boxes of usual sizes, lengthways and across, that are scored and shifted.

A prediction is `heatmap` [B, R K, ny, nx] (logits of K classes for each of R = 2 K anchors of a cell), `reg` [B, 7 R, ny, nx] (residual
codes) and `direction` [B, 2 R, ny, nx] (logits: which way along its axis a box faces, which the codes do not tell).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou, nms, sigmoid_focal_loss

from stillroom.engine.distributed import averaged
from stillroom.errors import InputError
from stillroom.tasks.points.boxes import enclosing_rectangles
from stillroom.tasks.points.center_head import Detections, Prediction
from stillroom.tasks.points.grid import BevGrid, ClassList

# Usual sizes (dx, dy, dz), metres, and the overlaps from which an anchor stands for an object and below which for none; KITTI's classes.
SIZES: Mapping[str, tuple[float, float, float]] = {
    "car": (3.9, 1.6, 1.56),
    "pedestrian": (0.8, 0.6, 1.73),
    "cyclist": (1.76, 0.6, 1.73),
}
_OVERLAPS: Mapping[str, tuple[float, float]] = {"car": (0.6, 0.45)}
_OTHER_OVERLAPS = (0.5, 0.35)
_BOTTOM = -1.78  # metres: the road below KITTI's lidar; of another sensor's frame the codes learn the difference
_TURN = math.pi / 4  # where the two directions of an axis meet, away from straight ahead
_BETA = 1 / 9  # of the smooth L1


class FlatAnchors(NamedTuple):
    """What a head says of each of A anchors: logits [B, A, K], codes [B, A, 7], directions [B, A, 2] (logits)."""

    logits: Tensor
    codes: Tensor
    directions: Tensor


class AnchorHead(nn.Module):
    """Three 1x1 convolutions on the neck.

    Args:
        in_channels: of the neck.
        classes: all in one group, with names that `SIZES` knows.
        grid: of the neck's map.
        threshold: least score of a detection.
        overlap: intersection over union of the rectangles around two detections, above which the less sure one goes.
        max_boxes: detections of a sample.

    Raises:
        InputError: a class of unknown size.
    """

    anchors: Tensor

    def __init__(
        self, in_channels: int, classes: ClassList, grid: BevGrid, *, threshold: float = 0.1, overlap: float = 0.5, max_boxes: int = 100
    ) -> None:
        super().__init__()
        unknown = [name for name in classes.names if name.lower() not in SIZES]
        if unknown:
            raise InputError("classes", unknown, f"{', '.join(SIZES)}: no usual size of others is known; CenterPoint needs none")
        self.in_channels, self.classes, self.grid = in_channels, classes, grid
        self.threshold, self.overlap, self.max_boxes = threshold, overlap, max_boxes
        self.kinds = 2 * len(classes)
        self.cls = nn.Conv2d(in_channels, self.kinds * len(classes), 1)
        self.reg = nn.Conv2d(in_channels, self.kinds * 7, 1)
        self.direction = nn.Conv2d(in_channels, self.kinds * 2, 1)
        nn.init.constant_(self.cls.bias, -math.log(99))  # type: ignore[arg-type]  # a probability of 0.01: hardly any anchor is an object
        self.register_buffer("anchors", self._anchors(), persistent=False)

    def _anchors(self) -> Tensor:
        """[ny * nx * R, 7], cell by cell, in a cell class by class, each lengthways and across."""
        rows = []
        for name in self.classes.names:
            dx, dy, dz = SIZES[name.lower()]
            rows += [[_BOTTOM + dz / 2, dx, dy, dz, yaw] for yaw in (0.0, math.pi / 2)]
        kinds = torch.tensor(rows)
        xy = self.grid.positions().flatten(0, 1)
        both = (xy[:, None].expand(-1, self.kinds, -1), kinds[None].expand(len(xy), -1, -1))
        return torch.cat(both, -1).flatten(0, 1)

    def forward(self, neck: Tensor) -> list[Prediction]:
        """[B, in_channels, ny, nx] -> the maps of the one group."""
        return [{"heatmap": self.cls(neck), "reg": self.reg(neck), "direction": self.direction(neck)}]

    def dense(self, predictions: Sequence[Prediction]) -> tuple[Tensor, Tensor]:
        """Logits [B, R K, ny, nx], and codes and directions [B, 9 R, ny, nx]."""
        return predictions[0]["heatmap"], torch.cat((predictions[0]["reg"], predictions[0]["direction"]), 1)

    def flat(self, logits: Tensor, codes: Tensor) -> FlatAnchors:
        """What `dense` gives, anchor by anchor."""
        reg, direction = codes.split((7 * self.kinds, 2 * self.kinds), 1)
        parts = (maps.permute(0, 2, 3, 1).unflatten(-1, (self.kinds, -1)).flatten(1, 3).float() for maps in (logits, reg, direction))
        return FlatAnchors(*parts)

    def boxes(self, codes: Tensor, directions: Tensor) -> Tensor:
        """Codes [..., A, 7] and directions [..., A, 2] -> boxes [..., A, 7]."""
        anchors = self.anchors
        centre = anchors[:, :3] + codes[..., :3] * _reach(anchors)
        yaw = codes[..., 6] + anchors[:, 6] - _TURN
        yaw = yaw - (yaw / math.pi).floor() * math.pi + _TURN + math.pi * directions.argmax(-1)
        return torch.cat((centre, anchors[:, 3:6] * codes[..., 3:6].exp(), yaw[..., None]), -1)

    def counterpart(self, index: Tensor, other: AnchorHead) -> Tensor:
        """The anchors of another head of the same classes, of the same kind and at the nearest cell: int64 [n] of int64 [n]."""
        cell = other.grid.to_cells(self.anchors[index, :2]).floor().long()
        column, row = cell[:, 0].clamp(0, other.grid.nx - 1), cell[:, 1].clamp(0, other.grid.ny - 1)
        return (row * other.grid.nx + column) * self.kinds + index % self.kinds

    def losses(
        self, predictions: Sequence[Prediction], boxes: Sequence[Tensor], labels: Sequence[Tensor], *, velocity_weight: float = 0.0
    ) -> dict[str, Tensor]:
        """``heatmap`` (focal, alpha 0.25 and gamma 2), ``box`` (2 x smooth L1 of the codes, the yaw's by its sine) and ``direction``
        (0.2 x cross-entropy), each summed over the batch and divided by the anchors that stand for an object.

        Args:
            predictions: of `forward`.
            boxes: per sample [M, 7+].
            labels: per sample int64 [M].
            velocity_weight: nothing here; anchors know no velocity.
        """
        said = self.flat(*self.dense(predictions))
        focal, box, way = [], [], []
        counts = []
        for sample, (truth, label) in enumerate(zip(boxes, labels, strict=True)):
            assigned = self.assigned(truth, label)
            chosen = (assigned >= 0).nonzero().squeeze(1)
            mine, anchors = truth[assigned[chosen], :7], self.anchors[chosen]
            wanted = torch.zeros_like(said.logits[sample])
            wanted[chosen, label[assigned[chosen]]] = 1
            entries = sigmoid_focal_loss(said.logits[sample], wanted, alpha=0.25, gamma=2.0)
            focal.append((entries * (assigned > -2)[:, None]).sum())
            away = said.codes[sample, chosen] - residuals(mine, anchors)
            away = torch.cat((away[:, :6], away[:, 6:].sin()), 1)
            box.append(functional.smooth_l1_loss(away, torch.zeros_like(away), beta=_BETA, reduction="sum"))
            facing = ((mine[:, 6] - _TURN) % (2 * math.pi) / math.pi).long().clamp(0, 1)
            way.append(functional.cross_entropy(said.directions[sample, chosen], facing, reduction="sum"))
            counts.append(assigned.new_tensor(len(chosen)))
        count = averaged(torch.stack(counts).sum().float()).clamp_min(1)
        every = {"heatmap": (focal, 1.0), "box": (box, 2.0), "direction": (way, 0.2)}
        return {name: weight * torch.stack(parts).sum() / count for name, (parts, weight) in every.items()}

    def assigned(self, boxes: Tensor, labels: Tensor) -> Tensor:
        """For each anchor the object it stands for: int64 [A], its place, -1 for none and -2 for what is neither.

        Only anchors of an object's own class stand for it: those that overlap it enough, and those that overlap it most, if more than an
        anchor of nothing may. Overlaps are of the axis-parallel rectangles nearest to the boxes.
        """
        sound = (boxes[:, :7].isfinite().all(1) & (boxes[:, 3:6] > 0).all(1)).nonzero().squeeze(1)
        answer = torch.full((len(self.anchors),), -1, dtype=torch.int64, device=self.anchors.device)
        if not len(sound):
            return answer
        label = labels[sound]
        kind = torch.arange(len(self.anchors), device=label.device) % self.kinds // 2
        overlap = box_iou(_nearest(self.anchors), _nearest(boxes[sound].to(self.anchors)))  # [A, M]
        overlap = torch.where(kind[:, None] == label, overlap, 0.0)
        limits = overlap.new_tensor([_OVERLAPS.get(name.lower(), _OTHER_OVERLAPS) for name in self.classes.names])
        most, place = overlap.max(1)
        answer = torch.where(most >= limits[kind, 1], -2, answer)
        answer = torch.where(most >= limits[kind, 0], sound[place], answer)
        best = overlap.amax(0)
        forced = (overlap == best) & (best >= limits[label, 1])
        return torch.where(forced.any(1), sound[forced.int().argmax(1)], answer)

    @torch.no_grad()
    def detect(self, predictions: Sequence[Prediction]) -> list[Detections]:
        """Per sample the surest boxes after suppression whatever the class, by falling score."""
        said = self.flat(*self.dense(predictions))
        scores, labels = said.logits.sigmoid().max(-1)
        answers = []
        for boxes, score, label in zip(self.boxes(said.codes, said.directions), scores, labels, strict=True):
            able = ((score > self.threshold) & boxes.isfinite().all(1)).nonzero().squeeze(1)
            kept = able[nms(enclosing_rectangles(boxes[able]), score[able], self.overlap)[: self.max_boxes]]
            answers.append(Detections(boxes[kept], score[kept], label[kept]))
        return answers


def residuals(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Codes [n, 7] that turn anchors into boxes [n, 7]: shifts in diagonals and heights, logarithms of sizes, the difference of yaws."""
    centre = (boxes[:, :3] - anchors[:, :3]) / _reach(anchors)
    return torch.cat((centre, (boxes[:, 3:6] / anchors[:, 3:6]).log(), boxes[:, 6:7] - anchors[:, 6:7]), 1)


def _reach(anchors: Tensor) -> Tensor:
    diagonal = anchors[:, 3:5].norm(dim=1, keepdim=True)
    return torch.cat((diagonal, diagonal, anchors[:, 5:6]), 1)


def _nearest(boxes: Tensor) -> Tensor:
    """The axis-parallel rectangle of the same size nearest to each box [n, 7+]: [n, 4]."""
    across = ((boxes[:, 6] / (math.pi / 2)).round() % 2 != 0)[:, None]
    half = torch.where(across, boxes[:, [4, 3]], boxes[:, 3:5]) / 2
    return torch.cat((boxes[:, :2] - half, boxes[:, :2] + half), 1)
