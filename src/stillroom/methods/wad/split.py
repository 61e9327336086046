"""Which images are labelled, and which lie among the unlabelled: the paper's benchmark under class distribution mismatch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stillroom.engine.loading import sample_order
from stillroom.errors import InputError

_LABELLED, _UNKNOWN = 101, 102  # streams of random numbers


class Split(NamedTuple):
    """Indices of training images, int64, sorted.

    Attributes:
        labelled: of target classes, with labels.
        unlabelled: of target and of unknown classes.
    """

    labelled: np.ndarray
    unlabelled: np.ndarray


def unknown_count(target_count: int, mismatch: float) -> int:
    """ceil(m T / (1 - m)): how many unknown images make a share m of the unlabelled, beside T of target classes.

    In floating point, as the released code has it: 36 801 rather than 36 800 for m = 0.8 and T = 9 200.

    Raises:
        InputError: the share is not in [0, 1).
    """
    if not 0 <= mismatch < 1:
        raise InputError("mismatch", mismatch, "a share from 0 and below 1")
    return math.ceil(mismatch * target_count / (1 - mismatch))


def mismatch_split(
    labels: np.ndarray, targets: Sequence[int], labelled: int, mismatch: float, *, even: bool = False, seed: int = 0
) -> Split:
    """Draws the labelled images from those of target classes, and unknown ones to lie among the rest.

    Where there are fewer unknown images than the mismatch asks for, all of them are taken.

    Args:
        labels: class of each training image, int [N].
        targets: the classes to be learned; all others are unknown.
        labelled: how many images have labels.
        mismatch: share of unknown images among the unlabelled.
        even: draw equally many (up to one) of each target class, instead of from all of their images together.
        seed: of the draw.

    Raises:
        InputError: a target class gets no labelled image; no more than `labelled` images are of target classes; the mismatch is not in
            [0, 1), or is above 0 where every class is a target.
    """
    is_target = np.isin(labels, targets)
    of_target = _shuffled(np.flatnonzero(is_target), seed, _LABELLED)
    if not len(targets) <= labelled <= len(of_target):
        raise InputError("labelled", labelled, f"a number from {len(targets)}, one for each class, to {len(of_target)}, all there are")
    if even:
        place = np.empty(len(of_target), np.int64)
        for target in targets:
            of_class = labels[of_target] == target
            place[of_class] = np.arange(of_class.sum())
        of_target = of_target[np.argsort(place, kind="stable")]
    chosen, rest = np.sort(of_target[:labelled]), of_target[labelled:]
    if missing := [target for target in targets if target not in set(labels[chosen].tolist())]:
        raise InputError("labelled", labelled, f"more, or another seed: class {missing[0]} has no labelled image in this draw")
    unknown = _shuffled(np.flatnonzero(~is_target), seed, _UNKNOWN)[: unknown_count(len(rest), mismatch)]
    if mismatch > 0 and not len(unknown):
        raise InputError("mismatch", mismatch, "0, since every image is of a target class or labelled")
    return Split(chosen, np.sort(np.concatenate([rest, unknown])))


def _shuffled(indices: np.ndarray, seed: int, stream: int) -> np.ndarray:
    return indices[sample_order(seed, stream, len(indices))]
