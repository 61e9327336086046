"""Boxes in three dimensions: corners, points inside, overlaps, suppression. The conventions stand in the package's caption.

Overlaps are exact, in float64 and without gradient. None of the functions loops over boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.errors import InputError

_EPS = 1e-6  # metres: a vertex so close to an edge lies on it
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


@torch.no_grad()
def bev_intersection(a: Tensor, b: Tensor, *, chunk: int = 1 << 16) -> Tensor:
    """Area that each pair of rectangles shares: a [N, 5], b [M, 5] (x, y, dx, dy, yaw) -> [N, M] float64, square metres.

    Only pairs whose circumscribed circles meet are clipped, `chunk` of them at once.
    """
    a, b = a.double(), b.double()
    radius_a, radius_b = a[:, 2:4].norm(dim=-1) / 2, b[:, 2:4].norm(dim=-1) / 2
    # |p - q|^2 by differences: the expanded form of cdist loses identical boxes far from the origin
    apart = (a[:, None, 0] - b[None, :, 0]).square() + (a[:, None, 1] - b[None, :, 1]).square()
    first, second = (apart < (radius_a[:, None] + radius_b[None]).square()).nonzero(as_tuple=True)
    area = a.new_zeros(len(a), len(b))
    for i, j in zip(first.split(chunk), second.split(chunk), strict=True):
        area[i, j] = _clipped_area(a[i], b[j])
    return area


def _clipped_area(a: Tensor, b: Tensor) -> Tensor:
    """Shared area of rectangles pair by pair: [P, 5] x [P, 5] -> [P].

    In the frame of a: the polygon's vertices are a's corners inside b, b's corners inside a and the crossings of edges. Sorted by angle
    about their mean, they give the area by the shoelace rule; a vertex that is found twice adds nothing.
    """
    cos, sin = a[:, 4].cos(), a[:, 4].sin()
    dx, dy = (b[:, :2] - a[:, :2]).unbind(-1)
    centre = torch.stack((cos * dx + sin * dy, cos * dy - sin * dx), -1)
    turned = torch.cat((centre, b[:, 2:4], (b[:, 4] - a[:, 4])[:, None]), -1)
    half_a, half_b = a[:, None, 2:4] / 2, b[:, None, 2:4] / 2
    corners_a, corners_b = a.new_tensor(_UNIT) * a[:, None, 2:4], bev_corners(turned)
    inside_a = (corners_b.abs() <= half_a + _EPS).all(-1)
    away = corners_a - centre[:, None]
    cos, sin = turned[:, None, 4].cos(), turned[:, None, 4].sin()
    x, y = away.unbind(-1)
    inside_b = (torch.stack((cos * x + sin * y, cos * y - sin * x), -1).abs() <= half_b + _EPS).all(-1)

    edge_a, edge_b = corners_a.roll(-1, 1) - corners_a, corners_b.roll(-1, 1) - corners_b
    gap = corners_b[:, None] - corners_a[:, :, None]  # [P, 4, 4, 2]
    det = _cross(edge_a[:, :, None], edge_b[:, None])
    lengths = edge_a.norm(dim=-1)[:, :, None] * edge_b.norm(dim=-1)[:, None]
    crossing = det.abs() > 1e-9 * lengths  # parallel edges cross nowhere; their ends are corners inside
    safe = torch.where(crossing, det, 1.0)
    t = _cross(gap, edge_b[:, None].expand_as(gap)) / safe
    u = _cross(gap, edge_a[:, :, None].expand_as(gap)) / safe
    crossing &= (t >= 0) & (t <= 1) & (u >= 0) & (u <= 1)
    crossings = corners_a[:, :, None] + t[..., None] * edge_a[:, :, None]

    vertices = torch.cat((corners_a, corners_b, crossings.flatten(1, 2)), 1)
    valid = torch.cat((inside_b, inside_a, crossing.flatten(1)), 1)
    some = vertices.gather(1, valid.int().argmax(1)[:, None, None].expand(-1, 1, 2))
    vertices = torch.where(valid[..., None], vertices, some)  # a place that is not used repeats a vertex that is
    mean = (vertices * valid[..., None]).sum(1) / valid.sum(1, keepdim=True).clamp_min(1)
    around = vertices - mean[:, None]
    order = torch.atan2(around[..., 1], around[..., 0]).argsort(1)
    ring = around.gather(1, order[..., None].expand_as(around))
    area = _cross(ring, ring.roll(-1, 1)).sum(1) / 2
    return torch.where(valid.sum(1) >= 3, area.clamp_min(0), 0.0)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


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


def greedy_keep(suppresses: Tensor) -> Tensor:
    """Which items a greedy suppression keeps.

    Args:
        suppresses: bool [N, N], items by falling score: [i, j] where item i, if kept, removes item j.

    Returns:
        bool [N]. Computed as the fixed point of "kept unless a kept one before it removes it", which needs as many sweeps as the longest
        chain of removals, a handful in practice, instead of one per item.
    """
    weight = suppresses.triu(1).float()
    keep = torch.ones(len(suppresses), dtype=torch.bool, device=suppresses.device)
    while True:
        new = (keep.float() @ weight) == 0
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
    return order[greedy_keep(apart <= threshold)][:max_kept]


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
    return order[greedy_keep(bev_iou(flat, flat) > threshold)][:max_kept]
