"""Labelled images, read one at a time: in memory, in files, in another library's data set; and decoding an image file."""

from __future__ import annotations

import copy
import io
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from stillroom.engine.loading import sample_order
from stillroom.errors import InputError, StillroomError
from stillroom.tasks.images.files import Store
from stillroom.tasks.images.folders import begins_as_image, counted, printable, warn_left_out

if TYPE_CHECKING:
    from typing_extensions import Self

_DECODED = 20_000  # images of larger sets are looked at only at both ends before a run
_END = 32  # bytes, enough for the marks that formats begin and end with
_ONE_FRAME = ("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "ppm", "pgm")  # formats of one picture, or whose further ones are no pages


class UnreadableImage(StillroomError):
    """An image file that cannot be decoded; the message names it."""

    exit_code = 2


class Images(Protocol):
    """Labelled images, read one at a time.

    Attributes:
        labels: int64 [N], classes 0 .. C-1.
    """

    @property
    def labels(self) -> np.ndarray:
        """Class of each image, int64 [N]."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Tensor | Image.Image:
        """RGB: uint8 [3, H, W] or a PIL image."""
        ...

    def name(self, index: int) -> str:
        """What a report calls the image."""
        ...


class MemoryImages:
    """Images that lie in memory: `pixels` uint8 [N, 3, H, W]."""

    def __init__(self, pixels: Tensor, labels: np.ndarray, names: Sequence[str]) -> None:
        self.pixels, self.labels, self.names = pixels, labels, names

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        """One image, uint8 [3, H, W]."""
        return self.pixels[index]

    def name(self, index: int) -> str:
        """For reports: its place in the set it came from."""
        return self.names[index]

    def take(self, indices: np.ndarray, labels: np.ndarray | None = None) -> MemoryImages:
        """The images of the given indices; with labels of their own, if any are given."""
        labels = self.labels[indices] if labels is None else labels
        return MemoryImages(self.pixels[torch.from_numpy(indices)], labels, [self.names[i] for i in indices.tolist()])


class FileImages:
    """Images in files of a folder, zip, tar or table: their names in it, and their labels."""

    def __init__(self, store: Store, names: Sequence[str], labels: np.ndarray) -> None:
        self.store, self.names, self.labels = store, names, labels

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One image, decoded now."""
        return self._decoded(self.names[index])

    def take(self, indices: np.ndarray, labels: np.ndarray | None = None) -> Self:
        """As `MemoryImages.take`; of the same class, with all else that it knows."""
        some = copy.copy(self)
        some.names, some.labels = [self.names[i] for i in indices.tolist()], self.labels[indices] if labels is None else labels
        return some

    def readable(self, index: int, *, ends: bool) -> bool:
        """Whether a file can be decoded.

        Args:
            ends: be content with a JPEG or PNG that begins and ends as it should; all others are decoded.
        """
        name = self.names[index]
        try:
            if ends and _complete(*self.store.ends(name, _END)):
                return True
            self._decoded(name, coarse=True)
        except (UnreadableImage, OSError, zipfile.BadZipFile):
            return False
        return True

    def has_frames(self, index: int) -> bool:
        """Whether a file holds several pictures, of which the first alone is read. It need not be decoded for that."""
        name = self.names[index]
        if name.rpartition(".")[2].lower() in _ONE_FRAME:
            return False
        try:
            with Image.open(io.BytesIO(self.store.read(name))) as image:
                return image.format != "MPO" and bool(getattr(image, "is_animated", False))
        except Exception:  # whatever its reader met: it is left out, and said to be
            return False

    def _decoded(self, name: str, *, coarse: bool = False) -> Image.Image:
        try:
            content = self.store.read(name)
        except (OSError, zipfile.BadZipFile) as error:
            raise UnreadableImage(f"{printable(name)}: cannot be read ({error})") from None
        return read_image(io.BytesIO(content), name, coarse=coarse)

    def name(self, index: int) -> str:
        """For reports: its path."""
        return self.names[index]


class DatasetImages:
    """A torch-style data set of (image, label); image: PIL, uint8 array [H, W(, C)], or tensor [C, H, W], uint8 or float in [0, 1]."""

    def __init__(self, dataset: Any, labels: np.ndarray, split: str) -> None:
        self.dataset, self.labels, self.split = dataset, labels, split

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor | Image.Image:
        """One image, read now: RGB, PIL or uint8 [3, H, W]."""
        image = self.dataset[index][0]
        if isinstance(image, Image.Image):
            return read_image(image, self.name(index))
        pixels = torch.as_tensor(image)
        if isinstance(image, np.ndarray):
            pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
        if pixels.is_floating_point():
            if pixels.isnan().any():
                raise UnreadableImage(f"{self.name(index)}: values that are not numbers (NaN)")
            if not (pixels.min() >= 0 and pixels.max() <= 1):
                raise UnreadableImage(f"{self.name(index)}: values outside [0, 1]; leave normalising to the data's mean and std")
            pixels = (pixels * 255).round()
        elif pixels.dtype != torch.uint8:
            raise UnreadableImage(f"{self.name(index)}: {pixels.dtype} values; give uint8, or floating point in [0, 1]")
        if pixels.ndim != 3 or len(pixels) not in (1, 3):
            raise UnreadableImage(f"{self.name(index)}: shape {tuple(pixels.shape)}; give [3, H, W] or [1, H, W]")
        return pixels.to(torch.uint8).expand(3, -1, -1)

    def name(self, index: int) -> str:
        """For reports: its split and index."""
        return f"{self.split}/{index}"


class TakenImages:
    """Some images of a set, renumbered from 0; with labels of their own, if any are given."""

    def __init__(self, images: Images, indices: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.images, self.indices = images, indices
        self.labels = images.labels[indices] if labels is None else labels

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Tensor | Image.Image:
        """One image, read now: RGB, PIL or uint8 [3, H, W]."""
        return self.images.image(int(self.indices[index]))

    def name(self, index: int) -> str:
        """For reports: what the whole set calls it."""
        return self.images.name(int(self.indices[index]))


class JoinedImages:
    """Two sets of images as one, the second's numbered behind the first's."""

    def __init__(self, first: Images, second: Images) -> None:
        self.first, self.second = first, second
        self.labels = np.concatenate([first.labels, second.labels])

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor | Image.Image:
        """One image, read now: RGB, PIL or uint8 [3, H, W]."""
        images, place = self._of(index)
        return images.image(place)

    def name(self, index: int) -> str:
        """For reports: what its own set calls it."""
        images, place = self._of(index)
        return images.name(place)

    def _of(self, index: int) -> tuple[Images, int]:
        return (self.first, index) if index < len(self.first) else (self.second, index - len(self.first))


def joined(first: Images, second: Images) -> Images:
    """Two sets of images as one; in memory if both are, in one size."""
    if isinstance(first, MemoryImages) and isinstance(second, MemoryImages) and first.pixels.shape[1:] == second.pixels.shape[1:]:
        labels = np.concatenate([first.labels, second.labels])
        return MemoryImages(torch.cat((first.pixels, second.pixels)), labels, [*first.names, *second.names])
    return JoinedImages(first, second)


def taken(images: Images, indices: np.ndarray, labels: np.ndarray | None = None) -> Images:
    """The images of the given indices, in that order, renumbered from 0; with labels of their own, if any are given."""
    if isinstance(images, MemoryImages | FileImages):
        return images.take(indices, labels)
    return TakenImages(images, indices, labels)


def decodable(splits: Sequence[Images], *, strict: bool, argument: str) -> tuple[list[np.ndarray], list[str]]:
    """Which images of each set lie in files that can be decoded (see `unreadable`), and the names of all others, which one warning names.

    Args:
        splits: the sets.
        strict: refuse sets with others.
        argument: what errors call them.

    Raises:
        InputError: there are others, and `strict`.
    """
    damaged = [unreadable(images) for images in splits]
    names = [images.name(index) for images, indices in zip(splits, damaged, strict=True) for index in indices.tolist()]
    if names and strict:
        raise InputError(argument, counted(names), "none such, since strict was asked for")
    if names:
        warn_left_out(names)
    return [np.setdiff1d(np.arange(len(images)), indices) for images, indices in zip(splits, damaged, strict=True)], names


def unreadable(images: Images) -> np.ndarray:
    """Which images lie in files that cannot be decoded: indices, sorted. It depends on the files alone.

    Every file of a set of up to 20 000 is decoded. Of a larger one, JPEG and PNG files are looked at at both ends only, where what
    happens to files (broken off, empty, a web page) shows; damage in the middle of one of them ends the run when it is read.
    """
    if isinstance(images, TakenImages) and isinstance(images.images, FileImages):
        files, indices = images.images, images.indices
    elif isinstance(images, FileImages):
        files, indices = images, np.arange(len(images))
    else:
        return np.empty(0, np.int64)
    if not len(indices):
        return np.empty(0, np.int64)
    ends = len(indices) > _DECODED
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
        warnings.filterwarnings("ignore", module=r"PIL\..*")  # on EXIF data and the like that do not hinder reading
        parts = np.array_split(indices, -(-len(indices) // 32))
        good = threads.map(lambda part: [files.readable(index, ends=ends) for index in part.tolist()], parts)
        return np.flatnonzero(~np.concatenate(list(good)))


def several_frames(splits: Sequence[Images]) -> list[str]:
    """Names of the files of animations and the like, of which the first picture alone is read; of the first 20 000 that may be such."""
    names = []
    for images in splits:
        if isinstance(images, FileImages):
            asked = [i for i, name in enumerate(images.names) if name.rpartition(".")[2].lower() not in _ONE_FRAME][:_DECODED]
            names += [images.names[index] for index in asked if images.has_frames(index)]
    return names


def _complete(head: bytes, tail: bytes) -> bool:
    """Whether a file's ends are those of a whole JPEG or PNG."""
    if head.startswith(b"\xff\xd8\xff"):
        return tail.endswith(b"\xff\xd9")
    return head.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND" in tail


def read_image(file: str | Path | IO[bytes] | Image.Image, name: str | None = None, *, coarse: bool = False) -> Image.Image:
    """An image file, or an image of any mode, as RGB, turned upright as its EXIF orientation says.

    Args:
        file: left as it is, if it is an image.
        name: what errors call it.
        coarse: in the smallest size that the format can be decoded to, to see whether it can be.

    Raises:
        UnreadableImage: it cannot be decoded, or its values have no agreed range (floating-point TIFF).
    """
    if name is None:
        name = getattr(file, "filename", "") or "an image in memory" if isinstance(file, Image.Image) else str(file)
    name = printable(str(name))
    try:
        with ImageOps.exif_transpose(file) if isinstance(file, Image.Image) else _opened(file) as image:
            if coarse:
                image.draft("RGB", (1, 1))
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode == "F":
                raise UnreadableImage(f"{name}: an image of floating-point values; save it with 8 bits a channel")
            if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow's own conversion clips 16 bits to white
                eight_bits = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                return Image.fromarray(eight_bits).convert("RGB")
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except FileNotFoundError:
        raise UnreadableImage(f"{name}: no such file") from None
    except UnreadableImage:
        raise
    except Exception as error:  # formats' readers raise whatever they stumble over in damaged bytes
        raise UnreadableImage(f"{name}: not a readable image ({reason_of(error)})") from None


def reason_of(error: Exception) -> str:
    """What a format's reader says of bytes that it stumbles over, without where in this computer's memory they lie."""
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error))


def _opened(file: str | Path | IO[bytes]) -> Image.Image:
    """An image file, its head read; HEIC by pillow-heif, where that is installed."""
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        head = file.getvalue() if isinstance(file, io.BytesIO) else Path(file).read_bytes() if isinstance(file, str | Path) else b""
        if head[4:8] != b"ftyp" or not begins_as_image(head[:_END]):
            raise
        try:
            import pillow_heif
        except ImportError:
            raise OSError("HEIC is read where pillow-heif is installed: pip install pillow-heif") from None
        pillow_heif.register_heif_opener()
        return Image.open(file)


def into_memory(images: Images, size: int, prepare: Callable[[Tensor | Image.Image], Tensor], *, strict: bool = False) -> MemoryImages:
    """Decode all images once, into one uint8 tensor [N, 3, size, size].

    Must be done before loader workers are started, so that they share it. Files that cannot be decoded are left out, with one warning.

    Args:
        prepare: image -> uint8 [3, size, size].
        strict: leave none out.

    Raises:
        UnreadableImage: none can be decoded; or one cannot, and `strict`.
    """
    pixels = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    readable, failure = np.ones(len(images), bool), ""
    for index in range(len(images)):  # threads are slower: for small files the interpreter's lock is held most of the time
        try:
            pixels[index] = prepare(images.image(index))
        except UnreadableImage as error:
            if strict:
                raise
            readable[index], failure = False, failure or str(error)
    if not readable.any():
        raise UnreadableImage(f"{images.name(0)} and all other images cannot be decoded")
    if not readable.all():
        names = [images.name(int(i)) for i in np.flatnonzero(~readable)]
        if isinstance(images, FileImages):
            warn_left_out(names)
        else:  # what a user's own function gave
            warn_left_out(names, f"image{{s}} that cannot be used ({failure.partition(': ')[2]})")
    kept = np.flatnonzero(readable)
    names = [images.name(int(i)) for i in kept]
    return MemoryImages(pixels if readable.all() else pixels[torch.from_numpy(kept)], images.labels[kept], names)


def stratified(labels: np.ndarray, count: int, *, seed: int = 0) -> np.ndarray:
    """Indices, sorted, of `count` samples in which the classes have (up to rounding) the shares that they have in `labels`.

    Every class is in it if `count` is at least the number of classes.
    """
    place, sizes = _place_in_class(labels, seed)
    return np.sort(np.argsort(place / sizes[labels], kind="stable")[:count])


def hold_out(labels: np.ndarray, classes: Sequence[str], fraction: float, argument: str) -> np.ndarray:
    """Which samples validate, bool [N]: the fraction of every class, at least one and never all; always the same ones.

    Raises:
        InputError: a class has one image only.
    """
    place, sizes = _place_in_class(labels, 0)
    if (lonely := np.flatnonzero(sizes == 1)).size:
        names = ", ".join(classes[i] for i in lonely[:5])
        raise InputError(argument, f"one image of {names}", "at least two images of each class, one to train on and one to hold out")
    return place < np.clip(np.round(fraction * sizes), 1, sizes - 1)[labels]


def _place_in_class(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's place (from 0) in a shuffled order of its class, int [N], and the classes' sizes, int [C]."""
    order = sample_order(seed, 0, len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[labels[order]]
    return place, sizes
