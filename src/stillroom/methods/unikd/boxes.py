"""Boxes that position queries ask about, and which object each query answers for.

Boxes are (centre x, centre y, width, height), relative to the image without its padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from stillroom.engine.loading import uniforms
from stillroom.losses.precision import at_least_float32
from stillroom.tasks.detection.boxes import paired_iou
from stillroom.tasks.detection.outputs import Objects
from stillroom.tasks.detection.queries import relative_boxes

_ROUNDS, _TRIES = 4, 5  # the ranges of displaced boxes are halved from round to round
_LEAST = 1.0  # pixels of an object's sides
_TINY = 1e-12  # areas of relative boxes of a few pixels are 1e-6
_SHIFT, _SMALLEST, _LARGEST = 0.4, 0.02, 0.8


def trainable(objects: Objects, image_sizes: Tensor) -> Objects:
    """Objects at least one pixel wide and high, their boxes relative to their image."""
    kept = [((boxes[:, 2:] - boxes[:, :2]) >= _LEAST).all(1) for boxes in objects[0]]
    boxes, labels = ([part[keep] for part, keep in zip(each, kept, strict=True)] for each in objects)
    return relative_boxes(boxes, image_sizes), labels


def box_roles(
    boxes_BM4: Tensor, objects_BG4: Tensor, present_BG: Tensor | None = None, *, alpha: float = 0.6, beta: float = 0.4
) -> tuple[Tensor, Tensor]:
    """What boxes stand for: the object they overlap most, with an IoU above alpha; background below beta; between, nothing.

    Args:
        boxes_BM4, objects_BG4: (x1, y1, x2, y2); G may be 0.
        present_BG: bool, which of the objects there are; by default all.
        alpha, beta: IoU.

    Returns:
        int64 [B, M], the object's index, -1 for background, -2 for neither; and the largest IoU [B, M].
    """
    shape = *boxes_BM4.shape[:2], objects_BG4.shape[1]
    if not shape[2]:
        return boxes_BM4.new_full(shape[:2], -1, dtype=torch.long), boxes_BM4.new_zeros(shape[:2])
    pairs = boxes_BM4[:, :, None].expand(*shape, 4), objects_BG4[:, None].expand(*shape, 4)
    overlap_BMG = paired_iou(*pairs, eps=_TINY)
    if present_BG is not None:
        overlap_BMG = overlap_BMG.masked_fill(~present_BG[:, None], 0)
    most_BM, object_BM = overlap_BMG.max(2)
    roles_BM = torch.where(most_BM > alpha, object_BM, torch.where(most_BM < beta, -1, -2))
    return roles_BM, most_BM


@torch.no_grad()
def sample_boxes(
    objects: Sequence[Tensor], seeds: np.ndarray, count: int, *, alpha: float = 0.6, beta: float = 0.4
) -> tuple[Tensor, Tensor]:
    """B~: boxes near objects, then boxes on the background, `count` of each image, and the object of each.

    Half of them (of an image with objects) are displaced by up to 0.4 of its sides and scaled by up to e^0.4, as long as they overlap
    their object by more than alpha and no other one more; objects are taken in a random cyclic order. The rest, with sides from 0.02 to
    0.8 of the image's, overlap no object by beta or more. A box has 20 tries, displaced ones in ranges that are halved after every five;
    then the object itself, or the background box that overlaps least, is taken.

    Args:
        objects: of each image [G, 4]; G may be 0.
        seeds: int [B], of each image's randomness.
        count: N.
        alpha, beta: IoU, see `box_roles`.

    Returns:
        [B, N, 4], and int64 [B, N], the object's index or -1.
    """
    batch, most, device = len(objects), max(1, *map(len, objects)), objects[0].device
    numbers_G = torch.tensor([len(part) for part in objects])
    needed = _ROUNDS * count * _TRIES * 4
    # The numbers of the order last: they are as many as the fullest image of this batch has objects.
    drawn = torch.from_numpy(uniforms(seeds, needed + most)).float()
    present_BG = torch.arange(most) < numbers_G[:, None]
    order_BG = drawn[:, needed:].masked_fill(~present_BG, 2).argsort(1)
    turn_BN = order_BG.gather(1, torch.arange(count) % numbers_G.clamp_min(1)[:, None])
    near_BN = (torch.arange(count) < count // 2) & (numbers_G > 0)[:, None]
    drawn, present_BG, turn_BN, near_BN = (part.to(device, non_blocking=True) for part in (drawn, present_BG, turn_BN, near_BN))
    objects_BG4 = torch.stack([torch.nn.functional.pad(part, (0, 0, 0, most - len(part))) for part in objects])
    corners_BG4 = _corners(objects_BG4)
    own_BN4 = objects_BG4.gather(1, turn_BN[..., None].expand(-1, -1, 4))
    found_BN4, least_BN, done_BN = own_BN4, torch.full_like(own_BN4[..., 0], torch.inf), torch.zeros_like(near_BN)
    in_order_T = torch.arange(_TRIES, 0, -1, device=device)
    for round_, part in enumerate(drawn[:, :needed].reshape(batch, _ROUNDS, count, _TRIES, 4).unbind(1)):
        displaced = _displaced(own_BN4[:, :, None], part, _SHIFT / 2**round_)
        tried_BNT4 = torch.where(near_BN[..., None, None], displaced, _anywhere(part))
        roles, overlap = box_roles(_corners(tried_BNT4).flatten(1, 2), corners_BG4, present_BG, alpha=alpha, beta=beta)
        roles_BNT, overlap_BNT = roles.view(batch, count, _TRIES), overlap.view(batch, count, _TRIES)
        right_BNT = roles_BNT == torch.where(near_BN, turn_BN, -1)[..., None]
        any_BN = right_BNT.any(2)
        best_BN = torch.where(any_BN, (right_BNT * in_order_T).argmax(2), overlap_BNT.argmin(2))
        overlap_BN = overlap_BNT.gather(2, best_BN[..., None])[..., 0]
        taken_BN = ~done_BN & (any_BN | (~near_BN & (overlap_BN < least_BN)))
        chosen_BN4 = tried_BNT4.gather(2, best_BN[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
        found_BN4 = torch.where(taken_BN[..., None], chosen_BN4, found_BN4)
        least_BN = torch.where(taken_BN, overlap_BN, least_BN)
        done_BN = done_BN | any_BN
    return found_BN4, torch.where(near_BN, turn_BN, -1)


def _displaced(boxes: Tensor, drawn: Tensor, most: float) -> Tensor:
    """Boxes shifted by up to `most` of their sides and scaled by up to e^most, by uniform numbers in [0, 1)."""
    change = (2 * drawn - 1) * most
    return torch.cat((boxes[..., :2] + change[..., :2] * boxes[..., 2:], boxes[..., 2:] * change[..., 2:].exp()), -1)


def _anywhere(drawn: Tensor) -> Tensor:
    """Boxes anywhere in the image and clipped to it, the logarithms of their sides even."""
    sides = _SMALLEST * (_LARGEST / _SMALLEST) ** drawn[..., 2:]
    return box_convert(_corners(torch.cat((drawn[..., :2], sides), -1)).clamp(0, 1), "xyxy", "cxcywh")


@torch.no_grad()
def match_roles(logits_NK: Tensor, boxes_N4: Tensor, labels_G: Tensor, objects_G4: Tensor) -> Tensor:
    """Which object each query answers for, by bipartite matching: int64 [N], -1 for none; of more objects than queries N are matched.

    Costs: 2 x focal cost of the class (alpha 0.25, gamma 2) + 5 x L1 + 2 x -GIoU.

    Args:
        logits_NK, boxes_N4: of the queries of one image.
        labels_G, objects_G4: its objects.

    Source: Zhu et al. 2021 (Deformable DETR), as released.
    """
    from scipy.optimize import linear_sum_assignment

    roles_N = torch.full((len(boxes_N4),), -1, device=boxes_N4.device)
    if not len(labels_G):
        return roles_N
    p_NK, boxes_N4, objects_G4 = (at_least_float32(part) for part in (logits_NK.sigmoid(), boxes_N4, objects_G4))
    missed_NK, wrong_NK = -(p_NK + 1e-8).log() * 0.25 * (1 - p_NK) ** 2, -(1 - p_NK + 1e-8).log() * 0.75 * p_NK**2
    shape = len(boxes_N4), len(objects_G4), 4
    giou_NG = paired_iou(_corners(boxes_N4)[:, None].expand(shape), _corners(objects_G4)[None].expand(shape), "giou", _TINY)
    cost_NG = 2 * (missed_NK - wrong_NK)[:, labels_G] + 5 * torch.cdist(boxes_N4, objects_G4, p=1) - 2 * giou_NG
    # Numbers that are not finite shall show in the loss, where training says what happened, and not here.
    rows, columns = linear_sum_assignment(cost_NG.nan_to_num(1e6).cpu().numpy())
    roles_N[torch.from_numpy(rows).to(roles_N.device)] = torch.from_numpy(columns).to(roles_N.device)
    return roles_N


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")
