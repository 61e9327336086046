"""Boxes in three dimensions: corners, points inside, overlaps, suppression. The conventions stand in the package's caption.

Overlaps are exact, in float64 and without gradient. None of the functions loops over boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.errors import InputError

_UNIT = ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))  # corners of the unit square, counter-clockwise


def bev(boxes: Tensor) -> Tensor:
    """Boxes [..., 7+] seen from above: [..., 5] (x, y, dx, dy, yaw)."""
    return boxes[..., [0, 1, 3, 4, 6]]


def bev_corners(rectangles: Tensor) -> Tensor:
    """Rectangles [..., 5] (x, y, dx, dy, yaw) -> corners [..., 4, 2], counter-clockwise, the first at (+dx/2, +dy/2) of the own frame."""
    local = rectangles.new_tensor(_UNIT) * rectangles[..., None, 2:4]
    cos, sin = rectangles[..., 4:5].cos(), rectangles[..., 4:5].sin()
    x, y = local.unbind(-1)
    return torch.stack((cos * x - sin * y, sin * x + cos * y), -1) + rectangles[..., None, :2]


def corners(boxes: Tensor) -> Tensor:
    """Boxes [..., 7+] -> corners [..., 8, 3]: the four of the bottom as in `bev_corners`, then the four of the top."""
    flat = bev_corners(bev(boxes))
    low, high = boxes[..., 2] - boxes[..., 5] / 2, boxes[..., 2] + boxes[..., 5] / 2
    height = torch.stack((low, high), -1)[..., :, None, None].expand(*flat.shape[:-2], 2, 4, 1)
    return torch.cat((flat[..., None, :, :].expand(*flat.shape[:-2], 2, 4, 2), height), -1).flatten(-3, -2)


def enclosing_rectangles(boxes: Tensor) -> Tensor:
    """The axis-parallel rectangle around each box seen from above: [..., 7+] -> [..., 4] (x0, y0, x1, y1)."""
    flat = bev_corners(bev(boxes))
    return torch.cat((flat.amin(-2), flat.amax(-2)), -1)


def transform_points(points: Tensor, a2b: Tensor) -> Tensor:
    """Points [..., N, 3+] of frame a in frame b; columns after the third are kept. `a2b`: [..., 4, 4]."""
    a2b = a2b.to(points)
    moved = points[..., :3] @ a2b[..., :3, :3].transpose(-1, -2) + a2b[..., None, :3, 3]
    return torch.cat((moved, points[..., 3:]), -1)


def transform_boxes(boxes: Tensor, a2b: Tensor) -> Tensor:
    """Boxes [..., N, 7 or 9] of frame a in frame b: centre, size, yaw and velocity.

    Args:
        boxes: (x, y, z, dx, dy, dz, yaw[, vx, vy]).
        a2b: [..., 4, 4], a turn about z (with a slight tilt, as between sensors), a mirror image or a uniform scale. Sizes grow with
            the scale; a heading turns as its direction does, which holds for mirror images too.
    """
    a2b = a2b.to(boxes)
    linear = a2b[..., :3, :3]
    centre = transform_points(boxes[..., :3], a2b)
    scale = linear.det().abs().pow(1 / 3)[..., None, None]
    flat = linear[..., :2, :2].transpose(-1, -2)
    heading = torch.stack((boxes[..., 6].cos(), boxes[..., 6].sin()), -1) @ flat
    yaw = torch.atan2(heading[..., 1], heading[..., 0])[..., None]
    return torch.cat((centre, boxes[..., 3:6] * scale, yaw, boxes[..., 7:9] @ flat), -1)


def points_in_boxes(points: Tensor, boxes: Tensor, *, chunk: int = 1 << 22) -> Tensor:
    """Which points lie in which boxes (faces included).

    Args:
        points: [N, 3+], metres.
        boxes: [M, 7+].
        chunk: pairs of point and box held at once.

    Returns:
        bool [M, N].
    """
    inside = torch.zeros(len(boxes), len(points), dtype=torch.bool, device=points.device)
    if not len(boxes):
        return inside
    cos, sin, half = boxes[:, 6].cos(), boxes[:, 6].sin(), boxes[:, 3:6] / 2
    step = max(1, chunk // len(boxes))
    for start in range(0, len(points), step):
        x, y, z = (points[None, start : start + step, axis] - boxes[:, axis, None] for axis in range(3))
        along = (cos[:, None] * x + sin[:, None] * y).abs() <= half[:, 0:1]
        across = (cos[:, None] * y - sin[:, None] * x).abs() <= half[:, 1:2]
        inside[:, start : start + step] = along & across & (z.abs() <= half[:, 2:3])
    return inside


_PAIRS = 1 << 16  # of rectangles that are clipped at once


@torch.no_grad()
def bev_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area that each pair of rectangles shares: a [N, 5], b [M, 5] (x, y, dx, dy, yaw) -> [N, M] float64, square metres."""
    a, b = a.double(), b.double()
    first, second = _near_pairs(a, b)
    area = a.new_zeros(len(a), len(b))
    area[first, second] = _shared(a, b, first, second)
    return area


