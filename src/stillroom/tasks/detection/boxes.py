"""Boxes: overlaps of pairs, and the ways in which a detector writes a box down.

Boxes are (x1, y1, x2, y2), absolute or in units of a stride; pairs are compared row by row. torchvision.ops compares every box with every
other.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from stillroom.errors import InputError, one_of
from stillroom.losses.precision import at_least_float32, in_one_type

IoUKind = Literal["iou", "giou", "diou", "ciou"]


def paired_iou(a_N4: Tensor, b_N4: Tensor, kind: IoUKind = "iou", eps: float = 1e-6) -> Tensor:
    """Overlap of each box with the one in the same row, [N], float32 at least.

    ``giou`` subtracts the share of the enclosing box that neither covers; ``diou`` the squared distance of the centres over the enclosing
    box's squared diagonal; ``ciou`` that and the disagreement of the aspect ratios.

    Args:
        a_N4, b_N4: boxes; gradients reach both.
        kind: see above.
        eps: smallest divisor (area of the union, of the enclosing box, its diagonal), so that degenerate boxes stay finite.

    Raises:
        InputError: shapes that differ or are not [N, 4]; an unknown kind.

    Source: Rezatofighi et al. 2019 (GIoU), Zheng et al. 2020 (DIoU, CIoU).
    """
    if a_N4.shape != b_N4.shape or a_N4.shape[-1:] != (4,):
        raise InputError("b_N4", f"boxes of shape {tuple(b_N4.shape)}", f"[N, 4], as a_N4 {tuple(a_N4.shape)}")
    one_of("kind", kind, get_args(IoUKind))
    a, b = in_one_type(a_N4, b_N4)
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp_min(0)
    overlap = inner.prod(-1)
    union = (size_a.prod(-1) + size_b.prod(-1) - overlap).clamp_min(eps)
    iou = overlap / union
    if kind == "iou":
        return iou
    if kind == "giou":
        enclosing = outer.prod(-1).clamp_min(eps)
        return iou - (enclosing - union) / enclosing
    apart = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).square().sum(-1)
    diou = iou - apart / outer.square().sum(-1).clamp_min(eps)
    if kind == "diou":
        return diou
    angle_a, angle_b = (torch.atan2(size[..., 0], size[..., 1].clamp_min(eps)) for size in (size_a, size_b))
    aspect = (4 / torch.pi**2) * (angle_a - angle_b).square()
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect).clamp_min(eps)
    return diou - weight * aspect


def centres(boxes: Tensor) -> Tensor:
    """[..., 4] -> [..., 2]."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def boxes_from_distances(points_N2: Tensor, distances_N4: Tensor) -> Tensor:
    """Boxes [N, 4] from each point's distances to the left, top, right and bottom side."""
    return torch.cat((points_N2 - distances_N4[..., :2], points_N2 + distances_N4[..., 2:]), -1)


def distances_to_boxes(points_N2: Tensor, boxes_N4: Tensor, most: float | None = None) -> Tensor:
    """Distances [N, 4] from each point to its box's left, top, right and bottom side; clamped to [0, most] where `most` is given."""
    distances = torch.cat((points_N2 - boxes_N4[..., :2], boxes_N4[..., 2:] - points_N2), -1)
    return distances if most is None else distances.clamp(0, most)


def expected_distances(bins: Tensor) -> Tensor:
    """The integral of a distribution over distances: bin logits [N, 4 * (n + 1)] -> [N, 4], in units of a bin; float32 at least.

    Source: Li et al. 2020 (Generalized Focal Loss), eq. 4: sum over k of k * softmax(bins)_k.
    """
    shares = at_least_float32(bins).reshape(*bins.shape[:-1], 4, -1).softmax(-1)
    # A sum and not a matrix product, which autocast would compute in reduced precision.
    return (shares * torch.arange(shares.shape[-1], dtype=shares.dtype, device=shares.device)).sum(-1)
