"""Scene flow without labels (A2): the neural prior of a pair of frames, in its local variant, cluster by cluster.

What moves between two frames is found by two small networks that are fitted to this very pair: g takes the points of a cluster to those of
the next frame, g' takes them back. Both frames are without the ground and in the coordinates of the first, so that only what moves by
itself has flow. All clusters of a pair are fitted at once, each with networks of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

_EXACT = "donot_use_mm_for_euclid_dist"  # the expanded form loses centimetres, and theirs are the distances that matter
_TRUNCATED = 2.0  # square metres: a point further from every other has no partner


def flow_loss(points_N3: Tensor, next_M3: Tensor, flow_N3: Tensor, back_N3: Tensor) -> Tensor:
    """The prior's objective: the moved points meet the next frame, and the way back meets the first one.

    Args:
        points_N3, next_M3: of the two frames, ego-motion compensated, metres.
        flow_N3: g at the points.
        back_N3: g' at the points moved by it.

    Source: Li et al., Neural Scene Flow Prior (2021), eq. 3 and 4, with the truncation of its code.
    """
    moved_N3 = points_N3 + flow_N3
    return chamfer(next_M3, moved_N3) + chamfer(moved_N3 - back_N3, points_N3)


def chamfer(x_N3: Tensor, y_M3: Tensor) -> Tensor:
    """Mean squared distance to the nearest point of the other set, both ways; `_TRUNCATED` and more count as 0, in the means too."""
    apart_NM = (x_N3[:, None] - y_M3[None]).square().sum(-1)
    ways = apart_NM.amin(1), apart_NM.amin(0)
    total: Tensor = sum((torch.where(way < _TRUNCATED, way, 0.0).mean() for way in ways), start=x_N3.new_zeros(()))
    return total


def flow_consistency(flow_N3: Tensor, weight: float = 0.05) -> Tensor:
    """weight / N * the sum over all ordered pairs of points of the length of the difference of their flows; 0 for one point."""
    return weight / max(len(flow_N3), 1) * _lengths(flow_N3[:, None] - flow_N3[None]).sum()


def _lengths(vectors: Tensor) -> Tensor:
    """Norms over the last axis whose gradient at zero is zero, not NaN."""
    squared = vectors.square().sum(-1)
    some = squared > 0
    return torch.where(some, torch.where(some, squared, 1.0).sqrt(), 0.0)


def static_points(points_N3: np.ndarray, next_M3: np.ndarray, *, near: float | np.ndarray = 0.05, radius: float = 0.5) -> np.ndarray:
    """Which points stand still: they meet one of the next frame within `near`, and so do more than half of those within `radius`.

    Args:
        points_N3, next_M3: of the two frames, without ground and ego motion.
        near: metres, one number or one for each point.
        radius: metres, of the neighbourhood, which the point itself belongs to.

    Returns:
        bool [N].
    """
    if not len(points_N3) or not len(next_M3):
        return np.zeros(len(points_N3), bool)
    meets = cKDTree(next_M3).query(points_N3)[0] < near
    tree = cKDTree(points_N3)
    pairs = tree.query_pairs(radius, output_type="ndarray")
    around, meeting = np.ones(len(points_N3)), meets.astype(np.float64)
    for one, other in (pairs.T, pairs.T[::-1]):
        around += np.bincount(one, minlength=len(around))
        meeting += np.bincount(one, meets[other], minlength=len(around))
    return np.asarray(meets & (meeting > around / 2))


class Targets(NamedTuple):
    """Where each of K clusters may have gone.

    Attributes:
        grown: [K, 4], x_min, y_min, x_max, y_max of the query region.
        inside: bool [K, M], points of the next frame in it.
        target: bool [K, M], those of them that are fitted to.
        fitted: bool [K]; the others have no flow.
    """

    grown: np.ndarray
    inside: np.ndarray
    target: np.ndarray
    fitted: np.ndarray


def local_targets(points_N3: np.ndarray, cluster_N: np.ndarray, next_M3: np.ndarray, expansion: float = 2.5) -> Targets:
    """Query expansion and pruning: the region of a cluster grows, and of the next frame's points in it the nearest to its mean remain.

    Args:
        points_N3: of the first frame, without ground and static points.
        cluster_N: of each point, 0 .. K-1; -1 for noise.
        next_M3: of the next frame, without ground.
        expansion: metres that a region grows on both sides along its longer axis; along the other in proportion.
    """
    count = int(cluster_N.max(initial=-1)) + 1
    grown = np.zeros((count, 4), points_N3.dtype)
    inside = np.zeros((count, len(next_M3)), bool)
    target = np.zeros_like(inside)
    for k in range(count):
        own = points_N3[cluster_N == k]
        if not len(own):
            continue
        low, high = own[:, :2].min(0), own[:, :2].max(0)
        sides = high - low
        growth = expansion * (sides / sides.max() if sides.max() > 0 else np.ones(2, sides.dtype))
        low, high = low - growth, high + growth
        grown[k] = [*low, *high]
        inside[k] = ((next_M3[:, :2] >= low) & (next_M3[:, :2] <= high)).all(1)
        there = np.flatnonzero(inside[k])
        kept = min(len(own), len(there)) - 1
        if kept > 3:  # fewer say nothing of a motion
            apart = np.linalg.norm(next_M3[there] - own.mean(0), axis=1)
            target[k, there[apart.argsort(kind="stable")[:kept]]] = True
    return Targets(grown, inside, target, np.asarray(target.any(1)))


@dataclass(frozen=True)
class FlowSpec:
    """How the flow of a cluster is fitted.

    Args:
        layers, width: of the networks g and g'.
        steps: of Adam, at most.
        rate: its learning rate.
        patience: steps without an improvement of 1e-4 after which a cluster is done.
        consistency: weight of the differences of flow within a cluster.
        expansion: metres, see `local_targets`; at least what the fastest object moves in a frame.
        fastest: metres per second.
        most: points of a cluster that are fitted, drawn evenly; the others take the flow of the nearest of them.
        seed: of the networks' first weights.
    """

    layers: int = 4
    width: int = 64
    steps: int = 300
    rate: float = 8e-3
    patience: int = 100
    consistency: float = 0.05
    expansion: float = 2.5
    fastest: float = 30.0
    most: int = 64
    seed: int = 0


class Flow(NamedTuple):
    """Metres that each point moves until the next frame [N, 3], and how many clusters' fits ended in NaN and were set to zero."""

    flow: np.ndarray
    diverged: int


