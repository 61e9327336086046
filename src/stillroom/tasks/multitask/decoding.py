"""Files of targets, decoded: PNG, NumPy and MATLAB files, to class numbers, metres, unit vectors, edges."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from stillroom.errors import InputError, one_of
from stillroom.tasks.images.folders import printable
from stillroom.tasks.images.label_maps import IGNORE, LabelSpace
from stillroom.tasks.images.masks import read_mask
from stillroom.tasks.images.stores import UnreadableImage, reason_of
from stillroom.tasks.multitask.solids import changes

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001}  # metres
_AXES = {"right": (0, 1), "left": (0, -1), "down": (1, 1), "up": (1, -1), "forward": (2, 1), "backward": (2, -1)}
INNER_AXES = "right+down+forward"
_LENS = 0.01  # metres: nothing is seen as near as that
_UNIT = (0.6, 1.4)  # lengths of a vector that was written with eight bits
PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
_PART_OF = {  # PASCAL-Part's names, without the side
    **dict.fromkeys(("head", "eye", "ear", "ebrow", "nose", "mouth", "hair"), 1), **dict.fromkeys(("torso", "neck"), 2), "uarm": 3,
    **dict.fromkeys(("larm", "hand"), 4), "uleg": 5, **dict.fromkeys(("lleg", "foot"), 6),
}  # fmt: skip
_SEAM = 3.0  # pixels, half of a line between two classes that is neither
_PERSON = 15  # its number in PASCAL-Part


def numbers_in(content: bytes, name: str) -> np.ndarray:
    """The array in a ``.npy`` or ``.mat`` file (its only one), or the values of an image; no array of Python objects.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    try:
        if name.lower().endswith(".npy"):
            found: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
            return found
        if name.lower().endswith(".mat"):
            arrays = _matlab(content)
            (only,) = (value for key, value in arrays.items() if not key.startswith("__"))
            return np.asarray(only)
        with Image.open(io.BytesIO(content)) as image:
            opaque = image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema() == (255, 255)
            return np.asarray(image.convert(image.mode[:-1]) if opaque else image)
    except Exception as error:  # formats' readers raise whatever they stumble over in damaged bytes
        raise UnreadableImage(f"{printable(name)}: not a readable map of numbers ({reason_of(error)})") from None


def _matlab(content: bytes) -> dict[str, Any]:
    from scipy.io import loadmat

    found: dict[str, Any] = loadmat(io.BytesIO(content), squeeze_me=True, struct_as_record=False)
    return found


def _is_array(name: str) -> bool:
    return name.lower().endswith((".npy", ".mat"))


@dataclass(frozen=True)
class Labels:
    """Class numbers.

    Args:
        space: which number means which class.
    """

    space: LabelSpace

    def __call__(self, content: bytes, name: str) -> np.ndarray:
        """uint8 [H, W]."""
        if not _is_array(name):
            return self.space.read(content, name)
        return self.space.of_numbers(numbers_in(content, name).astype(np.int64), name)


@dataclass(frozen=True)
class Depth:
    """Depth: 0, what is not finite, and what lies beyond `most` is not known.

    Args:
        unit: metres of a step in the files.
        most: metres; None for no bound.
        missing: a further number that means that nothing was measured.
    """

    unit: float
    most: float | None = None
    missing: float | None = None

    def __call__(self, content: bytes, name: str) -> np.ndarray:
        """Metres, float32 [1, H, W]."""
        steps = numbers_in(content, name)
        if steps.ndim != 2:
            raise InputError("data", f"{printable(name)} of shape {list(steps.shape)}", "depth with one number a pixel")
        if steps.dtype == np.uint8 and not UNITS["mm"] < self.unit < UNITS["m"]:  # up to 255 m in steps of 1, or up to 26 cm
            got = f"{printable(name)}, a map of 8 bits in {'metres' if self.unit >= UNITS['m'] else 'millimetres'}"
            raise InputError("data", got, "the metres of a step: unit=0.04 or the like")
        depth = steps.astype(np.float32) * np.float32(self.unit)
        known = np.isfinite(depth) & (depth > 0) & (depth <= (np.inf if self.most is None else self.most))
        known &= steps != self.missing if self.missing is not None else True
        return np.where(known, depth, np.float32(np.nan))[None]


