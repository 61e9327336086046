"""The data of a detection run: padded batches of images, boxes, labels and sample ids."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import normalize, pil_to_tensor, resize, to_pil_image

from stillroom.engine.cache import EveryView, Views
from stillroom.engine.loading import Draw, Loader, SeekableBatches, uniforms
from stillroom.engine.report import Report, Section
from stillroom.errors import InputError
from stillroom.tasks.detection.backbones import pad_batch, padded_size
from stillroom.tasks.detection.metrics import DetectionEvaluator
from stillroom.tasks.detection.sources import Annotated, open_source

_MEMORY = 1_000_000_000


class DetectionBatch(NamedTuple):
    """Images and their objects.

    Attributes:
        images: float32 [B, 3, H, W], normalised, zeros at the right and the bottom of smaller ones.
        sizes: int64 [B, 2], height and width of each before padding.
        boxes: of each image float32 [G, 4], absolute (x1, y1, x2, y2) in its pixels.
        labels: of each image int64 [G], 0 .. C-1.
        crowd: of each image int64 [G]; 1 for a box that stands for many, or that is too hard: no target, and no mistake to find.
        ids: int64 [B], each sample's index in its data set.
        views: int64 [B], of data that a teacher's cache has answers to: 0 for an image as it is, 1 for its mirror image; None for others.
    """

    images: Tensor
    sizes: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]
    crowd: list[Tensor]
    ids: Tensor
    views: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """The padded images."""
        return self.images

    def objects(self) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes and labels to train on: those that are no crowd."""
        kept = [crowd == 0 for crowd in self.crowd]
        return [b[k] for b, k in zip(self.boxes, kept, strict=True)], [y[k] for y, k in zip(self.labels, kept, strict=True)]