class Problem(NamedTuple):
    """A pair of frames: points [N, 3], the cluster of each [N] (0 .. K-1, -1 for none), and the next frame's points [M, 3]."""

    points: np.ndarray
    cluster: np.ndarray
    following: np.ndarray


def local_flow(problems: Sequence[Problem], interval: float, spec: FlowSpec | None = None) -> list[Flow]:
    """The flow of every cluster, each by its own pair of networks; zero for noise and for clusters that have nowhere to go.

    Args:
        problems: pairs of frames; together they take less time than one after the other.
        interval: seconds between the frames.
        spec: how it is fitted.
    """
    spec = spec or FlowSpec()
    flows = [np.zeros_like(problem.points) for problem in problems]
    diverged = [0] * len(problems)
    own, there, centres, of = [], [], [], []
    for at, (points, cluster, following) in enumerate(problems):
        found = local_targets(points, cluster, following, max(spec.expansion, spec.fastest * interval))
        for k in np.flatnonzero(found.fitted):
            members = np.flatnonzero(cluster == k)
            centre = points[members].mean(0)
            own.append(points[_drawn(members, spec.most)] - centre)
            there.append(following[_drawn(np.flatnonzero(found.target[k]), spec.most)] - centre)
            centres.append(centre)
            of.append((at, members))
    if not own:
        return [Flow(flow, 0) for flow in flows]
    fitted = _fitted(*_padded(own), *_padded(there), spec).numpy()
    for cloud, centre, moved, (at, members) in zip(own, centres, fitted, of, strict=True):
        if np.isfinite(moved).all():
            nearest = cKDTree(cloud).query(problems[at].points[members] - centre)[1]
            flows[at][members] = moved[: len(cloud)][nearest]
        else:
            diverged[at] += 1
    return [Flow(flow, failed) for flow, failed in zip(flows, diverged, strict=True)]


