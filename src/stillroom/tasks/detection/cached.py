"""A cache of a detector's answers as the teacher of detection."""

from __future__ import annotations

from pathlib import Path

from stillroom.engine.cache import CACHE, CachedTeacher
from stillroom.engine.distiller import Distiller
from stillroom.engine.recorder import looking_on
from stillroom.errors import InputError
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.supervised import check_answers

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
    """The data as the distiller trains on them: what its teacher's cache has answers to, or what the method shows.

    Raises:
        InputError: the cache is of a detector with other positions or classes than the student.
    """
    if not isinstance(distiller.teacher, CachedTeacher):
        shown: DetectionData = distiller.shown(data)
        return shown
    example = data.example_inputs()
    with looking_on(distiller.student):
        check_answers(distiller.student(example), distiller.teacher(example))
    return data.replaying(distiller.teacher.views)


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
