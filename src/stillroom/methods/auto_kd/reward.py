"""What a candidate is scored by, and what its score is worth to the search (section 4 of Auto-KD's specification)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

OMEGA = 0.5
TAU = 0.1


def score_of(cross_entropy: float, similarities: Sequence[float], omega: float = OMEGA) -> float:
    """omega * CE + (1 - omega) * gap, lower is better; the gap is the mean over layers of 1 - CKA.

    Args:
        cross_entropy: of the student on held-out images, their mean.
        similarities: CKA of student and teacher at each layer.
        omega: from 0 to 1.
    """
    return omega * cross_entropy + (1 - omega) * fmean(1 - one for one in similarities)


def reward_of(score: float, baseline: float, tau: float = TAU) -> float:
    """1 / (1 + exp((s - s0) / (tau s0))): 0.5 at the score s0 without any distiller, above where it is better; 0 for a score that is no
    number."""
    if not math.isfinite(score):
        return 0.0
    return 1 / (1 + math.exp(min((score - baseline) / (tau * baseline), 700.0)))