def _drawn(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of them, evenly."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _padded(clouds: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Clouds of different sizes as float32 [K, n, 3], and which points there are, bool [K, n]."""
    rows = torch.zeros(len(clouds), max(map(len, clouds)), 3)
    there = torch.zeros(rows.shape[:2], dtype=torch.bool)
    for k, cloud in enumerate(clouds):
        rows[k, : len(cloud)] = torch.from_numpy(cloud.astype(np.float32))
        there[k, : len(cloud)] = True
    return rows, there


def _fitted(own_KN3: Tensor, mine_KN: Tensor, next_KM3: Tensor, theirs_KM: Tensor, spec: FlowSpec) -> Tensor:
    """The flow of the best loss of each cluster [K, N, 3]; NaN where no loss was a number. Clusters that are done are left out."""
    generator = torch.Generator().manual_seed(spec.seed)
    best_KN3 = torch.full_like(own_KN3, torch.nan)
    least_K = torch.full((len(own_KN3),), torch.inf)
    since_K = torch.zeros(len(own_KN3), dtype=torch.int64)
    ahead, back = (_networks(len(own_KN3), spec, generator) for _ in range(2))
    optimiser = torch.optim.Adam([*ahead, *back], lr=spec.rate, fused=True)
    both_KNN = mine_KN[:, :, None] & mine_KN[:, None]
    for _ in range(spec.steps):
        flow_KN3 = _answers(ahead, own_KN3)
        moved_KN3 = own_KN3 + flow_KN3
        returned_KN3 = moved_KN3 - _answers(back, moved_KN3)
        forth_K = _chamfers(next_KM3, theirs_KM, moved_KN3, mine_KN)
        return_K = _chamfers(returned_KN3, mine_KN, own_KN3, mine_KN)
        spread_KNN = torch.cdist(flow_KN3, flow_KN3, compute_mode=_EXACT) * both_KNN
        loss_K = forth_K + return_K + spec.consistency * spread_KNN.sum((1, 2)) / mine_KN.sum(1)
        with torch.no_grad():
            better = loss_K < least_K - 1e-4
            best_KN3[better], least_K[better] = flow_KN3[better], loss_K[better]
            since_K = torch.where(better, 0, since_K + 1)
            if (since_K >= spec.patience).all():
                break
        optimiser.zero_grad(set_to_none=True)
        torch.where(loss_K.isfinite(), loss_K, 0.0).sum().backward()  # networks share no weight, so neither do gradients
        optimiser.step()
    return best_KN3


def _networks(count: int, spec: FlowSpec, generator: torch.Generator) -> list[Tensor]:
    """Weights and biases of `count` MLPs from 3 to 3 numbers, in turn."""
    widths = [3, *[spec.width] * spec.layers, 3]
    made = []
    for before, after in pairwise(widths):
        bound = before**-0.5
        made += [(torch.rand(count, size, after, generator=generator) * 2 - 1) * bound for size in (before, 1)]
    return [tensor.requires_grad_() for tensor in made]


def _answers(networks: list[Tensor], points_KN3: Tensor) -> Tensor:
    hidden = points_KN3
    for at in range(0, len(networks), 2):
        hidden = torch.baddbmm(networks[at + 1], hidden, networks[at])
        hidden = hidden.relu() if at + 2 < len(networks) else hidden
    return hidden


def _chamfers(x_KN3: Tensor, x_KN: Tensor, y_KM3: Tensor, y_KM: Tensor) -> Tensor:
    """`chamfer` of each cluster [K], over the points that there are."""
    with torch.no_grad():  # who is nearest has no gradient, how near it is does
        apart = torch.cdist(x_KN3, y_KM3, compute_mode=_EXACT)
        apart.masked_fill_(~(x_KN[:, :, None] & y_KM[:, None]), torch.inf)
        of_x, of_y = apart.argmin(2), apart.argmin(1)
    ways = ((x_KN3 - _rows(y_KM3, of_x), x_KN), (y_KM3 - _rows(x_KN3, of_y), y_KM))
    total: Tensor = sum(
        (torch.where(there & (apart < _TRUNCATED), apart, 0.0).sum(1) / there.sum(1)
         for apart, there in ((way.square().sum(-1), there) for way, there in ways)),
        start=x_KN3.new_zeros(len(x_KN3)),
    )  # fmt: skip
    return total


def _rows(points_KN3: Tensor, index_KM: Tensor) -> Tensor:
    return points_KN3.gather(1, index_KM[:, :, None].expand(-1, -1, 3))
