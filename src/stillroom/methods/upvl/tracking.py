"""Tracks (A5): a Kalman filter of constant velocity follows the centres of boxes from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

_SPEED = 4.0  # variance of the first velocity, metres^2 per second^2


@dataclass(frozen=True)
class TrackerSpec:
    """How boxes are followed.

    Args:
        gate: metres from where a track is expected beyond which it is not continued.
        misses: frames in a row that a track survives without a box; one more ends it.
        acceleration: standard deviation of the process, metres per second^2.
        measured: standard deviation of a centre, metres.
    """

    gate: float = 2.0
    misses: int = 2
    acceleration: float = 1.0
    measured: float = 0.1


class Tracks(NamedTuple):
    """Of D detections, T tracks.

    Attributes:
        track: int64 [D], in the order of birth.
        hits: int64 [T], detections of each.
        state: [T, 4], x, y, vx, vy at the last frame; zero for tracks that ended before.
    """

    track: np.ndarray
    hits: np.ndarray
    state: np.ndarray


def tracked(detections_D4: np.ndarray, frame_D: np.ndarray, interval: float, spec: TrackerSpec | None = None) -> Tracks:
    """Follows detections through the frames.

    Args:
        detections_D4: x, y of the centre and vx, vy of its flow, in the world.
        frame_D: whole numbers, in which frame each was made.
        interval: seconds from a frame to the next.
        spec: how.
    """
    spec = spec or TrackerSpec()
    move, noise = _motion(interval, spec.acceleration)
    measured = spec.measured**2 * np.eye(2)
    track_D = np.full(len(detections_D4), -1, np.int64)
    states, covariances, hits, missed = np.zeros((0, 4)), np.zeros((0, 4, 4)), np.zeros(0, np.int64), np.zeros(0, np.int64)
    for at in range(int(frame_D.min(initial=0)), int(frame_D.max(initial=-1)) + 1):
        rows = np.flatnonzero(frame_D == at)
        live = np.flatnonzero(missed <= spec.misses)
        states[live] = states[live] @ move.T
        covariances[live] = move @ covariances[live] @ move.T + noise
        one, other = _assigned(states[live, :2], detections_D4[rows, :2], spec.gate)
        met, found = live[one], rows[other]
        gain = covariances[met][:, :, :2] @ np.linalg.inv(covariances[met][:, :2, :2] + measured)
        states[met] += (gain @ (detections_D4[found, :2] - states[met, :2])[:, :, None])[:, :, 0]
        covariances[met] -= gain @ covariances[met][:, :2]
        track_D[found] = met
        hits[met] += 1
        missed[live] += 1
        missed[met] = 0
        born = rows[track_D[rows] < 0]
        track_D[born] = len(states) + np.arange(len(born))
        first = np.diag([spec.measured**2, spec.measured**2, _SPEED, _SPEED])
        states = np.concatenate((states, detections_D4[born]))
        covariances = np.concatenate((covariances, np.broadcast_to(first, (len(born), 4, 4))))
        hits, missed = np.append(hits, np.ones(len(born), np.int64)), np.append(missed, np.zeros(len(born), np.int64))
    states[missed > spec.misses] = 0
    return Tracks(track_D, hits, states)


def _motion(interval: float, acceleration: float) -> tuple[np.ndarray, np.ndarray]:
    """What a frame does to a state, and the covariance that a random constant acceleration adds."""
    move = np.eye(4)
    move[:2, 2:] = interval * np.eye(2)
    pushed = np.concatenate((interval**2 / 2 * np.eye(2), interval * np.eye(2)))
    return move, acceleration**2 * pushed @ pushed.T


def _assigned(expected: np.ndarray, found: np.ndarray, gate: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of the least total distance, none beyond the gate."""
    apart = np.linalg.norm(expected[:, None] - found[None], axis=-1)
    allowed = apart <= gate
    one, other = linear_sum_assignment(np.where(allowed, apart, 1e6))
    kept = allowed[one, other]
    return one[kept], other[kept]
