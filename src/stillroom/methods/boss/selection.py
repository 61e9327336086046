"""Which earlier trials teach a new one and give it its first weights (section 2 of BOSS's specification)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.errors import InputError

ENOUGH = 2  # trials: one for the student, another one for the teacher


@dataclass(frozen=True)
class Drawn:
    """What a trial starts from, as places in the list of candidates; None for nothing.

    Args:
        student: whose weights it begins with.
        teacher: who teaches it.
    """

    student: int | None
    teacher: int | None


def ranked(scores: Sequence[float] | np.ndarray, k: int, finished: Sequence[bool] | np.ndarray | None = None) -> np.ndarray:
    """The best `k` trials, the best first, int64: their places. Of equal scores the earlier trial is the better.

    Args:
        scores: of all trials, larger is better: the warm-up's in their order, then the others in theirs.
        k: how many at most.
        finished: which of them ended with a score; by default all.
    """
    scores = np.asarray(scores, np.float64)
    places = np.arange(len(scores)) if finished is None else np.flatnonzero(np.asarray(finished, bool))
    found: np.ndarray = places[np.argsort(-scores[places], kind="stable")][:k]
    return found


def draw(pool: Sequence[int] | np.ndarray, number: int) -> Drawn:
    """Two different trials of the pool, each pair as likely: the first for the student, the second for the teacher.

    Python's own generator, as in the paper's code, so that the draws are the same.

    Args:
        pool: places of the best trials, the best first.
        number: of the new trial in its own study; the seed.

    Raises:
        InputError: fewer than two trials.
    """
    if len(pool) < ENOUGH:
        raise InputError("trials", f"{len(pool)} completed so far", "two completed trials before one can be taught")
    student, teacher = random.Random(number).sample(range(len(pool)), 2)
    return Drawn(int(pool[student]), int(pool[teacher]))


def draw_teacher(pool: Sequence[int] | np.ndarray, number: int) -> Drawn:
    """One trial of the pool, which teaches a student that starts from random numbers.

    Raises:
        InputError: no trial.
    """
    if not len(pool):
        raise InputError("trials", "none completed so far", "a completed trial before one can be taught")
    return Drawn(None, int(random.Random(number).choice(list(pool))))


def best_epoch(scores: Sequence[float]) -> tuple[float, int, list[bool]]:
    """A trial's score: that of its best epoch.

    Args:
        scores: after each epoch, larger is better.

    Returns:
        The score, the epoch counted from 0, and after which epochs the kept weights were replaced: those strictly better than all before.
    """
    best, kept = -1, []
    for epoch, score in enumerate(scores):
        kept.append(best < 0 or score > scores[best])
        best = epoch if kept[-1] else best
    return scores[best], best, kept


@dataclass(frozen=True)
class Planned:
    """One trial of a whole search, run one after the other.

    Args:
        main: whether it is taught by earlier ones.
        number: in the study of its phase.
        random: whether its proposal is drawn uniformly, since its study has too few finished trials yet.
    """

    main: bool
    number: int
    random: bool


def planned(total: int, warmup: int, startup: int) -> list[Planned]:
    """The trials of a search in their order: the two phases have studies, and so histories, of their own."""
    phases = [(False, number) for number in range(min(warmup, total))] + [(True, number) for number in range(max(total - warmup, 0))]
    return [Planned(main, number, number < startup) for main, number in phases]
