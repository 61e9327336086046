"""Pictures with the truth of several targets: in files or in memory; and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from stillroom.errors import InputError
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.folders import printable
from stillroom.tasks.images.label_maps import IGNORE, content_of_map
from stillroom.tasks.images.stores import FileImages, Images, MemoryImages

if TYPE_CHECKING:
    from typing_extensions import Self

# content and name of a file -> uint8 [H, W] of labels, float32 [1 or 3, H, W] of what is measured
Decode = Callable[[bytes, str], np.ndarray]


class DenseImages(Images, Protocol):
    """Pictures, whose labels are all 0, and the truth of their pixels."""

    def truth(self, index: int, target: str) -> np.ndarray | None:
        """Of one target, as `Decode` gives it, unknown pixels being `IGNORE` or NaN; None where there is none."""


class DenseFiles(FileImages):
    """Pictures in files; see `DenseImages`.

    Args:
        store: where they lie.
        names: of the pictures.
        files: of each target the names of its files, "" where there is none.
        decode: of each target.
    """

    def __init__(self, store: Store, names: Sequence[str], files: Mapping[str, Sequence[str]], decode: Mapping[str, Decode]) -> None:
        super().__init__(store, names, np.zeros(len(names), np.int64))
        self.files, self.decode = {target: list(some) for target, some in files.items()}, dict(decode)

    def take(self, indices: np.ndarray, labels: np.ndarray | None = None) -> Self:
        """As `MemoryImages.take`."""
        some = super().take(indices, labels)
        some.files = {target: [names[i] for i in indices.tolist()] for target, names in self.files.items()}
        return some

    def truth(self, index: int, target: str) -> np.ndarray | None:
        """As `DenseImages.truth`."""
        name = self.files[target][index]
        return self.decode[target](content_of_map(self.store, name), name) if name else None


class DenseMemory(MemoryImages):
    """Pictures in memory; see `DenseImages`.

    Args:
        pixels: uint8 [N, 3, H, W].
        truths: of each target [N, ...].
        names: of the pictures.
    """

    def __init__(self, pixels: Tensor, truths: Mapping[str, np.ndarray], names: Sequence[str]) -> None:
        super().__init__(pixels, np.zeros(len(pixels), np.int64), names)
        self.truths = dict(truths)

    def take(self, indices: np.ndarray, labels: np.ndarray | None = None) -> DenseMemory:
        """As `MemoryImages.take`."""
        some = super().take(indices, labels)
        return DenseMemory(some.pixels, {target: values[indices] for target, values in self.truths.items()}, some.names)

    def truth(self, index: int, target: str) -> np.ndarray | None:
        """As `DenseImages.truth`."""
        found: np.ndarray = self.truths[target][index]
        return found


def truth_of(images: DenseImages, index: int, target: str, size: tuple[int, int], *, labelled: bool, channels: int) -> np.ndarray:
    """The truth of a picture of this height and width; all unknown where there is none.

    Raises:
        InputError: it has another size.
    """
    found = images.truth(index, target)
    if found is None:
        return np.full(size, IGNORE, np.uint8) if labelled else np.full((channels, *size), np.nan, np.float32)
    if found.shape[-2:] != size:
        name = printable(str(images.name(index)))
        got = f"{name} of {size[1]} x {size[0]} pixels, whose {target} has {found.shape[-1]} x {found.shape[-2]}"
        raise InputError("data", got, "every target in its picture's size")
    return found


class DenseBatch(NamedTuple):
    """Pictures to train on, cut to one size.

    Attributes:
        images: float32 [B, 3, H, W], normalised.
        truths: by target uint8 [B, H, W], `IGNORE` where it is not known, or float32 [B, 1 or 3, H, W], NaN there.
        ids: int64 [B], each picture's index in its data set.
        views: int64 [B], which recorded view each picture is in; None for others.
        valid: uint8 [B, 1, H, W], 1 where there is a picture and no padding.
    """

    images: Tensor
    truths: dict[str, Tensor]
    ids: Tensor
    views: Tensor | None = None
    valid: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """What a network reads."""
        return self.images


class WholeBatch(NamedTuple):
    """Whole pictures of any sizes to be measured on.

    Attributes:
        images: float32 [3, H, W] each, normalised, resized for the network.
        truths: of each picture, by target as in `DenseBatch` without the batch, in the picture's own size.
        ids: int64 [B].
    """

    images: Sequence[Tensor]
    truths: Sequence[dict[str, Tensor]]
    ids: Tensor

    @property
    def inputs(self) -> Sequence[Tensor]:
        """The pictures."""
        return self.images

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each picture's truth."""
        shapes = [next(iter(truths.values())).shape for truths in self.truths]
        return [(int(shape[-2]), int(shape[-1])) for shape in shapes]