def _near_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Rectangles whose circumscribed circles meet, int64 [P] and [P]; only these are clipped."""
    radius_a, radius_b = ((side[:, 2:4].norm(dim=-1) / 2).float() for side in (a, b))
    # by differences, in float32 with a millimetre to spare: the expanded form of cdist loses identical boxes far from the origin
    apart = (a[:, None, 0] - b[None, :, 0]).float().square_().add_((a[:, None, 1] - b[None, :, 1]).float().square_())
    return (apart < (radius_a[:, None] + radius_b + 1e-3).square_()).nonzero(as_tuple=True)


def _shared(a: Tensor, b: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Area that pairs of rectangles share, [P]."""
    chunks = zip(first.split(_PAIRS), second.split(_PAIRS), strict=True)
    return torch.cat([_clipped_area(a[i], b[j]) for i, j in chunks])


def _clipped_area(a: Tensor, b: Tensor) -> Tensor:
    """Shared area of rectangles pair by pair: [P, 5] x [P, 5] -> [P].

    In the frame of a, which then is |x| <= p, |y| <= q, the shared slice at x is as long as the upper side of b, clamped to [-q, q], lies
    above the lower one, clamped likewise. So the area is the integral of clamp(y) dx once around b, each edge cut to [-p, p]. Of a
    straight edge it is the width times a mean of three pieces (below, within and above), which neither sorts nor compares positions and
    is exact where edges coincide.
    """
    cos, sin = a[:, 4].cos(), a[:, 4].sin()
    dx, dy = (b[:, :2] - a[:, :2]).unbind(-1)
    turned = torch.stack((cos * dx + sin * dy, cos * dy - sin * dx, b[:, 2], b[:, 3], b[:, 4] - a[:, 4]), -1)
    p, q = (a[:, axis, None] / 2 for axis in (2, 3))
    x, y = bev_corners(turned).unbind(-1)  # [P, 4]
    next_x, next_y = x.roll(-1, 1), y.roll(-1, 1)
    start, end = x.clamp(-p, p), next_x.clamp(-p, p)
    run = next_x - x
    slope = (next_y - y) / torch.where(run == 0, 1.0, run)  # an edge along y has no width and counts nothing
    first, last = y + slope * (start - x), y + slope * (end - x)
    low, high = torch.minimum(first, last), torch.maximum(first, last)
    length = (high - low).clamp_min(1e-12)
    below = (-q - low).clamp_min(0).minimum(length) / length
    above = (high - q).clamp_min(0).minimum(length) / length
    within = (low.clamp(-q, q) + high.clamp(-q, q)) / 2
    mean = -q * below + q * above + within * (1 - below - above)
    return -((end - start) * mean).sum(1)  # corners run counter-clockwise: the lower side first


