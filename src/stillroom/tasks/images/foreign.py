"""Images as a teacher from elsewhere expects them: by what was typed, or else by its own configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stillroom.engine.teacher import Renormalise
from stillroom.tasks.images.arguments import Statistics, renormalisation
from stillroom.tasks.images.configurations import Configuration


def teacher_inputs(
    data: Any, found: Sequence[Configuration], *, resized: bool, size: tuple[int, int] | None = None
) -> tuple[Renormalise | None, list[str]]:
    """What makes a teacher's inputs of the student's, None where they are the same; and what to tell of it, a clause each.

    Args:
        data: with `mean`, `std`, `image_size`, and what was typed: `teacher_mean`, `teacher_std`, `teacher_image_size`, each may be None.
        found: configurations of the teacher, the nearest first.
        resized: its weights are known to be those of another size of images.
        size: the only height and width that it reads, where there is such.
    """
    ours: Statistics = (data.mean, data.std)
    own = next((one for one in found if one.statistics), None)
    theirs = ours if own is None or own.statistics is None else own.statistics
    typed = data.teacher_mean is not None or data.teacher_std is not None
    wanted = tuple(data.teacher_mean or theirs[0]), tuple(data.teacher_std or theirs[1])
    notes = [
        f"{one.source} says otherwise: {_statistics(one.statistics)}"
        for one in found
        if one.statistics and (typed or one is not own) and not _same(one.statistics, wanted)
    ]
    if own is not None and not typed and not _same(theirs, ours):
        notes = [f"its images are normalised as {own.source} says: {_statistics(theirs)}", *notes]
    size = data.teacher_image_size or (None if size in (None, (data.image_size,) * 2) else size)
    sized = next((one for one in found if one.size), None)
    smoothing = next((one.interpolation for one in found if one.interpolation), None) or "bilinear"
    if size is not None:
        notes.append(f"its images are the student's crops, resized to {size[0]} x {size[1]} pixels ({smoothing})")
    elif resized and sized is not None and sized.size is not None and sized.size != (data.image_size,) * 2:
        trained = f"{sized.size[0]} x {sized.size[1]}"
        notes.append(f"{sized.source} says {trained} pixels, and it is given {data.image_size} (--teacher-image-size {sized.size[0]})")
    crop = next((one.crop for one in found if one.crop and one.crop < 1), None)
    if crop is not None and notes:
        notes.append(f"it sees the student's crops, not its own evaluation's {100 * crop:.1f} % of an image")
    if typed or not _same(theirs, ours):
        return renormalisation(ours, *wanted, size=size, interpolation=smoothing), notes
    return renormalisation(ours, None, None, size=size, interpolation=smoothing), notes


def _same(one: Statistics, other: Statistics) -> bool:
    return np.allclose(one, other, atol=1e-3)


def _statistics(found: Statistics | None) -> str:
    mean, std = found or ((), ())
    return f"mean {[round(value, 4) for value in mean]}, std {[round(value, 4) for value in std]}"
