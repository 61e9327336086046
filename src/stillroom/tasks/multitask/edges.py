"""Boundaries measured as the literature does: thinned, and matched one to one with the true ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stillroom.tasks.multitask.measures import EDGE_THRESHOLDS


def matched_counts(probability_HW: Tensor, truth_HW: Tensor, radius: float, thresholds: Sequence[float] = EDGE_THRESHOLDS) -> Tensor:
    """As `measures.edge_counts`, but predicted edges are thinned, and each matches at most one true pixel, as many as can be matched.

    Returns:
        int64 [4, thresholds]: matched pixels, predicted ones, matched ones, true ones.
    """
    truth = truth_HW.cpu().numpy()
    true, known = truth == 1, truth <= 1
    found = []
    for threshold in thresholds:
        predicted = thinned((probability_HW.cpu().numpy() >= threshold) & known)
        matches = matched(predicted, true, radius)
        found.append((matches, int(predicted.sum()), matches, int(true.sum())))
    return torch.tensor(found).T


def matched(first_HW: np.ndarray, second_HW: np.ndarray, radius: float) -> int:
    """The largest number of pairs, each pixel in one at most, that are no further apart than `radius` pixels."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching
    from scipy.spatial import cKDTree

    ours, theirs = np.argwhere(first_HW), np.argwhere(second_HW)
    if not len(ours) or not len(theirs):
        return 0
    near = cKDTree(ours).query_ball_tree(cKDTree(theirs), radius)
    columns = np.array([one for some in near for one in some], np.int32)
    starts = np.cumsum([0, *map(len, near)]).astype(np.int32)
    graph = csr_matrix((np.ones(len(columns), np.int8), columns, starts), shape=(len(ours), len(theirs)))
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def thinned(edges_HW: np.ndarray) -> np.ndarray:
    """Lines one pixel wide, bool [H, W].

    Source: Zhang and Suen 1984, "A fast parallel algorithm for thinning digital patterns".
    """
    kept = np.pad(edges_HW, 1)
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            ring = [np.roll(kept, (-dy, -dx), (0, 1)) for dy, dx in _RING]
            count = sum(one.astype(np.int8) for one in ring)
            turns = sum((~a & b).astype(np.int8) for a, b in zip(ring, [*ring[1:], ring[0]], strict=True))
            north, east, south, west = ring[0::2]
            corner = ~(north & east & south) & ~(east & south & west) if first else ~(north & east & west) & ~(north & south & west)
            gone = kept & (count >= 2) & (count <= 6) & (turns == 1) & corner
            changed |= bool(gone.any())
            kept = kept & ~gone
    inner: np.ndarray = kept[1:-1, 1:-1]
    return inner


_RING = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))  # the neighbours, from north on, clockwise