def bev_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of rectangles seen from above: a [N, 5], b [M, 5] (x, y, dx, dy, yaw) -> [N, M] float64 in [0, 1].

    1 for identical rectangles at any angle; 0 where either has no area or is not finite.
    """
    area_a, area_b = a[:, 2:4].double().prod(-1), b[:, 2:4].double().prod(-1)
    return _over_union(bev_intersection(a, b), area_a, area_b)


def iou_3d(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes: a [N, 7+], b [M, 7+] -> [N, M] float64: the area shared from above x the height shared."""
    a, b = a.double(), b.double()
    low = torch.maximum((a[:, 2] - a[:, 5] / 2)[:, None], (b[:, 2] - b[:, 5] / 2)[None])
    high = torch.minimum((a[:, 2] + a[:, 5] / 2)[:, None], (b[:, 2] + b[:, 5] / 2)[None])
    shared = bev_intersection(bev(a), bev(b)) * (high - low).clamp_min(0)
    return _over_union(shared, a[:, 3:6].prod(-1), b[:, 3:6].prod(-1))


def _over_union(shared: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
    union = size_a[:, None] + size_b[None] - shared
    return torch.where(shared > 0, shared / union, 0.0).nan_to_num(0).clamp(0, 1)


def greedy_keep(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Which of `count` items, by falling score, a greedy suppression keeps.

    Args:
        first, second: int64 [P], pairs in which the first, if it is kept, removes the second; the first stands before the second.
        count: of the items.

    Returns:
        bool [count]. Computed as the fixed point of "kept unless a kept one before it removes it", which needs as many sweeps over the
        pairs as the longest chain of removals is long, a handful in practice, instead of a step for each item.
    """
    keep = torch.ones(count, dtype=torch.bool, device=first.device)
    while True:
        new = torch.ones_like(keep)
        new[second[keep[first]]] = False
        if torch.equal(new, keep):
            return keep
        keep = new


def circle_nms(xy: Tensor, scores: Tensor, threshold: float, *, max_kept: int | None = None) -> Tensor:
    """Drops a box where a kept one of higher score stands near.

    Args:
        xy: centres [N, 2], metres.
        scores: [N].
        threshold: of the **squared** distance, square metres; a box at exactly this distance goes too.
        max_kept: no more than this many are kept.

    Returns:
        The kept places, int64, by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    there = xy[order].double()
    apart = (there[:, None] - there[None]).square().sum(-1)
    first, second = (apart <= threshold).triu(1).nonzero(as_tuple=True)
    return order[greedy_keep(first, second, len(order))][:max_kept]


@torch.no_grad()
def rotated_nms(
    boxes: Tensor, scores: Tensor, threshold: float, *, pre_max: int = 1000, max_kept: int | None = None, scale: Tensor | float = 1.0
) -> Tensor:
    """Drops a box whose overlap from above with a kept one of higher score is above `threshold`.

    Args:
        boxes: [N, 7+], or rectangles [N, 5].
        scores: [N].
        threshold: of the rotated intersection over union, in [0, 1].
        pre_max: only this many of the highest scores are looked at.
        max_kept: no more than this many are kept.
        scale: what dx and dy are multiplied with first, one number or [N], so that small objects of one class suppress further (scale-NMS).

    Returns:
        The kept places, int64, by falling score.
    """
    if not 0 <= threshold <= 1:
        raise InputError("threshold", threshold, "an overlap in [0, 1]")
    order = scores.argsort(descending=True, stable=True)[:pre_max]
    flat = (boxes if boxes.shape[-1] == 5 else bev(boxes)).double()
    factor = torch.as_tensor(scale, dtype=flat.dtype, device=flat.device).expand(len(flat))[:, None]
    flat = torch.cat((flat[:, :2], flat[:, 2:4] * factor, flat[:, 4:]), -1)[order]
    first, second = _near_pairs(flat, flat)
    first, second = first[first < second], second[first < second]
    area, shared = flat[:, 2:4].prod(-1), _shared(flat, flat, first, second)
    over = shared > threshold * (area[first] + area[second] - shared)
    return order[greedy_keep(first[over], second[over], len(order))][:max_kept]
