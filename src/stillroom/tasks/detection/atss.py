"""ATSS: which anchors answer for which object, by what is usual for each object (Zhang et al. 2020, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from stillroom.errors import InputError
from stillroom.tasks.detection.boxes import centres

_NONE = -1e8


class Assignment(NamedTuple):
    """What each anchor of an image answers for.

    Attributes:
        matched: int64 [A], index of the object; -1 for background.
        overlaps: float32 [A], IoU with that object; -1e8 for background, but 0 in an image without objects, as MMDetection has it.
        thresholds: float32 [G], the IoU from which an anchor answers for an object.
        iou: float32 [A, G].
    """

    matched: Tensor
    overlaps: Tensor
    thresholds: Tensor
    iou: Tensor


@torch.no_grad()
def atss(anchors_A4: Tensor, level_sizes: Sequence[int], boxes_G4: Tensor, topk: int = 9) -> Assignment:
    """Assigns the anchors of one image.

    1. of each level the `topk` anchors whose centres are nearest to an object's are its candidates; 2. the object's threshold is the mean
    plus the standard deviation of their IoUs with it; 3. a candidate above the threshold whose centre lies inside the object answers for
    it; 4. for the one of largest IoU, if for several.

    Args:
        anchors_A4: all levels, one after the other.
        level_sizes: anchors of each level; their sum is A.
        boxes_G4: the objects; G may be 0.
        topk: k, candidates of each level; all of a level that has fewer.

    Raises:
        InputError: the level sizes are not those of the anchors, or k is below 1.
    """
    if sum(level_sizes) != len(anchors_A4):
        raise InputError("level_sizes", list(level_sizes), f"counts whose sum is {len(anchors_A4)}, the number of anchors")
    if topk < 1:
        raise InputError("topk", topk, "a whole number of at least 1")
    count, objects = len(anchors_A4), len(boxes_G4)
    iou_AG = box_iou(anchors_A4, boxes_G4)
    matched_A = anchors_A4.new_full((count,), -1, dtype=torch.long)
    if not objects:
        return Assignment(matched_A, iou_AG.new_zeros(count), iou_AG.new_zeros(0), iou_AG)
    centres_A2, middles_G2 = centres(anchors_A4), centres(boxes_G4)
    distances_AG = torch.cdist(centres_A2, middles_G2, compute_mode="donot_use_mm_for_euclid_dist")
    candidates, start = [], 0
    for size in level_sizes:
        nearest = distances_AG[start : start + size].topk(min(topk, size), dim=0, largest=False).indices
        candidates.append(nearest + start)
        start += size
    candidates_KG = torch.cat(candidates)
    candidate_iou_KG = iou_AG.gather(0, candidates_KG)
    thresholds_G = candidate_iou_KG.mean(0) + candidate_iou_KG.std(0)
    near_AG = torch.zeros_like(iou_AG, dtype=torch.bool).scatter_(0, candidates_KG, candidate_iou_KG >= thresholds_G)
    inside_AG = torch.cat((centres_A2[:, None] - boxes_G4[:, :2], boxes_G4[:, 2:] - centres_A2[:, None]), -1).amin(-1) > 0.01
    best_A, which_A = iou_AG.masked_fill(~(near_AG & inside_AG), _NONE).max(1)
    positive_A = best_A > _NONE
    return Assignment(torch.where(positive_A, which_A, matched_A), best_A, thresholds_G, iou_AG)


@torch.no_grad()
def valuable_region(anchors_A4: Tensor, boxes_G4: Tensor, assignment: Assignment) -> Tensor:
    """LD's valuable localisation region: near an object, but not near enough to answer for it; float32 [A].

    An anchor is in an object's region when 0.25 * threshold <= d < threshold, where d is the part of the anchor that the object covers
    less the squared distance of the centres over the enclosing box's squared diagonal. Its weight is its IoU with that object, the
    largest if it is in several regions; 0 outside of all. (LD's release calls d a DIoU; it divides by the anchor's own area.)

    Source: Zheng et al. 2022 (Localization Distillation), section 3.3, and its release.
    """
    if not len(boxes_G4):
        return anchors_A4.new_zeros(len(anchors_A4))
    inner = (torch.minimum(anchors_A4[:, None, 2:], boxes_G4[:, 2:]) - torch.maximum(anchors_A4[:, None, :2], boxes_G4[:, :2])).clamp_min(0)
    outer = torch.maximum(anchors_A4[:, None, 2:], boxes_G4[:, 2:]) - torch.minimum(anchors_A4[:, None, :2], boxes_G4[:, :2])
    areas_A = (anchors_A4[:, 2:] - anchors_A4[:, :2]).prod(-1)
    apart_AG = (centres(anchors_A4)[:, None] - centres(boxes_G4)).square().sum(-1)
    closeness_AG = inner.prod(-1) / areas_A[:, None].clamp_min(1e-6) - apart_AG / outer.square().sum(-1).clamp_min(1e-6)
    region_AG = (closeness_AG >= 0.25 * assignment.thresholds) & (closeness_AG < assignment.thresholds)
    return torch.where(region_AG, assignment.iou, 0.0).amax(1)
