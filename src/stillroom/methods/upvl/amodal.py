"""Amodal boxes (A6): what a track shows of an object over time, put together, is more of it than any frame shows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree


class Rigid(NamedTuple):
    """A turn about z and a shift: p -> R(yaw) p + shift; and the mean distance of the pairs that it was found on, metres."""

    yaw: float
    shift: np.ndarray
    residual: float

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Moved points [N, 3]."""
        return np.asarray(points @ turn(self.yaw).T + self.shift)


def turn(yaw: float) -> np.ndarray:
    """Rotation about z, [3, 3]."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])


def constrained_icp(
    source_N3: np.ndarray, target_M3: np.ndarray, *, yaw: float = 0.0, shift: np.ndarray | None = None, steps: int = 8,
    most_yaw: float = np.pi / 18, most_shift: float = 0.5, reach: float = 1.0,
) -> Rigid:  # fmt: skip
    """Registers points of an object that stands on the ground: it turns about z and shifts, both near the start.

    Args:
        source_N3, target_M3: metres; the turn is about the origin of the source.
        yaw, shift: the start.
        steps: in each the pairs are found anew, and the best motion of the **original** source on them.
        most_yaw, most_shift: radians and metres (along each axis) that the answer may differ from the start.
        reach: metres, of a pair at most.
    """
    start_yaw, start = yaw, np.zeros(3) if shift is None else np.asarray(shift, np.float64)
    shift, tree, residual = start, cKDTree(target_M3), np.inf
    for _ in range(steps):
        apart, nearest = tree.query(source_N3 @ turn(yaw).T + shift)
        near = apart <= reach
        if not near.any():
            break
        one, other = source_N3[near].astype(np.float64), target_M3[nearest[near]].astype(np.float64)
        a, b = one.mean(0), other.mean(0)
        p, q = (one - a)[:, :2], (other - b)[:, :2]
        best = np.arctan2((p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum(), (p * q).sum())
        difference = (best - start_yaw + np.pi) % (2 * np.pi) - np.pi
        yaw = start_yaw + float(np.clip(difference, -most_yaw, most_yaw))
        shift = start + np.clip(b - turn(yaw) @ a - start, -most_shift, most_shift)
        residual = float(np.linalg.norm(one @ turn(yaw).T + shift - other, axis=1).mean())
    return Rigid(float(yaw), shift, residual)
