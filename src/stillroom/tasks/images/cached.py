"""Random views of images, to which a cache keeps a teacher's answers."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from stillroom.engine.cache import CachedTeacher
from stillroom.engine.task import CacheableData
from stillroom.errors import InputError

_COMPARED = 8
_VIEWS = 8


class Augmented(Protocol):
    """Data whose training images are changed at random."""

    @property
    def augment(self) -> str:
        """Name of the random changes, "none" for none."""


def check_views(teacher: CachedTeacher, data: CacheableData) -> None:
    """Looks at the first views: are they what the cache has answers to?

    Raises:
        InputError: another version of the libraries draws other views from the same seeds.
    """
    loader = data.every_view(teacher.views, batch_size=_COMPARED)
    _, drawn = next(iter(loader))
    loader.end_workers()
    recorded = teacher.parameters()
    for name, values in drawn.items():
        if not np.allclose(values, recorded[name].flatten(0, 1)[: len(values)].numpy(), atol=1e-6):
            got = f"{teacher.folder}, whose random views ({name}) this version of the libraries draws otherwise"
            raise InputError("teacher", got, "a cache that is built anew")


def random_views(data: Augmented, asked: int | None) -> int:
    """How many views of an image a cache has answers to, where what is random about them is called `augment`; see `drawn_views`."""
    return drawn_views(data.augment, asked)


def drawn_views(augment: str, asked: int | None) -> int:
    """How many random views of an image a cache has answers to: as many as are asked for, by default 8; without augmentation one.

    Args:
        augment: what is random about them.
        asked: how many are asked for; None for the default.

    Raises:
        InputError: more, without augmentation.
    """
    if augment == "none" and (asked or 1) > 1:
        raise InputError("views", asked, "1: without augmentation all views of an image are the same")
    return asked if asked is not None else 1 if augment == "none" else _VIEWS
