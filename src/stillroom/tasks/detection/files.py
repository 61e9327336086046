"""What image files are, told by their first bytes: their size once they are upright, and how an annotation's boxes are turned with them."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from stillroom.errors import InputError
from stillroom.tasks.images.annotations import Notes
from stillroom.tasks.images.files import Folder
from stillroom.tasks.images.stores import FileImages

_ORIENTATION = 0x0112  # EXIF's tag: 1 is upright, 2 to 8 are the seven other ways to turn and mirror
_SIDEWAYS = range(5, 9)


class Look(NamedTuple):
    """One image file.

    Attributes:
        shape: (height, width) once it is upright.
        orientation: EXIF's, from 1 to 8.
        mode: Pillow's name of its channels, e.g. ``L`` for grey.
    """

    shape: tuple[int, int]
    orientation: int
    mode: str


def look_at(images: FileImages) -> list[Look]:
    """Every file's head, without decoding its pixels."""

    def one(name: str) -> Look:
        place = images.store.root / name if isinstance(images.store, Folder) else io.BytesIO(images.store.read(name))
        with Image.open(place) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
            width, height = image.size
            shape = (width, height) if orientation in _SIDEWAYS else (height, width)
            return Look(shape, orientation if orientation in range(1, 9) else 1, image.mode)

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
        warnings.filterwarnings("ignore", module=r"PIL\..*")  # on EXIF data and the like that do not hinder reading
        return list(threads.map(one, images.names))


def turned(boxes_G4: np.ndarray, look: Look, said: tuple[int, int], name: str, argument: str) -> np.ndarray:
    """Boxes of an annotation that gives another size than the upright image's: where it is the file's, on its side, in the upright image.

    An annotation that gives the image's size as it lies in the file has its boxes there; any other has them in the upright image.

    Args:
        boxes_G4: (x1, y1, x2, y2) as annotated.
        look: at the file.
        said: the (height, width) that the annotation gives.
        name, argument: of the file, and what error messages call the data.

    Raises:
        InputError: the annotation gives another size than the file has: its boxes would lie elsewhere.
    """
    height, width = look.shape
    if look.orientation not in _SIDEWAYS or said != (width, height):
        raise InputError(argument, f"{name} of {width} x {height} pixels", f"{said[1]} x {said[0]}, as its annotation says")
    x1, y1, x2, y2 = boxes_G4[:, [1, 0, 3, 2]].T
    if look.orientation in (6, 7):
        x1, x2 = width - x2, width - x1
    if look.orientation in (7, 8):
        y1, y2 = height - y2, height - y1
    return np.stack((x1, y1, x2, y2), 1)


def note_looks(notes: Notes, names: Sequence[str], looks: Sequence[Look]) -> None:
    """What reading the files does to them: which are turned upright, and which become RGB."""
    for name, look in zip(names, looks, strict=True):
        notes.add("images turned upright, as their EXIF orientation says", name, look.orientation > 1)
        notes.add(f"images of the mode {look.mode}, read as RGB", name, look.mode != "RGB")
