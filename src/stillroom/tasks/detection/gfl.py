"""GFL: a dense detector that scores the quality of its boxes and tells their sides by distributions (Li et al. 2020).

Boxes are decoded from the centre of one anchor for each cell: a square of side 8 strides (or another), centred at (column, row) * stride,
which is used for the assignment (ATSS) alone.

    L = QFL / N_pos + 2 * sum v (1 - GIoU) / sum v + 0.25 * sum v DFL / (4 * sum v)        v = max_c sigmoid(z_c), without gradient
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stillroom.engine.distributed import averaged
from stillroom.losses.detection import distribution_focal_loss, quality_focal_loss
from stillroom.tasks.detection.atss import atss, valuable_region
from stillroom.tasks.detection.backbones import Pyramid, strides_of
from stillroom.tasks.detection.boxes import boxes_from_distances, centres, distances_to_boxes, expected_distances, paired_iou
from stillroom.tasks.detection.dense import Assigner, DenseOutputs, DenseTargets, ImageTargets, averaged_count, on_image
from stillroom.tasks.detection.detector import DenseDetector
from stillroom.tasks.detection.outputs import Objects


class Scale(nn.Module):
    """A learnable factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """x times the factor."""
        return x * self.factor


class GFLHead(nn.Module):
    """Two towers over every level of the pyramid: class logits and, for each of the four sides, logits over n + 1 distances.

    Args:
        channels: D of the pyramid's maps.
        num_classes: C.
        levels: how many; each has its own factor on the distances.
        reg_max: n; the largest distance in strides.
        convs: 3x3 convolutions of a tower.
        groups: of the towers' GroupNorm.
    """

    def __init__(self, channels: int, num_classes: int, levels: int, *, reg_max: int = 16, convs: int = 4, groups: int = 32) -> None:
        super().__init__()
        self.num_classes, self.reg_max = num_classes, reg_max
        self.cls_tower, self.reg_tower = (_tower(channels, convs, groups) for _ in range(2))
        self.gfl_cls = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.gfl_reg = nn.Conv2d(channels, 4 * (reg_max + 1), 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in range(levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.gfl_cls.bias, -math.log((1 - 0.01) / 0.01))  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps [B, D, h, w] -> class logits [B, C, h, w] and bin logits [B, 4 (n + 1), h, w], each per level."""
        logits = [self.gfl_cls(self.cls_tower(feature)) for feature in features]
        bins = [scale(self.gfl_reg(self.reg_tower(feature))) for feature, scale in zip(features, self.scales, strict=True)]
        return logits, bins


def _tower(channels: int, convs: int, groups: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(groups, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def square_anchors(height: int, width: int, stride: int, side: float, device: torch.device | None = None) -> Tensor:
    """One square for each cell, row by row: [h * w, 4], centred at (column, row) * stride."""
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device), torch.arange(width, dtype=torch.float32, device=device), indexing="ij"
    )
    centres = torch.stack((columns, rows), -1).reshape(-1, 2) * stride
    return torch.cat((centres - side / 2, centres + side / 2), -1)


def gfl_outputs(
    logits: Sequence[Tensor],
    bins: Sequence[Tensor],
    strides: Sequence[int],
    image_sizes: Tensor,
    *,
    anchor_scale: float = 8,
    features: Sequence[Tensor] = (),
) -> DenseOutputs:
    """A head's maps as the record that distillation reads, boxes decoded.

    Args:
        logits, bins: what `GFLHead` answers.
        strides: of the levels.
        image_sizes: int64 [B, 2], height and width before padding.
        anchor_scale: the anchor's side, in strides.
        features: the pyramid's maps.
    """
    rows = [_rows(level) for level in logits]
    sides = [_rows(level) for level in bins]
    anchors = [
        square_anchors(level.shape[-2], level.shape[-1], stride, anchor_scale * stride, level.device)
        for level, stride in zip(logits, strides, strict=True)
    ]
    boxes = [
        boxes_from_distances(centres(anchor), expected_distances(side) * stride)
        for anchor, side, stride in zip(anchors, sides, strides, strict=True)
    ]
    return DenseOutputs(
        features=tuple(features),
        strides=tuple(strides),
        image_sizes=image_sizes,
        logits=tuple(rows),
        boxes=tuple(boxes),
        anchors=tuple(anchors),
        valid=on_image(anchors, image_sizes),
        bins=tuple(sides),
    )


def assign_atss(topk: int = 9, *, regions: bool = False) -> Assigner:
    """An assigner for `dense_targets`: ATSS, with LD's regions if they are asked for."""

    def assign(anchors_A4: Tensor, level_sizes: Sequence[int], boxes_G4: Tensor) -> ImageTargets:
        found = atss(anchors_A4, level_sizes, boxes_G4, topk)
        return ImageTargets(found.matched, valuable_region(anchors_A4, boxes_G4, found) if regions else None)

    return assign


@dataclass(frozen=True)
class GFLWeights:
    """Weights of GFL's terms, and two habits of one release.

    Args:
        qfl, giou, dfl: weights.
        quality_weight_offset: added to v (2e-4 in BCKD's release).
        clamp_normaliser: divide the box losses by max(sum of v, 1); else by the sum + 1e-6 and QFL by N_pos + 1.19e-7, as BCKD's release.
    """

    qfl: float = 1.0
    giou: float = 2.0
    dfl: float = 0.25
    quality_weight_offset: float = 0.0
    clamp_normaliser: bool = True


def gfl_losses(outputs: DenseOutputs, targets: DenseTargets, weights: GFLWeights | None = None) -> dict[str, list[Tensor]]:
    """``qfl``, ``giou`` and ``dfl``, a scalar for each level.

    A level without positives has box losses of 0 with a (zero) gradient.
    """
    weights = weights or GFLWeights()
    num_classes, count = outputs.logits[0].shape[-1], len(outputs.logits)
    tiny = 0.0 if weights.clamp_normaliser else torch.finfo(torch.float32).eps
    found: dict[str, list[Tensor]] = {"qfl": [], "giou": [], "dfl": []}
    shares = []
    for level in range(count):
        stride = outputs.strides[level]
        logits_NC, labels_N = outputs.logits[level].flatten(0, 1), targets.labels[level].flatten()
        boxes_N4, bins = outputs.boxes[level].flatten(0, 1) / stride, outputs.bins[level].flatten(0, 1)
        positive_N = labels_N < num_classes
        which = positive_N.nonzero().flatten()
        goals_P4 = targets.boxes[level].flatten(0, 1)[which] / stride
        quality_N = logits_NC.new_zeros(len(labels_N), dtype=torch.float32)
        quality_N[which] = paired_iou(boxes_N4[which].detach(), goals_P4)
        qfl_N = quality_focal_loss(logits_NC, labels_N, quality_N) * targets.weights[level].flatten()
        found["qfl"].append(weights.qfl * qfl_N.sum() / (targets.positives + tiny))
        share_P = logits_NC[which].detach().float().sigmoid().amax(1) if len(which) else logits_NC.new_zeros(0)
        share_P = share_P + weights.quality_weight_offset
        points_N2 = centres(outputs.anchors[level]).repeat(len(outputs.logits[level]), 1) / stride
        reg_max = bins.shape[-1] // 4 - 1
        distances_P4 = distances_to_boxes(points_N2[which], goals_P4, reg_max - 0.1)
        dfl_P = distribution_focal_loss(bins[which].reshape(-1, reg_max + 1), distances_P4.flatten()).view(-1, 4).sum(1) / 4
        nothing = bins.sum() * 0  # keeps a level without positives in the graph
        found["giou"].append(weights.giou * (share_P * (1 - paired_iou(boxes_N4[which], goals_P4, "giou"))).sum() + nothing)
        found["dfl"].append(weights.dfl * (share_P * dfl_P).sum() + nothing)
        shares.append(share_P.sum())
    total = torch.stack(shares).sum()
    divisor = averaged_count(total) if weights.clamp_normaliser else averaged(total) + 1e-6
    return {"qfl": found["qfl"], "giou": [t / divisor for t in found["giou"]], "dfl": [t / divisor for t in found["dfl"]]}


class GFL(DenseDetector):
    """A backbone, a pyramid and a GFL head.

    Args:
        backbone: images -> a list of maps; has `channels` and `strides`.
        num_classes: C.
        width: D of the pyramid and the towers.
        extra: levels of the pyramid beyond the backbone's.
        reg_max, convs, groups: see `GFLHead`.
        anchor_scale: side of an anchor, in strides.
        topk: candidates of ATSS on each level.
        weights: of the losses.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        width: int = 256,
        extra: int = 2,
        reg_max: int = 16,
        convs: int = 4,
        groups: int = 32,
        anchor_scale: float = 8,
        topk: int = 9,
        weights: GFLWeights | None = None,
    ) -> None:
        super().__init__()
        channels, strides = tuple(backbone.channels), tuple(backbone.strides)  # type: ignore[arg-type]
        self.num_classes, self.strides = num_classes, strides_of(strides, extra)
        self.anchor_scale, self.topk, self.weights = anchor_scale, topk, weights or GFLWeights()
        self.backbone, self.pyramid = backbone, Pyramid(channels, width, extra)
        self.head = GFLHead(width, num_classes, len(self.strides), reg_max=reg_max, convs=convs, groups=groups)

    def feature_maps(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """The pyramid's."""
        return tuple(self.pyramid(self.backbone(images)))

    def raw(self, images: Tensor, image_sizes: Tensor, objects: Objects | None = None) -> DenseOutputs:
        """See `DenseDetector`; with `bins`."""
        features = self.pyramid(self.backbone(images))
        logits, bins = self.head(features)
        return gfl_outputs(logits, bins, self.strides, image_sizes, anchor_scale=self.anchor_scale, features=features)

    def assigner(self, *, regions: bool = False) -> Assigner:
        """ATSS."""
        return assign_atss(self.topk, regions=regions)

    def task_losses(self, outputs: DenseOutputs, targets: DenseTargets) -> dict[str, Tensor]:
        """``qfl``, ``giou`` and ``dfl``, each summed over levels."""
        return {name: torch.stack(levels).sum() for name, levels in gfl_losses(outputs, targets, self.weights).items()}


def _rows(level: Tensor) -> Tensor:
    """[B, K, h, w] -> [B, h * w, K]."""
    return level.flatten(2).transpose(1, 2)
