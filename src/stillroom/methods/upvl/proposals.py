"""Proposals of objects (A4): what is ground, which points belong together, which clusters are kept, and a box around each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

_SECTOR = np.pi / 18  # of 10 degrees
_RING = 5.0  # metres
_LOWEST = 0.2  # share of a cell's points that its ground is fitted to
_STEEPEST = 0.15  # rise of a ground line, of its run
_NEAREST = 0.05  # metres: closeness to an edge counts no more than this


def ground_height(points_N3: np.ndarray) -> np.ndarray:
    """Height of the ground below each point, [N].

    In every sector of 10 degrees the lowest fifth of the points of each ring of 5 m stands for the ground there; a robust line (the median
    of the slopes of all pairs of rings, as Theil and Sen have it) goes through the rings' medians.
    """
    heights = np.zeros(len(points_N3))
    if not len(points_N3):
        return heights
    reach = np.hypot(points_N3[:, 0], points_N3[:, 1])
    sector = np.floor(np.arctan2(points_N3[:, 1], points_N3[:, 0]) / _SECTOR).astype(int)
    whole = _lowest(points_N3[:, 2])
    for one in np.unique(sector):
        rows = np.flatnonzero(sector == one)
        ring = np.floor(reach[rows] / _RING).astype(int)
        r, z = np.array([(np.median(reach[rows[ring == k]]), _lowest(points_N3[rows[ring == k], 2])) for k in np.unique(ring)]).T
        first, second = np.triu_indices(len(r), 1)
        slope = np.clip(np.median((z[second] - z[first]) / np.maximum(r[second] - r[first], 0.1)), -1, 1) if len(first) else 0.0
        slope = float(np.clip(slope, -_STEEPEST, _STEEPEST))
        # of rings that a wall or a roof fills the lowest points are no ground: the offset is a low quantile, not the median
        offset = np.quantile(z - slope * r, 0.3)
        line = offset + slope * reach[rows]
        heights[rows] = line if len(rows) >= 10 else whole
    return heights


def _lowest(z: np.ndarray) -> float:
    """Median of the lowest fifth."""
    return float(np.quantile(z, _LOWEST / 2))


def clusters(points_ND: np.ndarray, eps: float | np.ndarray = 0.8, min_samples: int = 5, weights: np.ndarray | None = None) -> np.ndarray:
    """DBSCAN: clusters of points that are dense, int64 [N], -1 for noise; numbered by their first core point.

    Args:
        points_ND: in any number of dimensions.
        eps: how far neighbours are apart at most, one number or one for each point (then the smaller of a pair's two counts).
        min_samples: points within eps, itself included, that make a point a core of a cluster.
        weights: how many points each stands for.
    """
    count = len(points_ND)
    if not count:
        return np.zeros(0, np.int64)
    weight = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    reach = np.broadcast_to(np.asarray(eps, np.float64), (count,))
    one, other = cKDTree(points_ND).query_pairs(float(reach.max()), output_type="ndarray").T
    if np.ndim(eps):
        near = np.linalg.norm(points_ND[one] - points_ND[other], axis=1) <= np.minimum(reach[one], reach[other])
        one, other = one[near], other[near]
    core = weight + np.bincount(one, weight[other], count) + np.bincount(other, weight[one], count) >= min_samples
    both = core[one] & core[other]
    component = connected_components(coo_matrix((np.ones(both.sum()), (one[both], other[both])), (count, count)), directed=False)[1]
    label = np.full(count, count, np.int64)
    first, number = np.unique(component[core], return_index=True)[1], component[core]
    rank = np.full(component.max() + 1, count, np.int64)
    rank[number[np.sort(first)]] = np.arange(len(first))
    label[core] = rank[number]
    for a, b in ((one, other), (other, one)):  # a point at the border of several belongs to the first
        touching = core[a] & ~core[b]
        np.minimum.at(label, b[touching], label[a[touching]])
    label[label == count] = -1
    return label


def space_time(xyz_N3: np.ndarray, frame_N: np.ndarray, scale: float = 0.3) -> np.ndarray:
    """Points [N, 4] with their time, in frames, as a fourth coordinate of `scale` metres each."""
    return np.column_stack((xyz_N3, scale * frame_N))


class Judged(NamedTuple):
    """Of K clusters: mean speed and share of background among the seen points, [K]; whether they move and are kept, bool [K]."""

    speed: np.ndarray
    background: np.ndarray
    moving: np.ndarray
    keep: np.ndarray


def judged(
    cluster_N: np.ndarray, speed_N: np.ndarray, seen_N: np.ndarray, background_N: np.ndarray, *, moving: float = 1.0, ratio: float = 0.99
) -> Judged:
    """Which clusters are objects: those that move, and of the others those that a camera sees and that are not almost all background.

    Args:
        cluster_N: 0 .. K-1, -1 for noise.
        speed_N: metres per second.
        seen_N, background_N: whether a camera sees a point, and whether it is background.
        moving: speed of the mean from which a cluster moves, whatever it looks like.
        ratio: of background points among the seen ones, from which a static cluster is dropped.
    """
    inside = cluster_N >= 0
    label, count = cluster_N[inside], int(cluster_N.max(initial=-1)) + 1
    size = np.bincount(label, minlength=count)
    seen = np.bincount(label, seen_N[inside].astype(bool), minlength=count)
    share = np.bincount(label, (background_N & seen_N.astype(bool))[inside], minlength=count) / np.maximum(seen, 1)
    mean = np.bincount(label, speed_N[inside], minlength=count) / np.maximum(size, 1)
    moves = mean >= moving
    return Judged(mean, share, moves, moves | ((seen > 0) & (share < ratio)))


class Fitted(NamedTuple):
    """A box [7] (geometric centre, length >= width, yaw in [-pi/2, pi/2)) and the closeness of its points to its edges."""

    box: np.ndarray
    score: float


def fitted_box(points_N3: np.ndarray, *, trim: float = 0.0) -> Fitted:
    """The box whose edges the points are closest to, of headings a degree apart: a lidar sees an object as an L.

    Args:
        points_N3: at least one.
        trim: share of the points left out on either side, along each axis of the box; heights are whole.

    Source: Zhang et al., Efficient L-Shape Fitting (2017), the closeness criterion.
    """
    theta = np.deg2rad(np.arange(90.0))
    axes = np.stack((np.cos(theta), np.sin(theta)))
    along = points_N3[:, :2] @ axes  # [N, 90]
    across = points_N3[:, :2] @ np.stack((-axes[1], axes[0]))
    edge = np.minimum(*(np.minimum(c.max(0) - c, c - c.min(0)) for c in (along, across)))
    scores = (1 / np.maximum(edge, _NEAREST)).sum(0)
    best = int(scores.argmax())
    return Fitted(box_along(points_N3, float(theta[best]), trim=trim), float(scores[best]))


def box_along(points_N3: np.ndarray, yaw: float, *, trim: float = 0.0, keep_heading: bool = False) -> np.ndarray:
    """The box [7] of points whose one axis has this heading; with `keep_heading` it is the box's own, else that of its longer side."""
    axes = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
    turned = points_N3[:, :2] @ axes.T
    low, high = np.quantile(turned, [trim, 1 - trim], axis=0) if trim else (turned.min(0), turned.max(0))
    size = high - low
    x, y = axes.T @ ((low + high) / 2)
    bottom, top = points_N3[:, 2].min(), points_N3[:, 2].max()
    if not keep_heading:
        if size[1] > size[0]:
            size, yaw = size[::-1], yaw + np.pi / 2
        yaw = (yaw + np.pi / 2) % np.pi - np.pi / 2
    return np.array([x, y, (bottom + top) / 2, *size, top - bottom, yaw])
