"""Arguments of image data, as they are read whatever the task: statistics of channels; and how many processors there are."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from stillroom.engine.teacher import Renormalise, Resized
from stillroom.errors import InputError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def per_channel(argument: str, given: Sequence[float] | None, default: Sequence[float]) -> tuple[float, ...]:
    """Three finite numbers, those that were given or else the default."""
    values = default if given is None else given
    if len(values) != 3 or not np.isfinite(values).all():
        raise InputError(argument, list(values), "three numbers, one per channel")
    return tuple(float(value) for value in values)


def statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None, default: tuple[Sequence[float], Sequence[float]], *, of: str = ""
) -> Statistics:
    """What images are normalised with: the mean and the standard deviation that were given, or else the default's.

    Args:
        mean, std, default: three numbers each.
        of: what stands before "mean" and "std" in the names of the arguments.
    """
    found = per_channel(f"{of}mean", mean, default[0]), per_channel(f"{of}std", std, default[1])
    if min(found[1]) <= 0:
        raise InputError(f"{of}std", list(found[1]), "numbers above 0")
    return found


def renormalisation(
    own: Statistics,
    teacher_mean: Sequence[float] | None,
    teacher_std: Sequence[float] | None,
    *,
    size: tuple[int, int] | None = None,
    interpolation: str = "bilinear",
) -> Renormalise | None:
    """For a teacher that was trained with other statistics than the student's, `own`, or other sizes; None where nothing is given.

    Args:
        own, teacher_mean, teacher_std: three numbers each.
        size: height and width of its images in pixels.
        interpolation: with which they are brought to it; what there is no such resizing for is the nearest there is.
    """
    if teacher_mean is None and teacher_std is None and size is None:
        return None
    statistics = per_channel("teacher_mean", teacher_mean, own[0]), per_channel("teacher_std", teacher_std, own[1])
    if size is None:
        return Renormalise(*own, *statistics)
    return Resized(*own, *statistics, size, {"nearest": "nearest", "bilinear": "bilinear"}.get(interpolation, "bicubic"))


def sides(argument: str, given: int | Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels, of a number or of two."""
    found = (given, given) if isinstance(given, int) else tuple(given)
    if len(found) != 2 or min(found) < 1:
        raise InputError(argument, given, "a number of pixels of at least 1, or height and width")
    return found[0], found[1]


def cpus() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
