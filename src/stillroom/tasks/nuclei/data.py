"""The data of a nuclei run: pictures cut to one size to train on, whole ones to measure with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation

from stillroom.engine.loading import Draw, uniforms
from stillroom.errors import InputError, at_least, one_of
from stillroom.tasks.images.data import ImageSetData
from stillroom.tasks.images.whole_pictures import Kept, pixels_of
from stillroom.tasks.nuclei.instances import Outlining
from stillroom.tasks.nuclei.maps import NucleiBatch, NucleiImages, NucleiMap, WholeBatch, distances
from stillroom.tasks.nuclei.metrics import NucleiEvaluator
from stillroom.tasks.nuclei.sources import NucleiSource, open_source

AUGMENTATIONS = ("stain", "flips", "none")
_MEMORY = 1_000_000_000  # bytes of decoded pictures that are kept
_HUE, _SATURATION, _BRIGHTNESS, _CONTRAST = 8 / 180, 0.2, 26 / 255, 0.25  # of random stains
_NOISE, _BLUR = 0.05, np.array([0.25, 0.5, 0.25])


class NucleiData(ImageSetData):
    """A training and a validation set of pictures with their nuclei; training pictures may be without.

    Networks are trained on squares that are cut out of pictures. They are measured on whole pictures, gone through by sliding windows.
    Sets of up to 1 GB are decoded once and stay in memory.

    Args:
        data: where the images are: ``drawn``, ``nuclei:ROOT``, ``consep:ROOT``, ``lizard:ROOT`` or ``pannuke:ROOT``; options follow after
            commas, see `sources.open_source`.
        batch_size: images in a batch, of all processes together.
        image_size: pixels of the images that the network is given; height and width of what it is trained on; by default 128, or 48 for
            drawn nuclei.
        augment: random changes of training images: ``stain`` (a square from anywhere, flipped, then blurred or noisy, then with other
            hue, saturation, brightness and contrast), ``flips`` (a square from anywhere, flipped) or ``none`` (the centre); by default
            flips, for drawn nuclei none.
        window_size: pixels of a sliding window's height and width; by default 256, or `image_size` if that is more.
        stride: pixels from one window to the next; by default half a window.
        edge_kernel: pixels of the filter that finds where nuclei touch, odd; by default 21, which suits 40x magnification, for drawn
            nuclei 7.
        least_area: pixels of the smallest nucleus that is answered with.
        apart: classes whose mean scores are given apart, too: ``a+b``.
        options: those of every task on images, see `ImageSetData`.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    source: NucleiSource

    def __init__(
        self,
        data: str = "drawn",
        *,
        batch_size: int = 16,
        image_size: int | None = None,
        augment: str | None = None,
        window_size: int | None = None,
        stride: int | None = None,
        edge_kernel: int | None = None,
        least_area: int | None = None,
        apart: str = "",
        **options: Any,
    ) -> None:
        if augment is not None:
            one_of("augment", augment, AUGMENTATIONS)
        source = open_source(data)
        super().__init__(data, source, batch_size=batch_size, **options)
        self.image_size = source.image_size if image_size is None else at_least("image_size", image_size, 1)
        self.augment = augment or source.augment
        self.window = max(256, self.image_size) if window_size is None else at_least("window_size", window_size, 1)
        self.stride = max(self.window // 2, 1) if stride is None else at_least("stride", stride, 1)
        if self.stride > self.window:
            raise InputError("stride", self.stride, f"at most the window's {self.window} pixels, or some would not be seen")
        usual = source.outlining
        kernel = usual.edge_kernel if edge_kernel is None else edge_kernel
        if kernel < 3 or kernel % 2 == 0:
            raise InputError("edge_kernel", kernel, "an odd number of pixels, at least 3")
        self.outlining = Outlining(kernel, usual.least if least_area is None else at_least("least_area", least_area, 1))
        self.apart = tuple(one_of("apart", name, self.classes) for name in apart.split("+")) if apart else ()
        height, width = np.shape(self._listed[1].nuclei(0).instances)
        self.in_memory = 8 * height * width * sum(map(len, self._listed)) <= _MEMORY
        known = {"image_size": self.image_size, "augment": self.augment}
        self._known_by(known, self.window, self.stride, self.outlining, self.apart)

    @property
    def training_images(self) -> NucleiImages:
        """Those that are shown."""
        images: NucleiImages = self._shown[0]
        return images

    def listed_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Nuclei of each class in the training and validation maps that were looked at, int64 [C] both."""
        train_C, val_C = self.source.nuclei
        return train_C, val_C

    def first_lines(self) -> list[str]:
        """How many pictures there are; the nuclei of each class in them; sizes; what was met."""
        lines, source = super().first_lines(), self.source
        lines[0] = f"procedural data: {lines[0]}" if source.name == "drawn" else lines[0]
        for split, counts, looked, empty in zip(("training", "validation"), source.nuclei, source.looked_at, source.empty, strict=True):
            told = ", ".join(f"{name} {count}" for name, count in zip(self.classes, counts.tolist(), strict=True))
            without = f"; {empty} pictures without a nucleus" if empty else ""
            lines.append(f"nuclei of {looked} {split} pictures: {told}{without}")
        if unknown := int((~self._listed[0].labelled).sum()):
            lines.append(f"{unknown} training pictures without labels")
        size = f"{self.image_size} × {self.image_size} pixels to train on ({self.augment})"
        return [*lines, f"{size}; measured whole, in windows of {self.window} every {self.stride}"]

    def evaluator(self) -> NucleiEvaluator:
        """What measures outlined nuclei."""
        return NucleiEvaluator(self.classes, self.apart)

    def example_inputs(self) -> Tensor:
        """A batch of one, [1, 3, S, S]: the centre of the first validation picture, without random changes."""
        return _Squares(self._val, self, "none").__getitems__([Draw(0, 0)]).images

    def val_nuclei(self, index: int) -> NucleiMap:
        """The truth of a validation picture."""
        nuclei: NucleiMap = self._val.nuclei(index)
        return nuclei

    def _described(self) -> dict[str, Any]:
        windows = {"window": self.window, "stride": self.stride}
        outlining = {"edge_kernel": self.outlining.edge_kernel, "least": self.outlining.least}
        return {"image_size": self.image_size, "transform": {**windows, **outlining, "mean": list(self.mean), "std": list(self.std)}}

    @property
    def _light(self) -> bool:
        return self.in_memory

    def _samples(self, images: Any, *, training: bool, told: bool = False) -> Dataset[Any]:
        return _Squares(images, self, self.augment) if training else _Wholes(images, self)

    def _prepared(self, images: Any) -> Any:
        return images  # kept by those who read them

    def _taken(self, images: Any, indices: np.ndarray) -> Any:
        return images.take(indices)


def _reader(images: NucleiImages, data: NucleiData) -> Kept[tuple[Tensor, NucleiMap]]:
    """Pictures, uint8 [3, H, W], and their nuclei, none where they are not known; kept, up to `_MEMORY` bytes in all who read."""

    def read(index: int) -> tuple[Tensor, NucleiMap]:
        pixels = pixels_of(images.image(index))
        if images.labelled[index]:
            return pixels, images.nuclei(index)
        return pixels, NucleiMap(np.zeros(pixels.shape[1:], np.int32), np.zeros(1, np.int64))

    return Kept(read, len(images), _MEMORY // max(1, data.workers) if data.in_memory else 0)


class _Squares(Dataset[Any]):
    """Batches of squares cut out of pictures, by their draws."""

    def __init__(self, images: NucleiImages, data: NucleiData, augment: str) -> None:
        self.read, self.side, self.augment = _reader(images, data), data.image_size, augment
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))

    def __len__(self) -> int:
        return len(self.read)

    def __getitems__(self, draws: Sequence[Draw]) -> NucleiBatch:
        ids, seeds, _ = np.array(draws, np.int64).T
        pictures, types, offsets = [], [], []
        for index, seed, random in zip(ids.tolist(), seeds.tolist(), uniforms(seeds, 10), strict=True):
            pixels, nuclei = self.read(index)
            pixels, nuclei = self._filled(pixels, nuclei)
            height, width = nuclei.instances.shape
            at = random[:2] if self.augment != "none" else (0.5, 0.5)
            top, left = (int(share * (length - self.side + 1)) for share, length in zip(at, (height, width), strict=True))
            rows, columns = slice(top, top + self.side), slice(left, left + self.side)
            cut, known = pixels[:, rows, columns].float() / 255, nuclei.cut(rows, columns)
            flips = [axis for axis in (0, 1) if self.augment != "none" and random[2 + axis] < 0.5]
            instances = np.ascontiguousarray(np.flip(known.instances, tuple(flips)))
            cut = cut.flip([axis + 1 for axis in flips])
            pictures.append(_stained(cut, random[4:], seed) if self.augment == "stain" else cut)
            types.append(torch.from_numpy(known.types[instances]))
            offsets.append(torch.from_numpy(distances(instances)))
        images = (torch.stack(pictures) - self.mean) / self.std
        return NucleiBatch(images, torch.stack(types), torch.stack(offsets), torch.from_numpy(ids.copy()))

    def _filled(self, pixels: Tensor, nuclei: NucleiMap) -> tuple[Tensor, NucleiMap]:
        """At least as large as the square: mirrored at the lower and right edge where they are not, without nuclei there."""
        height, width = nuclei.instances.shape
        missing = max(0, self.side - height), max(0, self.side - width)
        if not any(missing):
            return pixels, nuclei
        around = [(0, missing[0]), (0, missing[1])]
        filled = np.pad(pixels.numpy(), [(0, 0), *around], mode="symmetric")
        return torch.from_numpy(filled), NucleiMap(np.pad(nuclei.instances, around), nuclei.types)


def _stained(image_3HW: Tensor, random: np.ndarray, seed: int) -> Tensor:
    """A blurred or noisy picture of other hue, saturation, brightness and contrast, in an order that is drawn; values in [0, 1]."""
    if random[0] < 0.5:
        generator = torch.Generator().manual_seed(seed & (2**63 - 1))
        image_3HW = image_3HW + _NOISE * float(random[0]) * 2 * torch.randn(image_3HW.shape, generator=generator)
    elif random[0] < 0.75:
        kernel = torch.tensor(np.outer(_BLUR, _BLUR), dtype=torch.float32).expand(3, 1, 3, 3)
        edged = torch.nn.functional.pad(image_3HW[None], (1, 1, 1, 1), mode="replicate")
        image_3HW = torch.nn.functional.conv2d(edged, kernel, groups=3)[0]
    image_3HW = image_3HW.clamp(0, 1)
    share = (2 * random[1:5] - 1).tolist()
    changes = [
        lambda image: adjust_hue(image, _HUE * share[0]),
        lambda image: adjust_saturation(image, 1 + _SATURATION * share[1]),
        lambda image: adjust_brightness(image, 1 + _BRIGHTNESS * share[2]),
        lambda image: adjust_contrast(image, 1 + _CONTRAST * share[3]),
    ]
    for number in np.random.default_rng(seed).permutation(4):
        image_3HW = changes[number](image_3HW)
    return image_3HW


class _Wholes(Dataset[Any]):
    """Batches of whole pictures, by their draws."""

    def __init__(self, images: NucleiImages, data: NucleiData) -> None:
        self.read, self.window, self.stride, self.outlining = _reader(images, data), data.window, data.stride, data.outlining
        self.mean, self.std = data.mean, data.std

    def __len__(self) -> int:
        return len(self.read)

    def __getitems__(self, draws: Sequence[Draw]) -> WholeBatch:
        found = [self.read(draw.id) for draw in draws]
        images = [prepared(pixels, self.mean, self.std) for pixels, _ in found]
        instances, types = ([torch.from_numpy(one[part]) for _, one in found] for part in (0, 1))
        ids = torch.tensor([draw.id for draw in draws])
        return WholeBatch(images, instances, types, ids, self.window, self.stride, self.outlining)


def prepared(pixels_3HW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """A whole picture as a network reads it: normalised."""
    means, deviations = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (pixels_3HW.float() / 255 - means) / deviations
