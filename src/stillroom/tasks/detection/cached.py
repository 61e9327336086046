"""A cache of a detector's answers as the teacher of detection."""

from __future__ import annotations

from pathlib import Path

import torch

from stillroom.engine.cache import CACHE, CachedTeacher
from stillroom.engine.distiller import Distiller
from stillroom.errors import InputError
from stillroom.tasks.detection.data import DetectionData

EXACT = ("boxes",)  # half precision would place a box in a large image to the pixel, or worse


def cached_teacher(spec: str, data: DetectionData) -> CachedTeacher:
    """The teacher of a specification ``cache:FOLDER``.

    Raises:
        InputError: no finished cache of a detector's answers to this very data; the message names what differs.
    """
    cached = CachedTeacher(Path(spec.removeprefix(CACHE)), data.cache_key)
    if not set(cached.answer) >= {"logits", "boxes"}:
        raise InputError("teacher", f"{cached.folder}, a cache of {', '.join(cached.answer)}", "one of a detector's logits and boxes")
    return cached


def seen(distiller: Distiller, data: DetectionData) -> DetectionData:
    """The data as the distiller trains on them: what its teacher's cache has answers to, or what the method shows."""
    if isinstance(distiller.teacher, CachedTeacher):
        return data.replaying(distiller.teacher.views)
    shown: DetectionData = distiller.training_data(data)
    return shown


def try_cache(distiller: Distiller, data: DetectionData) -> None:
    """The losses of one image: a network shows its layout when a distiller is made, a cache of its answers only here.

    Raises:
        InputError: the cache is of a detector with other positions or classes than the student, or lacks what the method reads.
    """
    if isinstance(distiller.teacher, CachedTeacher):
        batch, _ = next(iter(data.every_view(distiller.teacher.views, batch_size=1)))
        with torch.no_grad():
            distiller.losses(batch)


def views_of(data: DetectionData, asked: int | None) -> int:
    """How many views of an image a cache has answers to: with mirrored images two, the image and its mirror image; else one.

    Raises:
        InputError: another number was asked for.
    """
    count = 2 if data.flip else 1
    if asked not in (None, count):
        raise InputError(
            "views", asked, f"{count}: " + ("an image and its mirror image" if data.flip else "nothing about an image is random")
        )
    return count