@dataclass(frozen=True)
class Normals:
    """Directions: n = 2 rgb / 255 - 1 of 8 bits, else as they are; brought to length 1. Without a length that is near 1 it is not known.

    Args:
        axes: where the three components point: ``right+down+forward``.

    Raises:
        InputError: three words of which two mean one axis.
    """

    axes: str = INNER_AXES
    _order: tuple[tuple[int, int], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        words = self.axes.split("+")
        order = [_AXES[one_of("axes", word, _AXES)] for word in words]
        if sorted(axis for axis, _ in order) != [0, 1, 2]:
            raise InputError("axes", self.axes, f"one word of each axis, e.g. {INNER_AXES} or right+up+backward")
        object.__setattr__(self, "_order", tuple(order))

    def __call__(self, content: bytes, name: str) -> np.ndarray:
        """x right, y down, z forward; float32 [3, H, W]."""
        found = numbers_in(content, name)
        if found.ndim != 3 or 3 not in (found.shape[0], found.shape[-1]):
            raise InputError("data", f"{printable(name)} of shape {list(found.shape)}", "normals with three numbers a pixel")
        vectors = np.moveaxis(found, -1, 0) if found.shape[-1] == 3 else found
        vectors = vectors.astype(np.float32) * (2 / 255) - 1 if found.dtype == np.uint8 else vectors.astype(np.float32)
        length = np.linalg.norm(vectors, axis=0)
        known = np.isfinite(length) & (length > _UNIT[0]) & (length < _UNIT[1])
        unit = np.where(known, vectors / np.where(known, length, 1), np.float32(np.nan))
        turned = np.empty_like(unit)
        for component, (axis, sign) in zip(unit, self._order, strict=True):
            turned[axis] = sign * component
        return turned.astype(np.float32)


@dataclass(frozen=True)
class Mask:
    """1 where something is: an edge, an object that stands out. Of an image what is brighter than half, see `masks.read_mask`."""

    def __call__(self, content: bytes, name: str) -> np.ndarray:
        """uint8 [H, W]."""
        if _is_array(name):
            values = np.nan_to_num(numbers_in(content, name))
            return (values > (0.5 if values.max(initial=0) <= 1 else 127)).astype(np.uint8)
        return (read_mask(io.BytesIO(content), name)[0].numpy() > 127).astype(np.uint8)


@dataclass(frozen=True)
class EdgesOf:
    """Edges where the numbers of another file change. Between two classes there is mostly a line that is neither: it is taken for the
    nearer one. What is further from any class is not known.

    Args:
        labels: reads the other file; None for any numbers.
    """

    labels: Labels | None = None

    def __call__(self, content: bytes, name: str) -> np.ndarray:
        """uint8 [H, W]."""
        if self.labels is None:
            return changes(numbers_in(content, name)).astype(np.uint8)
        from scipy.ndimage import distance_transform_edt

        numbers = self.labels(content, name)
        far, nearest = distance_transform_edt(numbers == IGNORE, return_indices=True)
        return np.where(far > _SEAM, IGNORE, changes(numbers[tuple(nearest)])).astype(np.uint8)


@dataclass(frozen=True)
class HumanParts:
    """PASCAL-Part's MATLAB files: six parts of persons and the background; a picture without a person that has parts is not known."""

    def __call__(self, content: bytes, name: str) -> np.ndarray:
        """uint8 [H, W]."""
        if not name.lower().endswith(".mat"):
            return Labels(LabelSpace(PARTS))(content, name)
        try:
            objects = np.atleast_1d(_matlab(content)["anno"].objects)
            found = np.zeros(objects[0].mask.shape, np.uint8)
            persons = [one for one in objects if int(one.class_ind) == _PERSON and np.size(one.parts)]
            for part in (part for person in persons for part in np.atleast_1d(person.parts)):
                found[np.asarray(part.mask, bool)] = _part_number(str(part.part_name))
        except Exception as error:  # whatever is missing in such a file
            raise UnreadableImage(f"{printable(name)}: not PASCAL-Part's anno.objects ({type(error).__name__}: {error})") from None
        return found if persons else np.full_like(found, IGNORE)


def _part_number(name: str) -> int:
    """1 to 6; a name may begin with the side, l or r."""
    return _PART_OF.get(name) or _PART_OF[name[1:]]


def doubts(kind: str, truths: Sequence[np.ndarray], unit: float) -> str:
    """What speaks against how some decoded truths were declared; empty where nothing does.

    Args:
        kind: of the target.
        truths: as they were decoded.
        unit: of depth, in metres.
    """
    if kind in ("depth", "normals"):
        known = [one[:, np.isfinite(one).all(0)] for one in truths]
        pixels = sum(one[0].size for one in truths)
        values = np.concatenate(known, 1) if known else np.empty((1, 0))
        if kind == "depth" and values.size and unit >= UNITS["m"] and np.median(values) > 100:
            return f"depth with a median of {np.median(values):.0f} m"
        if kind == "depth" and values.size and np.median(values) < _LENS:
            return f"depth with a median of {1000 * np.median(values):.2g} mm"
        if kind == "normals" and pixels and values.shape[1] < pixels / 10:
            return "vectors of which nine in ten are not of length 1"
    return ""
