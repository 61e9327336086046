"""torchvision's dense detectors behind our record: their own networks, anchors, matching and losses, re-run piece by piece.

Their `transform` is left out: images come normalised and padded. Unlike GFL they let positions on the padding take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

from stillroom.errors import InputError
from stillroom.tasks.detection.boxes import centres
from stillroom.tasks.detection.dense import Assigner, DenseOutputs, DenseTargets, ImageTargets, averaged_count
from stillroom.tasks.detection.detector import DenseDetector, anchors_of, maps_of, strides_of_maps
from stillroom.tasks.detection.gfl import assign_atss
from stillroom.tasks.detection.outputs import Objects


class _Torchvision(DenseDetector):
    """What both have in common."""

    def __init__(self, model: RetinaNet | FCOS) -> None:
        super().__init__()
        self.model: Any = model
        self.num_classes = int(model.head.classification_head.num_classes)
        self.strides = tuple(strides_of_maps(self.model.backbone).values())

    def feature_maps(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """The backbone's."""
        return tuple(maps_of(self.model.backbone, images).values())

    def raw(self, images: Tensor, image_sizes: Tensor, objects: Objects | None = None) -> DenseOutputs:
        """See `DenseDetector`; with `head`, and `centerness` where there is one."""
        features = list(maps_of(self.model.backbone, images).values())
        head: dict[str, Tensor] = self.model.head(features)
        anchors_A4 = anchors_of(self.model.anchor_generator, images, features)
        per_cell = anchors_A4.shape[0] // sum(f.shape[-2] * f.shape[-1] for f in features)
        sizes = [f.shape[-2] * f.shape[-1] * per_cell for f in features]
        logits, deltas = head["cls_logits"].split(sizes, 1), head["bbox_regression"].split(sizes, 1)
        anchors = anchors_A4.split(sizes)
        boxes = [self.decode(delta.float(), anchor) for delta, anchor in zip(deltas, anchors, strict=True)]
        centerness = head["bbox_ctrness"].squeeze(-1).split(sizes, 1) if "bbox_ctrness" in head else ()
        valid = [torch.ones(level.shape[:2], dtype=torch.bool, device=level.device) for level in logits]
        return DenseOutputs(
            features=tuple(features),
            strides=self.strides,
            image_sizes=image_sizes,
            logits=tuple(logits),
            boxes=tuple(boxes),
            anchors=tuple(anchors),
            valid=tuple(valid),
            centerness=tuple(centerness),
            head=head,
        )

    def decode(self, deltas_BN4: Tensor, anchors_N4: Tensor) -> Tensor:
        """A level's boxes [B, N, 4]."""
        batch = deltas_BN4.shape[0]  # not len(), which torch.export takes for a constant
        every = anchors_N4.repeat(batch, 1)
        decoded: Tensor = self.model.box_coder.decode_single(deltas_BN4.reshape(-1, 4), every)
        return decoded.view(batch, -1, 4)

    def task_losses(self, outputs: DenseOutputs, targets: DenseTargets) -> dict[str, Tensor]:
        """The wrapped model's own."""
        objects = [{"boxes": boxes, "labels": labels} for boxes, labels in targets.objects]
        anchors = [torch.cat(outputs.anchors)] * len(objects)
        head = {name: answer.float() for name, answer in outputs.head.items()}  # boxes are decoded in it once more
        losses: dict[str, Tensor] = self.model.head.compute_loss(objects, head, anchors, list(targets.matched))
        return losses


class RetinaNetDetector(_Torchvision):
    """torchvision's RetinaNet; anchors between its two thresholds are ignored."""

    def assigner(self, *, regions: bool = False) -> Assigner:
        """The model's own matcher."""

        def assign(anchors_A4: Tensor, level_sizes: Sequence[int], boxes_G4: Tensor) -> ImageTargets:
            if not len(boxes_G4):
                return ImageTargets(anchors_A4.new_full((len(anchors_A4),), -1, dtype=torch.long))
            return ImageTargets(self.model.proposal_matcher(box_iou(boxes_G4, anchors_A4)))

        return assign


