"""torchvision's Faster R-CNN behind our record: its own networks, anchors, matching and sampling, re-run piece by piece.

Its `transform` is left out: images come normalised and padded. Its background is class 0, ours is C; the conversion is here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN

from stillroom.tasks.detection.dense import averaged_count
from stillroom.tasks.detection.detector import Detector, anchors_of, maps_of, strides_of_maps
from stillroom.tasks.detection.metrics import Detections
from stillroom.tasks.detection.outputs import Objects, Outputs

_SMALLEST = 1e-2  # pixels of a side: torchvision leaves smaller boxes out
_BETA = 1 / 9  # where torchvision's smooth L1 losses turn linear


@dataclass(frozen=True, kw_only=True)
class TwoStageOutputs(Outputs):
    """What the first stage answers: how likely each anchor is an object, and the boxes that the second stage will look at.

    Attributes:
        objectness: per level float [B, N_l], before the sigmoid.
        deltas: per level [B, N_l, 4], from the anchor to the object, in the first stage's code.
        anchors: per level [N_l, 4], absolute.
        proposals: of each image [P, 4], absolute, within the image, likeliest first; without gradient.
    """

    objectness: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    anchors: tuple[Tensor, ...]
    proposals: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Regions:
    """What the second stage answers about R boxes of B images.

    Attributes:
        proposals: of each image, the boxes it was asked about, [R_b, 4].
        features: [R, D], the box head's.
        logits: [R, C + 1], before the softmax; C is background.
        deltas: [R, C, 4], from the proposal to the object if it is of that class, in the second stage's code.
        boxes: [R, C, 4], the same decoded, absolute.
    """

    proposals: tuple[Tensor, ...]
    features: Tensor
    logits: Tensor
    deltas: Tensor
    boxes: Tensor

    def of_images(self, rows: Tensor) -> tuple[Tensor, ...]:
        """One of the attributes above, split into images."""
        return rows.split([len(part) for part in self.proposals])


@dataclass(frozen=True, kw_only=True)
class TwoStageTargets:
    """What a sample of the anchors and of the proposals is to answer.

    Attributes:
        anchors: int64 [S], which anchors were sampled, over all images; the P that stand for an object come first.
        anchor_deltas: [P, 4], theirs.
        proposals: of each image [R_b, 4], sampled from the first stage's and the objects' own boxes.
        labels: int64 [R]; C for background.
        matched: int64 [R], index of the image's object; 0 for background.
        deltas: [R, 4], from the proposal to its object.
    """

    anchors: Tensor
    anchor_deltas: Tensor
    proposals: tuple[Tensor, ...]
    labels: Tensor
    matched: Tensor
    deltas: Tensor


class TwoStageDetector(Detector[TwoStageOutputs, TwoStageTargets]):
    """torchvision's Faster R-CNN.

    Args:
        model: with any backbone; masks and keypoints of its subclasses are not trained.
    """

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.model: Any = model
        self.num_classes = int(model.roi_heads.box_predictor.cls_score.out_features) - 1
        maps = strides_of_maps(self.model.backbone)
        self.maps, self.strides = tuple(maps), tuple(maps.values())

    def feature_maps(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """The backbone's."""
        return tuple(maps_of(self.model.backbone, images).values())

    def raw(self, images: Tensor, image_sizes: Tensor, objects: Objects | None = None) -> TwoStageOutputs:
        """The first stage; `regions` asks the second."""
        rpn = self.model.rpn
        features = list(maps_of(self.model.backbone, images).values())
        objectness, deltas = rpn.head(features)
        sizes = [(int(height), int(width)) for height, width in image_sizes.tolist()]
        anchors_A4 = anchors_of(rpn.anchor_generator, images, features)
        per_cell = [level.shape[1] for level in objectness]
        counts = [level.shape[1:].numel() for level in objectness]
        objectness = [_rows(level, cell).squeeze(-1) for level, cell in zip(objectness, per_cell, strict=True)]
        deltas = [_rows(level, cell) for level, cell in zip(deltas, per_cell, strict=True)]
        with torch.no_grad():
            deltas_BA4 = torch.cat(deltas, 1).float()
            decoded = rpn.box_coder.decode(deltas_BA4.flatten(0, 1), [anchors_A4] * len(images)).view_as(deltas_BA4)
            proposals, _ = rpn.filter_proposals(decoded, torch.cat(objectness, 1).float(), sizes, counts)
        return TwoStageOutputs(
            features=tuple(features),
            strides=self.strides,
            image_sizes=image_sizes,
            objectness=tuple(objectness),
            deltas=tuple(deltas),
            anchors=anchors_A4.split(counts),
            proposals=tuple(proposals),
        )

    def regions(self, outputs: TwoStageOutputs, proposals: Sequence[Tensor]) -> Regions:
        """What the second stage makes of boxes, of each image [R_b, 4]: the first stage's, a sample, or any others."""
        heads = self.model.roi_heads
        maps = dict(zip(self.maps, outputs.features, strict=True))
        finest = outputs.features[0]
        # The pooler guesses the maps' strides from the sizes of the images: those with padding, which the maps cover.
        padded = [(finest.shape[-2] * self.strides[0], finest.shape[-1] * self.strides[0])] * len(proposals)
        features_RD = heads.box_head(heads.box_roi_pool(maps, list(proposals), padded))
        logits, deltas = heads.box_predictor(features_RD)
        logits, deltas = logits.float(), deltas.float()[:, 4:]  # the first four are the background's
        return Regions(
            proposals=tuple(proposals),
            features=features_RD,
            logits=torch.cat((logits[:, 1:], logits[:, :1]), 1),
            deltas=deltas.view(len(deltas), self.num_classes, 4),
            boxes=heads.box_coder.decode(deltas, list(proposals)).view(len(deltas), self.num_classes, 4),
        )

    @torch.no_grad()
    def targets(
        self, outputs: TwoStageOutputs, boxes: Sequence[Tensor], labels: Sequence[Tensor], *, rpn_boxes: Sequence[Tensor] | None = None
    ) -> TwoStageTargets:
        """A random sample of anchors and proposals and what they are to answer, by the model's own matchers and samplers.

        Args:
            outputs: of `raw`.
            boxes, labels: of each image's objects; G may be 0.
            rpn_boxes: the first stage's, where they are others.
        """
        rpn, heads = self.model.rpn, self.model.roi_heads
        wanted = [part.float() for part in (boxes if rpn_boxes is None else rpn_boxes)]
        anchors = [torch.cat(outputs.anchors)] * len(wanted)
        objects, matches = rpn.assign_targets_to_anchors(anchors, [{"boxes": part} for part in wanted])
        positive, negative = (torch.cat(part).nonzero().flatten() for part in rpn.fg_bg_sampler(objects))
        anchor_deltas = rpn.box_coder.encode_single(torch.cat(matches)[positive], torch.cat(anchors)[positive])
        given = [{"boxes": part.float(), "labels": label + 1} for part, label in zip(boxes, labels, strict=True)]
        proposals, matched, classes, deltas = heads.select_training_samples(list(outputs.proposals), given)
        return TwoStageTargets(
            anchors=torch.cat((positive, negative)),
            anchor_deltas=anchor_deltas,
            proposals=tuple(proposals),
            labels=(torch.cat(classes) - 1) % (self.num_classes + 1),
            matched=torch.cat(matched),
            deltas=torch.cat(deltas),
        )

    def rpn_losses(self, outputs: TwoStageOutputs, targets: TwoStageTargets) -> dict[str, Tensor]:
        """The first stage's: ``loss_objectness`` and ``loss_rpn_box_reg``, sums over the sample divided by its size."""
        positives, sampled = len(targets.anchor_deltas), len(targets.anchors)
        logits_S = torch.cat(outputs.objectness, 1).float().flatten()[targets.anchors]
        deltas_P4 = torch.cat(outputs.deltas, 1).float().flatten(0, 1)[targets.anchors[:positives]]
        wanted_S = (torch.arange(sampled, device=logits_S.device) < positives).float()
        count = averaged_count(logits_S.new_tensor(sampled))
        return {
            "loss_objectness": F.binary_cross_entropy_with_logits(logits_S, wanted_S, reduction="sum") / count,
            "loss_rpn_box_reg": F.smooth_l1_loss(deltas_P4, targets.anchor_deltas, beta=_BETA, reduction="sum") / count,
        }

    def region_losses(self, regions: Regions, targets: TwoStageTargets) -> dict[str, Tensor]:
        """The second stage's, of the sampled proposals: ``loss_classifier`` and ``loss_box_reg``, sums divided by the sample's size."""
        positive_P = (targets.labels < self.num_classes).nonzero().flatten()
        deltas_P4 = regions.deltas[positive_P, targets.labels[positive_P]]
        count = averaged_count(regions.logits.new_tensor(len(targets.labels)))
        return {
            "loss_classifier": F.cross_entropy(regions.logits, targets.labels, reduction="sum") / count,
            "loss_box_reg": F.smooth_l1_loss(deltas_P4, targets.deltas[positive_P], beta=_BETA, reduction="sum") / count,
        }

    def task_losses(self, outputs: TwoStageOutputs, targets: TwoStageTargets) -> dict[str, Tensor]:
        """The wrapped model's own four, under its own names."""
        return self.rpn_losses(outputs, targets) | self.region_losses(self.regions(outputs, targets.proposals), targets)

    @torch.no_grad()
    def detect(self, images: Tensor, image_sizes: Tensor) -> list[Detections]:
        """What the wrapped model detects, by its own thresholds."""
        outputs = self.raw(images, image_sizes)
        regions = self.regions(outputs, outputs.proposals)
        logits = torch.cat((regions.logits[:, -1:], regions.logits[:, :-1]), 1)
        deltas = F.pad(regions.deltas.flatten(1), (4, 0))
        sizes = [(height, width) for height, width in image_sizes.tolist()]
        found = self.model.roi_heads.postprocess_detections(logits, deltas, list(regions.proposals), sizes)
        return [Detections(boxes, scores, labels - 1) for boxes, scores, labels in zip(*found, strict=True)]

    @torch.no_grad()
    def every_answer(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """What `detect` chooses from, in tensors whose sizes no value decides: for exporters.

        The first stage's suppression leaves as many proposals as it ever does; those that it suppresses are kept with a score of 0. Two
        levels are suppressed together as if they lay beside each other, which is torchvision's own way for few boxes.

        Args:
            images: float32 [B, 3, H, W], normalised and padded.
            image_sizes: int64 [B, 2], height and width of each without its padding.

        Returns:
            Scores [B, P * C, C] and boxes [B, P * C, 4], absolute, within the image. Each proposal has C places, one for each class, whose
            box belongs to that class alone: the other scores of the place are 0.
        """
        rpn, heads = self.model.rpn, self.model.roi_heads
        features = list(maps_of(self.model.backbone, images).values())
        objectness, deltas = rpn.head(features)
        anchors_A4 = anchors_of(rpn.anchor_generator, images, features)
        per_cell = [level.shape[1] for level in objectness]
        before, after = rpn.pre_nms_top_n(), rpn.post_nms_top_n()
        limits = image_sizes.flip(1).repeat(1, 2)[:, None].to(images.dtype)  # [B, 1, 4]: width, height, width, height
        scores, boxes, start = [], [], 0
        for logits, shifts, cell in zip(objectness, deltas, per_cell, strict=True):
            logits_BN, shifts_BN4 = _rows(logits, cell).squeeze(-1).float(), _rows(shifts, cell).float()
            count = logits_BN.shape[1]
            logits_BN = F.pad(logits_BN, (0, before), value=-torch.inf)  # so that there are always enough to choose from
            top_BK, places_BK = logits_BN.topk(before, 1)
            places_BK = places_BK.clamp(max=count - 1)
            chosen_BK4 = shifts_BN4.gather(1, places_BK[..., None].expand(-1, -1, 4))
            around_K4 = anchors_A4[start : start + count][places_BK].flatten(0, 1)
            decoded = rpn.box_coder.decode_single(chosen_BK4.flatten(0, 1), around_K4).view_as(chosen_BK4)
            boxes.append(torch.minimum(decoded.clamp(min=0), limits))
            scores.append(top_BK.sigmoid())
            start = start + count
        scores_BK, boxes_BK4 = torch.cat(scores, 1), torch.cat(boxes, 1)
        sides = boxes_BK4[..., 2:] - boxes_BK4[..., :2]
        scores_BK = torch.where((sides >= rpn.min_size).all(-1) & (scores_BK > 0), scores_BK, -1.0)
        levels_K = torch.arange(len(features), device=images.device).repeat_interleave(before)
        apart_BK = torch.arange(images.shape[0], device=images.device)[:, None] * len(features) + levels_K
        shift = (apart_BK * (limits.max() + 1))[..., None]
        kept = torchvision.ops.nms((boxes_BK4 + shift).flatten(0, 1), scores_BK.flatten(), rpn.nms_thresh)
        mask = torch.zeros_like(scores_BK).flatten().index_fill(0, kept, 1.0).view_as(scores_BK)
        scores_BK = torch.where(mask > 0, scores_BK, -1.0)
        top_BP, places_BP = scores_BK.topk(min(after, before * len(features)), 1)
        proposals_BP4 = boxes_BK4.gather(1, places_BP[..., None].expand(-1, -1, 4))
        batch, many = proposals_BP4.shape[:2]
        flat = proposals_BP4.flatten(0, 1)
        logits, shifts = heads.box_predictor(heads.box_head(self._pooled(features, flat, many)))
        scores_BPC = logits.float().softmax(-1)[:, 1:].view(batch, many, self.num_classes)
        decoded = heads.box_coder.decode_single(shifts.float(), flat).view(batch, many, self.num_classes + 1, 4)[:, :, 1:]
        boxes_BPC4 = torch.minimum(decoded.clamp(min=0), limits[:, None])
        sides = boxes_BPC4[..., 2:] - boxes_BPC4[..., :2]
        shown = (sides >= _SMALLEST).all(-1) & (top_BP >= max(rpn.score_thresh, 0.0))[..., None]
        scores_BPCC = (scores_BPC * shown)[..., None] * torch.eye(self.num_classes, device=images.device)
        return scores_BPCC.flatten(1, 2), boxes_BPC4.flatten(1, 2)

    def _pooled(self, features: Sequence[Tensor], boxes_R4: Tensor, per_image: int) -> Tensor:
        """The maps in boxes of which each image has as many, [R, D, h, w]; each box from the level of its size."""
        pool: Any = self.model.roi_heads.box_roi_pool
        maps = [level for name, level in zip(self.maps, features, strict=True) if name in pool.featmap_names]
        strides = [stride for name, stride in zip(self.maps, self.strides, strict=True) if name in pool.featmap_names]
        images_R = torch.arange(features[0].shape[0], device=boxes_R4.device).repeat_interleave(per_image)
        regions_R5 = torch.cat((images_R[:, None].to(boxes_R4.dtype), boxes_R4), 1)
        options: dict[str, Any] = {"output_size": pool.output_size, "sampling_ratio": pool.sampling_ratio}
        first, last = (round(math.log2(stride)) for stride in (strides[0], strides[-1]))
        side_R = torchvision.ops.box_area(boxes_R4).sqrt()
        level_R = (pool.canonical_level + torch.log2(side_R / pool.canonical_scale + 1e-8) + 1e-6).floor().clamp(first, last) - first
        pooled = boxes_R4.new_zeros(boxes_R4.shape[0], maps[0].shape[1], *pool.output_size)
        for level, (map_BCHW, stride) in enumerate(zip(maps, strides, strict=True)):
            rows = (level_R == level).nonzero().flatten()
            pooled = pooled.index_copy(0, rows, torchvision.ops.roi_align(map_BCHW, regions_R5[rows], spatial_scale=1 / stride, **options))
        return pooled

    def answers(self, outputs: TwoStageOutputs) -> dict[str, list[Tensor]]:
        """Of each image its ``proposals`` [P, 4], their ``logits`` [P, C + 1] and ``boxes`` [P, C, 4]."""
        regions = self.regions(outputs, outputs.proposals)
        return {
            "proposals": list(outputs.proposals),
            "logits": list(regions.of_images(regions.logits)),
            "boxes": list(regions.of_images(regions.boxes)),
        }


def _rows(level: Tensor, per_cell: int) -> Tensor:
    """[B, A * K, h, w] -> [B, h * w * A, K]: row, column, anchor."""
    return level.unflatten(1, (per_cell, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
