"""Pictures of nuclei with what is known of each: in files, in arrays or drawn; and batches of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stillroom.errors import InputError
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.stores import FileImages, Images, UnreadableImage
from stillroom.tasks.nuclei.instances import Outlining

if TYPE_CHECKING:
    from typing_extensions import Self


class NucleiMap(NamedTuple):
    """The nuclei of a picture.

    Attributes:
        instances: which nucleus each pixel belongs to, int32 [H, W], 1 to K; 0 is background.
        types: of each nucleus, int64 [K + 1], 1 to C; the first is the background's 0.
    """

    instances: np.ndarray
    types: np.ndarray

    @property
    def type_map(self) -> np.ndarray:
        """The type of each pixel, int64 [H, W]."""
        found: np.ndarray = self.types[self.instances]
        return found

    def cut(self, rows: slice, columns: slice) -> NucleiMap:
        """A part of the picture; nuclei that are not in it keep their numbers."""
        return NucleiMap(self.instances[rows, columns], self.types)


ReadMap = Callable[[str], NucleiMap]


class NucleiImages(Images, Protocol):
    """Pictures, whose labels are all 0, and their nuclei.

    Attributes:
        labelled: which pictures have nuclei that are known, bool [N].
    """

    labelled: np.ndarray

    def take(self, indices: np.ndarray) -> NucleiImages:
        """The pictures of the given indices, renumbered from 0."""

    def nuclei(self, index: int) -> NucleiMap:
        """The nuclei of a labelled picture, in its own size."""


class NucleiFiles(FileImages):
    """Pictures in files; see `NucleiImages`.

    Args:
        store: where they lie.
        names: of the pictures.
        maps: names of the files of their nuclei; empty where nothing is known.
        read: the nuclei of such a file.
        scale: that pictures and maps are resized by.
    """

    def __init__(self, store: Store, names: Sequence[str], maps: Sequence[str], read: ReadMap, scale: float = 1.0) -> None:
        super().__init__(store, names, np.zeros(len(names), np.int64))
        self.maps, self.read, self.scale = list(maps), read, scale
        self.labelled = np.array([bool(name) for name in maps], bool)

    def take(self, indices: np.ndarray, labels: np.ndarray | None = None) -> Self:
        """As `NucleiImages.take`."""
        some = super().take(indices, labels)
        some.maps, some.labelled = [self.maps[i] for i in indices.tolist()], self.labelled[indices]
        return some

    def image(self, index: int) -> Image.Image:
        """One image, decoded now."""
        image = super().image(index)
        size = self._scaled((image.height, image.width))
        return image if size == (image.height, image.width) else image.resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=2.0)

    def nuclei(self, index: int) -> NucleiMap:
        """As `NucleiImages.nuclei`.

        Raises:
            InputError: the map has another size than the picture, or names classes that there are not.
        """
        found = self.read(self.maps[index])
        height, width = found.instances.shape
        rows, columns = self._scaled((height, width))
        instances = found.instances[np.ix_(_nearest(height, rows), _nearest(width, columns))]
        shown = self.image(index)
        if (shown.height, shown.width) != instances.shape:
            whole = super().image(index)
            got = f"{self.names[index]} of {whole.width} x {whole.height} pixels, whose nuclei have {width} x {height}"
            raise InputError("data", got, "maps of their pictures' sizes")
        return numbered(instances, found.types)

    def _scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        return max(1, round(size[0] * self.scale)), max(1, round(size[1] * self.scale))


class NucleiArrays:
    """Pictures in arrays, which may lie on disk; see `NucleiImages`.

    Args:
        pixels: [N, H, W, 3] each, of values from 0 to 255.
        read: the nuclei of a picture, by its number.
        names: of the pictures.
    """

    def __init__(self, pixels: Sequence[np.ndarray], read: Callable[[int], NucleiMap], names: Sequence[str]) -> None:
        self.pixels, self.read, self.names = list(pixels), read, list(names)
        self.places = [(part, row) for part, array in enumerate(pixels) for row in range(len(array))]
        self.numbers = np.arange(len(self.places))
        self.labels, self.labelled = np.zeros(len(self.places), np.int64), np.ones(len(self.places), bool)

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, indices: np.ndarray, labels: np.ndarray | None = None) -> Self:
        """As `NucleiImages.take`."""
        some = copy.copy(self)
        some.numbers, some.names = self.numbers[indices], [self.names[i] for i in indices.tolist()]
        some.labels, some.labelled = self.labels[indices], self.labelled[indices]
        return some

    def image(self, index: int) -> Tensor:
        """One image, uint8 [3, H, W]."""
        part, row = self.places[int(self.numbers[index])]
        pixels_HWC = np.array(self.pixels[part][row])
        if not np.isfinite(pixels_HWC).all():
            raise UnreadableImage(f"{self.names[index]}: values that are no numbers")
        return torch.from_numpy(pixels_HWC.round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1)

    def nuclei(self, index: int) -> NucleiMap:
        """As `NucleiImages.nuclei`."""
        return self.read(int(self.numbers[index]))

    def name(self, index: int) -> str:
        """For reports."""
        return self.names[index]


def numbered(instances_HW: np.ndarray, types_of: np.ndarray) -> NucleiMap:
    """Nuclei numbered from 1 without gaps.

    Args:
        instances_HW: numbers in any order, 0 for background.
        types_of: the type of each number.
    """
    present, inverse = np.unique(instances_HW, return_inverse=True)
    if len(present) and present[0] != 0:
        present, inverse = np.concatenate(([0], present)), inverse + 1
    return NucleiMap(inverse.reshape(instances_HW.shape).astype(np.int32), np.where(present > 0, types_of[present], 0))


def _nearest(length: int, wanted: int) -> np.ndarray:
    """Which of `length` rows each of the `wanted` ones is."""
    return ((np.arange(wanted) + 0.5) * length / wanted).astype(np.int64)


def distances(instances_HW: np.ndarray) -> np.ndarray:
    """Of each nucleus pixel the horizontal and the vertical distance to its nucleus's centre, float32 [2, H, W]; 0 in the background.

    Scaled to [-1, 1] by the nucleus's extent on either side of its centre.
    """
    found = np.zeros((2, *instances_HW.shape), np.float32)
    y, x = np.nonzero(instances_HW)
    if not len(y):
        return found
    _, which = np.unique(instances_HW[y, x], return_inverse=True)
    count = np.bincount(which)
    for axis, at in enumerate((x, y)):
        offset = at - (np.bincount(which, at) / count)[which]
        extents = np.zeros((2, len(count)))
        for side, sign in enumerate((-1, 1)):
            np.maximum.at(extents[side], which, sign * offset)
        extent = extents[(offset > 0).astype(np.int64), which]
        found[axis, y, x] = np.divide(offset, extent, out=np.zeros_like(offset), where=extent > 0)
    return found


class NucleiBatch(NamedTuple):
    """Pictures to train on, cut to one size.

    Attributes:
        images: float32 [B, 3, S, S], normalised.
        types: int64 [B, S, S], the type of each pixel, 0 for background; all background where nothing is known.
        distances: float32 [B, 2, S, S], see `distances`.
        ids: int64 [B], each picture's index in its data set.
    """

    images: Tensor
    types: Tensor
    distances: Tensor
    ids: Tensor

    @property
    def inputs(self) -> Tensor:
        """What a network reads."""
        return self.images

    @property
    def nuclei(self) -> Tensor:
        """1 in nuclei, else 0; int64 [B, S, S]."""
        return (self.types > 0).long()


class WholeBatch(NamedTuple):
    """Whole pictures of any sizes to be measured on, by sliding windows.

    Attributes:
        images: float32 [3, H, W] each, normalised.
        instances: int32 [H, W] each.
        types: int64 [K + 1] each, see `NucleiMap`.
        ids: int64 [B].
        window, stride: of the windows, in pixels.
        outlining: how nuclei are made of a network's maps.
    """

    images: Sequence[Tensor]
    instances: Sequence[Tensor]
    types: Sequence[Tensor]
    ids: Tensor
    window: int
    stride: int
    outlining: Outlining

    @property
    def inputs(self) -> Sequence[Tensor]:
        """The pictures."""
        return self.images

    def truth(self, number: int) -> NucleiMap:
        """The nuclei of a picture of the batch."""
        return NucleiMap(self.instances[number].cpu().numpy(), self.types[number].cpu().numpy())


def read_type_map(instances_HW: np.ndarray, types_HW: np.ndarray, name: str, num_classes: int) -> tuple[NucleiMap, int]:
    """Nuclei of an instance map and a map of types: each has the type of most of its pixels; also how many had pixels of several.

    Raises:
        InputError: a type beyond the classes, a nucleus without type, or maps of unlike size.
    """
    if instances_HW.shape != types_HW.shape:
        raise InputError("data", f"{name}, with maps of {list(instances_HW.shape)} and {list(types_HW.shape)}", "maps of one size")
    inside = instances_HW > 0
    beyond = types_HW[inside]
    if beyond.size and not 0 <= beyond.min() <= beyond.max() <= num_classes:
        wrong = int(beyond.max() if beyond.max() > num_classes else beyond.min())
        raise InputError("data", f"{name}, with the class {wrong}", f"classes from 1 to {num_classes} (classes=a+b+... names others)")
    ids, which = np.unique(instances_HW[inside], return_inverse=True)
    votes = np.bincount(which * (num_classes + 1) + beyond.astype(np.int64), minlength=len(ids) * (num_classes + 1))
    votes_KC = votes.reshape(len(ids), num_classes + 1)[:, 1:]
    if (without := votes_KC.sum(1) == 0).any():
        raise InputError("data", f"{name}, whose nucleus {ids[without][0]} has no class", "a class for each nucleus")
    relabelled = np.zeros(instances_HW.shape, np.int32)
    relabelled[inside] = which + 1
    types = np.concatenate(([0], votes_KC.argmax(1) + 1))
    return NucleiMap(relabelled, types), int(((votes_KC > 0).sum(1) > 1).sum())


def whole_numbers_of(array: Any, name: str) -> np.ndarray:
    """An instance map or a map of types, int64 [H, W].

    Raises:
        InputError: values that are no numbers of nuclei, or another shape.
    """
    found = np.asarray(array)
    if found.ndim != 2 or not np.isfinite(found).all() or (found != np.round(found)).any() or (found < 0).any():
        raise InputError("data", f"{name}, an array {list(found.shape)} of {found.dtype}", "whole numbers of at least 0, [H, W]")
    return found.astype(np.int64)