class ATSSDetector(RetinaNetDetector):
    """RetinaNet with one square anchor for each cell, which ATSS gives its objects; head and losses are RetinaNet's (no centre-ness).

    Args:
        model: with such anchors, see `one_square`.
        topk: ATSS's candidates on each level.

    Raises:
        InputError: the model has several anchors for each cell.
    """

    def __init__(self, model: RetinaNet, topk: int = 9) -> None:
        super().__init__(model)
        self.topk = topk
        if set(model.anchor_generator.num_anchors_per_location()) != {1}:
            raise InputError(
                "model", f"{model.anchor_generator.num_anchors_per_location()} anchors for each cell", "one on each level: ATSS"
            )

    def assigner(self, *, regions: bool = False) -> Assigner:
        """ATSS."""
        return assign_atss(self.topk, regions=regions)


def one_square(strides: Sequence[int], scale: int = 8) -> AnchorGenerator:
    """One square anchor for each cell, of `scale` strides; ATSS's are of 8."""
    return AnchorGenerator(tuple((scale * stride,) for stride in strides), ((1.0,),) * len(strides))


class FCOSDetector(_Torchvision):
    """torchvision's FCOS; its anchors are squares as large as their stride, whose centres are the points."""

    def decode(self, deltas_BN4: Tensor, anchors_N4: Tensor) -> Tensor:
        """A level's boxes [B, N, 4] from distances in strides."""
        decoded: Tensor = self.model.box_coder.decode(deltas_BN4, anchors_N4.expand(deltas_BN4.shape[0], -1, -1))
        return decoded

    def task_losses(self, outputs: DenseOutputs, targets: DenseTargets) -> dict[str, Tensor]:
        """The wrapped model's own, divided by the positives of all processes where the model counts those of one."""
        positives = (targets.matched >= 0).sum().float()
        share = positives.clamp_min(1) / averaged_count(positives)
        return {name: share * loss for name, loss in super().task_losses(outputs, targets).items()}

    def assigner(self, *, regions: bool = False) -> Assigner:
        """`fcos_match`."""

        def assign(anchors_A4: Tensor, level_sizes: Sequence[int], boxes_G4: Tensor) -> ImageTargets:
            return ImageTargets(fcos_match(anchors_A4, level_sizes, boxes_G4, self.model.center_sampling_radius))

        return assign


def fcos_match(anchors_A4: Tensor, level_sizes: Sequence[int], boxes_G4: Tensor, radius: float = 1.5) -> Tensor:
    """FCOS's rule: which object each point answers for, int64 [A]; -1 for background.

    A point answers for an object when it lies inside it, nearer than `radius` strides to its centre, and the farthest side is between 4
    and 8 strides away (no lower bound on the finest level, no upper one on the coarsest); for the smallest of several.

    Args:
        anchors_A4: squares as large as the stride, around the points; all levels, one after the other.
        level_sizes: points of each level.
        boxes_G4: the objects; G may be 0.
        radius: in strides.

    Source: Tian et al. 2019 (FCOS), section 3.2, with the centre sampling of its authors' later code.
    """
    count = len(anchors_A4)
    if not len(boxes_G4):
        return anchors_A4.new_full((count,), -1, dtype=torch.long)
    points_A12 = centres(anchors_A4)[:, None]
    stride_A1 = (anchors_A4[:, 2] - anchors_A4[:, 0])[:, None]
    off_centre_AG = (points_A12 - centres(boxes_G4)).abs().amax(-1)
    sides_AG4 = torch.cat((points_A12 - boxes_G4[:, :2], boxes_G4[:, 2:] - points_A12), -1)
    farthest_AG = sides_AG4.amax(-1)
    lowest_A1, highest_A1 = 4 * stride_A1, 8 * stride_A1
    lowest_A1[: level_sizes[0]] = 0
    highest_A1[count - level_sizes[-1] :] = torch.inf
    fits_AG = (off_centre_AG < radius * stride_A1) & (sides_AG4.amin(-1) > 0) & (farthest_AG > lowest_A1) & (farthest_AG < highest_A1)
    areas_AG = (boxes_G4[:, 2:] - boxes_G4[:, :2]).prod(-1).expand(count, -1).masked_fill(~fits_AG, torch.inf)
    smallest_A, matched_A = areas_AG.min(1)
    return torch.where(smallest_A.isinf(), -1, matched_A)