class DetectionData:
    """A training and a validation set of images with boxes.

    Args:
        data: where the images are: ``scenes`` (drawn from a seed; ``scenes:size=64,train=300``), ``coco:IMAGES,ANNOTATIONS.json`` or
            ``voc:ROOT`` (folder or zip); options follow after commas, see `sources.open_source`.
        batch_size: images in a batch, of all processes together.
        workers: processes that read images ahead; none by default.
        image_size: pixels that the shorter side of an image is brought to; by default the data's own.
        max_size: pixels that the longer side may have; by default no limit.
        flip: show half of the training images mirrored.
        mean: of each channel, for pixels in [0, 1]; by default the data's own.
        std: standard deviation of each channel, likewise.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    def __init__(
        self,
        data: str = "scenes",
        *,
        batch_size: int = 16,
        workers: int = 0,
        image_size: int | None = None,
        max_size: int | None = None,
        flip: bool = True,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0), ("image_size", image_size, 8)):
            if value is not None and value < least:
                raise InputError(name, value, f"a whole number of at least {least}")
        if max_size is not None and max_size < (image_size or 8):
            raise InputError("max_size", max_size, "at least the image size")
        self.source = open_source(data)
        self.data, self.batch_size, self.workers, self.flip = data, batch_size, workers, flip
        self.image_size, self.max_size = image_size, max_size
        self.mean, self.std = (tuple(given or own) for given, own in ((mean, self.source.mean), (std, self.source.std)))
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) != 3 or not np.isfinite(numbers).all():
                raise InputError(name, list(numbers), "three numbers, one per channel")
        if min(self.std) <= 0:
            raise InputError("std", list(self.std), "numbers above 0")
        self.classes: tuple[str, ...] = self.source.classes
        self.num_classes = len(self.classes)
        self.indices: Mapping[str, np.ndarray] = {}
        self._train, self._val = self.source.train, self.source.val
        self.views: Views | None = None
        self.cache_key: dict[str, Any] = {
            "data": self.source.fingerprint,
            "image_size": image_size,
            "max_size": max_size,
            "flip": flip,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        parts = self.source.fingerprint, image_size, max_size, flip, self.mean, self.std
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def for_teacher(self) -> DetectionData:
        """The same data with the images that the source has for training a teacher, where it has more."""
        if self.source.teacher is None:
            return self
        theirs = copy.copy(self)
        theirs._train = self.source.teacher
        theirs.cache_key = {**self.cache_key, "data": f"{self.source.fingerprint}, the teacher's"}
        theirs.fingerprint = hashlib.sha256(f"{self.fingerprint} teacher".encode()).hexdigest()[:16]
        return theirs

    def replaying(self, views: Views) -> DetectionData:
        """The same data for a teacher whose answers to these views are in a cache: training batches say which view each image is, and are
        padded to one size, that of the cache's.

        There are two views of an image, itself and its mirror image, so that training sees what it sees without a cache.
        """
        replaying = copy.copy(self)
        replaying.views = views
        replaying.fingerprint = hashlib.sha256(repr((self.fingerprint, views)).encode()).hexdigest()[:16]
        return replaying

    def every_view(self, views: Views, *, batch_size: int, start: int = 0) -> Loader:
        """Every view of every training image once, in the order of `EveryView`, from batch number `start` on.

        Its batches are pairs: a `DetectionBatch`, and whether its images are mirrored (``flip``, bool [B]).
        """
        batches = EveryView(len(self._train), batch_size, views=views)
        shown = _Batches(self._train, self, flip=False, recorded=True, told=True)
        loader = Loader(shown, batches, workers=self.workers, collate=_as_it_is, training=False)
        loader.load_state_dict({"epoch": 0, "batch": start})
        return loader

    @property
    def train_size(self) -> int:
        """N, images to train on."""
        return len(self._train)

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1) -> Loader:
        """Shuffled batches of `batch_size / world` images, half of them mirrored, without a short last one."""
        count = len(self._train)
        if count < world:
            raise InputError("data", f"{count} training images", f"at least one for each of the {world} processes")
        batch_size = self.batch_size if self.batch_size <= count else count // world * world
        batches = SeekableBatches(count, batch_size, seed=seed, rank=rank, world=world)
        shown = _Batches(self._train, self, flip=self.flip, recorded=self.views is not None)
        return Loader(shown, batches, workers=self.workers, collate=_as_it_is)

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The validation images in order, each exactly once over all processes."""
        batches = SeekableBatches(len(self._val), self.batch_size, shuffle=False, drop_last=False, rank=rank, world=world)
        return Loader(_Batches(self._val, self, flip=False), batches, workers=self.workers, collate=_as_it_is, training=False)

    def evaluator(self) -> DetectionEvaluator:
        """COCO's average precision."""
        return DetectionEvaluator(self.num_classes)

    def example_inputs(self) -> Tensor:
        """A batch of one: the first validation image, padded."""
        return pad_batch([self.prepare(self._val.images.image(0))[0]], self.source.divisor)[0]

    def prepare(self, image: Image.Image | Tensor) -> tuple[Tensor, float]:
        """An image brought to its size and normalised, float32 [3, h, w], and by how much it was scaled."""
        pixels, scale = self.fit(image)
        return self.normalise(pixels), scale

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [3, h, w] -> float32, by the data's mean and standard deviation."""
        return normalize(pixels.float() / 255, list(self.mean), list(self.std))

    def fit(self, image: Image.Image | Tensor) -> tuple[Tensor, float]:
        """An image brought to its size, uint8 [3, h, w], and by how much it was scaled."""
        pixels = image if isinstance(image, Tensor) else pil_to_tensor(image.convert("RGB"))
        fitted, scale = self.fitted_size(pixels.shape[-2], pixels.shape[-1])
        return (pixels if scale == 1 else resize(pixels, list(fitted), antialias=True)), scale

    def fitted_size(self, height: int, width: int) -> tuple[tuple[int, int], float]:
        """Height and width that an image of this size is brought to, and by how much it is scaled."""
        scale = 1.0 if self.image_size is None else self.image_size / min(height, width)
        if self.max_size is not None:
            scale = min(scale, self.max_size / max(height, width))
        return (max(1, round(scale * height)), max(1, round(scale * width))), scale

    def describe(self) -> dict[str, Any]:
        """What must be known to use a detector that was trained on this data."""
        transform = {"image_size": self.image_size, "max_size": self.max_size, "mean": list(self.mean), "std": list(self.std)}
        return {"source": self.data, "classes": list(self.classes), "transform": {**transform, "divisor": self.source.divisor}}

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """Nothing yet: detections of two models are compared by their AP."""
        return {}

    def sections(self, report: Report) -> list[Section]:
        """Images with true and found boxes, side by side."""
        from stillroom.tasks.detection.pages import detection_sections

        return detection_sections(report, self)

    def ship(self, folder: Path, network: nn.Module, model: str) -> None:
        """Writes what is needed to load a detector of this data again, besides its weights."""
        from stillroom.tasks.detection.loaded import ship

        ship(folder, model, {**self.describe(), "fingerprint": self.fingerprint})

    def val_image(self, index: int) -> Image.Image:
        """A validation image for people to look at, as it was read."""
        image = self._val.images.image(index)
        return image if isinstance(image, Image.Image) else to_pil_image(image)

    def val_objects(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Its boxes [G, 4] and labels [G], in its own pixels."""
        return self._val.boxes[index], self._val.labels[index]


class _Batches(Dataset[Any]):
    """Whole batches by their draws. Images are decoded and resized once and kept, up to `_MEMORY` bytes of them.

    Args:
        flip: mirror half of the images, unless a draw says which view it is.
        recorded: say which view each image is, and pad all batches to one size: a detector's answer depends on the padding.
        told: answer with what was drawn for the images as well.
    """

    def __init__(self, annotated: Annotated, data: DetectionData, *, flip: bool, recorded: bool = False, told: bool = False) -> None:
        self.annotated, self.data, self.flip, self.recorded, self.told = annotated, data, flip, recorded, told
        self._kept: dict[int, tuple[Tensor, float]] = {}
        self._room = _MEMORY

    def __len__(self) -> int:
        return len(self.annotated)

    def __getitems__(self, draws: Sequence[Draw]) -> DetectionBatch | tuple[DetectionBatch, dict[str, np.ndarray]]:
        ids, seeds, views = np.array(draws, np.int64).T
        mirrored = np.where(views < 0, (uniforms(seeds, 1)[:, 0] < 0.5) & self.flip, views == 1)
        images, boxes = [], []
        for index, mirror in zip(ids.tolist(), mirrored.tolist(), strict=True):
            pixels, scale = self._fitted(index)
            image = self.data.normalise(pixels)
            boxes_G4 = torch.from_numpy(self.annotated.boxes[index]).float() * scale
            if mirror:
                image, width = image.flip(-1), image.shape[-1]
                boxes_G4 = torch.stack((width - boxes_G4[:, 2], boxes_G4[:, 1], width - boxes_G4[:, 0], boxes_G4[:, 3]), 1)
            images.append(image)
            boxes.append(boxes_G4)
        padded_BCHW, sizes_B2 = pad_batch(images, self.data.source.divisor, self._canvas if self.recorded else None)
        labels, crowd = (
            [torch.from_numpy(which[index]) for index in ids.tolist()] for which in (self.annotated.labels, self.annotated.crowd)
        )
        views_B = torch.from_numpy(mirrored.astype(np.int64)) if self.recorded else None
        batch = DetectionBatch(padded_BCHW, sizes_B2, boxes, labels, crowd, torch.from_numpy(ids.copy()), views_B)
        return (batch, {"flip": mirrored}) if self.told else batch

    @cached_property
    def _canvas(self) -> tuple[int, int]:
        """Height and width that every image fits into."""
        sizes = [self.data.fitted_size(*(said or self._fitted(index)[0].shape[-2:]))[0] for index, said in enumerate(self.annotated.shapes)]
        height, width = (padded_size(max(sides), self.data.source.divisor) for sides in zip(*sizes, strict=True))
        return height, width

    def _fitted(self, index: int) -> tuple[Tensor, float]:
        if index in self._kept:
            return self._kept[index]
        picture = self.annotated.images.image(index)
        self._check(index, picture)
        fitted = self.data.fit(picture)
        if fitted[0].nbytes <= self._room:
            self._kept[index] = fitted
            self._room -= fitted[0].nbytes
        return fitted

    def _check(self, index: int, picture: Image.Image | Tensor) -> None:
        """An image whose annotation says another size was turned, or replaced: its boxes would lie elsewhere."""
        said = self.annotated.shapes[index]
        shape = tuple(picture.shape[-2:]) if isinstance(picture, Tensor) else (picture.height, picture.width)
        if said is not None and said != shape:
            name = self.annotated.images.name(index)
            raise InputError("data", f"{name} of {shape[1]} x {shape[0]} pixels", f"{said[1]} x {said[0]}, as its annotation says")


def _as_it_is(batch: Any) -> Any:
    return batch
