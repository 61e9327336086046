"""A cache of a detector's answers as the teacher of detection."""

from __future__ import annotations

from stillroom.engine.cache import CachedTeacher
from stillroom.errors import InputError
from stillroom.tasks.detection.data import DetectionData

EXACT = ("boxes",)  # half precision would place a box in a large image to the pixel, or worse


def check_answer(teacher: CachedTeacher) -> None:
    """Whether a cache is of a detector.

    Raises:
        InputError: its answers are not logits and boxes.
    """
    if not set(teacher.answer) >= {"logits", "boxes"}:
        raise InputError("teacher", f"{teacher.folder}, a cache of {', '.join(teacher.answer)}", "one of a detector's logits and boxes")


def views_of(data: DetectionData, asked: int | None) -> int:
    """How many views of an image a cache has answers to: with mirrored images two, the image and its mirror image; else one.

    Raises:
        InputError: another number was asked for.
    """
    count, why = (2, "an image and its mirror image") if data.augment == "mirror" else (1, "nothing about an image is random")
    if asked not in (None, count):
        raise InputError("views", asked, f"{count}: {why}")
    return count
