"""The data of a detection run: padded batches of images, boxes, labels and sample ids."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import horizontal_flip, resize, to_pil_image

from stillroom.engine.cache import EveryView, Views
from stillroom.engine.loading import Draw, Loader, SeekableBatches, identity, uniforms
from stillroom.engine.task import Task
from stillroom.engine.teacher import Renormalise
from stillroom.errors import InputError
from stillroom.tasks.detection.backbones import pad_batch, padded_size
from stillroom.tasks.detection.metrics import DetectionEvaluator
from stillroom.tasks.detection.preparation import Preparation, as_pixels, boxes_on
from stillroom.tasks.detection.sources import Annotated, open_source
from stillroom.tasks.images.arguments import renormalisation, statistics

_MEMORY = 1_000_000_000

Range = tuple[int, int]


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

    def renormalised(self, renormalise: Renormalise) -> DetectionBatch:
        """The same with images of other statistics; what is padding stays zero."""
        heights_B1, widths_B1 = self.sizes[:, :1], self.sizes[:, 1:]
        rows_BH = torch.arange(self.images.shape[-2], device=self.sizes.device) < heights_B1
        columns_BW = torch.arange(self.images.shape[-1], device=self.sizes.device) < widths_B1
        shown_B1HW = (rows_BH[:, None, :, None] & columns_BW[:, None, None]).to(self.images.device)
        return self._replace(images=renormalise(self.images).where(shown_B1HW, 0))

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
        teacher_scales: while a teacher is trained, the shorter side of each image is drawn anew from this range of pixels, e.g.
            ``[480, 800]`` as the papers do; by default it is `image_size`.
        mean: of each channel, for pixels in [0, 1]; by default the data's own.
        std: standard deviation of each channel, likewise.
        teacher_mean: the mean that the teacher was trained with, where it is another than the student's.
        teacher_std: the teacher's standard deviation, likewise.
        strict: refuse data with image files that cannot be decoded, which are left out otherwise.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    task: ClassVar[Task]

    def __init__(
        self,
        data: str = "scenes",
        *,
        batch_size: int = 16,
        workers: int = 0,
        image_size: int | None = None,
        max_size: int | None = None,
        flip: bool = True,
        teacher_scales: Range | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        teacher_mean: tuple[float, float, float] | None = None,
        teacher_std: tuple[float, float, float] | None = None,
        strict: bool = False,
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0), ("image_size", image_size, 8)):
            if value is not None and value < least:
                raise InputError(name, value, f"a whole number of at least {least}")
        if max_size is not None and max_size < (image_size or 8):
            raise InputError("max_size", max_size, "at least the image size")
        if teacher_scales is not None and not 8 <= teacher_scales[0] <= teacher_scales[1]:
            raise InputError("teacher_scales", list(teacher_scales), "two numbers of pixels of at least 8, the smaller first")
        self.source = open_source(data, strict=strict)
        self.data, self.batch_size, self.workers, self.flip = data, batch_size, workers, flip
        self.teacher_scales = teacher_scales
        self.scales: Range | None = None  # of the images that are trained on at present
        means, stds = statistics(mean, std, (self.source.mean, self.source.std))
        self.renormalise = renormalisation((means, stds), teacher_mean, teacher_std)
        self.preparation = Preparation(image_size, max_size, means, stds, self.source.divisor)
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
            "mean": list(means),
            "std": list(stds),
            "teacher_mean": None if self.renormalise is None else list(self.renormalise.to_mean),
            "teacher_std": None if self.renormalise is None else list(self.renormalise.to_std),
        }
        parts = self.source.fingerprint, image_size, max_size, flip, means, stds
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def for_teacher(self) -> DetectionData:
        """The same data for training a teacher: the source's images for that, where it has others, in `teacher_scales`."""
        if self.source.teacher is None and self.teacher_scales is None:
            return self
        theirs = copy.copy(self)
        theirs._train = self.source.train if self.source.teacher is None else self.source.teacher
        theirs.scales = self.teacher_scales
        theirs.cache_key = {**self.cache_key, "data": f"{self.source.fingerprint}, the teacher's"}
        scales = "" if self.teacher_scales is None else f" {self.teacher_scales}"
        theirs.fingerprint = hashlib.sha256(f"{self.fingerprint} teacher{scales}".encode()).hexdigest()[:16]
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
        loader = Loader(shown, batches, workers=self.workers, collate=identity, training=False)
        loader.load_state_dict({"epoch": 0, "batch": start})
        return loader

    @property
    def train_size(self) -> int:
        """N, images to train on."""
        return len(self._train)

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1) -> Loader:
        """Shuffled batches of `batch_size / world` images, half of them mirrored (`flip`), without a short last one."""
        count = len(self._train)
        if count < world:
            raise InputError("data", f"{count} training images", f"at least one for each of the {world} processes")
        batch_size = self.batch_size if self.batch_size <= count else count // world * world
        batches = SeekableBatches(count, batch_size, seed=seed, rank=rank, world=world)
        shown = _Batches(self._train, self, flip=self.flip, scales=self.scales, recorded=self.views is not None)
        return Loader(shown, batches, workers=self.workers, collate=identity)

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The validation images in order, each exactly once over all processes."""
        batches = SeekableBatches(len(self._val), self.batch_size, shuffle=False, drop_last=False, rank=rank, world=world)
        return Loader(_Batches(self._val, self, flip=False), batches, workers=self.workers, collate=identity, training=False)

    def evaluator(self) -> DetectionEvaluator:
        """COCO's average precision; of data in Pascal VOC's layout that set's own, too."""
        return DetectionEvaluator(self.num_classes, voc=self.source.name == "voc")

    def example_inputs(self) -> Tensor:
        """A batch of one: the first validation image, padded."""
        return pad_batch([self.preparation(self._val.images.image(0))], self.preparation.divisor)[0]

    def describe(self) -> dict[str, Any]:
        """What must be known to use a detector that was trained on this data."""
        known = {"source": self.data, "classes": list(self.classes), "transform": self.preparation.to_json()}
        both = canvas(self._train, self.preparation), canvas(self._val, self.preparation)
        return {**known, "canvas": [max(sides) for sides in zip(*both, strict=True)]}

    def val_image(self, index: int) -> Image.Image:
        """A validation image for people to look at, as it was read."""
        image = self._val.images.image(index)
        return image if isinstance(image, Image.Image) else to_pil_image(image)

    @property
    def truth(self) -> Annotated:
        """The validation images and their objects, in their own pixels."""
        return self._val


class _Batches(Dataset[Any]):
    """Whole batches by their draws. Images are decoded once (and resized, where that is always alike) and kept, up to `_MEMORY` bytes.

    Args:
        flip: mirror half of the images, unless a draw says which view it is.
        scales: of the shorter sides, drawn for each image; by default the data's own size.
        recorded: say which view each image is, and pad all batches to one size: a detector's answer depends on the padding.
        told: answer with what was drawn for the images as well.
    """

    def __init__(
        self,
        annotated: Annotated,
        data: DetectionData,
        *,
        flip: bool,
        scales: Range | None = None,
        recorded: bool = False,
        told: bool = False,
    ) -> None:
        self.annotated, self.preparation, self.flip, self.scales = annotated, data.preparation, flip, scales
        self.recorded, self.told = recorded, told
        self._kept: dict[int, Tensor] = {}
        self._room = _MEMORY

    def __len__(self) -> int:
        return len(self.annotated)

    def __getitems__(self, draws: Sequence[Draw]) -> DetectionBatch | tuple[DetectionBatch, dict[str, np.ndarray]]:
        ids, seeds, views = np.array(draws, np.int64).T
        chances_B2 = uniforms(seeds, 2)
        mirrored_B = np.where(views < 0, (chances_B2[:, 0] < 0.5) & self.flip, views == 1)
        sides: list[int | None] = [None] * len(ids)
        if self.scales is not None:
            least, most = self.scales
            sides = (least + chances_B2[:, 1] * (most - least + 1)).astype(np.int64).tolist()
        seen = [self._seen(*one) for one in zip(ids.tolist(), mirrored_B.tolist(), sides, strict=True)]
        images_BCHW, sizes_B2 = pad_batch([image for image, _ in seen], self.preparation.divisor, self._canvas if self.recorded else None)
        labels, crowd = (
            [torch.from_numpy(which[index]) for index in ids.tolist()] for which in (self.annotated.labels, self.annotated.crowd)
        )
        boxes, ids_B = [boxes for _, boxes in seen], torch.from_numpy(ids.copy())
        views_B = torch.from_numpy(mirrored_B.astype(np.int64)) if self.recorded else None
        batch = DetectionBatch(images_BCHW, sizes_B2, boxes, labels, crowd, ids_B, views_B)
        return (batch, {"flip": mirrored_B}) if self.told else batch

    @cached_property
    def _canvas(self) -> tuple[int, int]:
        """Height and width that every image fits into."""
        return canvas(self.annotated, self.preparation)

    def _seen(self, index: int, mirror: bool, side: int | None) -> tuple[Tensor, Tensor]:
        """An image as the detector reads it, its shorter side brought to `side` pixels if that is given, and its boxes there."""
        pixels = self._pixels(index)
        boxes = boxes_on(torch.from_numpy(self.annotated.boxes[index]).float(), self.annotated.shapes[index])
        if side is not None:
            pixels = self.preparation.fit(pixels, image_size=side)
        if boxes.canvas_size != tuple(pixels.shape[-2:]):
            boxes = resize(boxes, list(pixels.shape[-2:]))
        if mirror:
            pixels, boxes = horizontal_flip(pixels), horizontal_flip(boxes)
        return self.preparation.normalise(pixels), boxes.as_subclass(Tensor)

    def _pixels(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        pixels = as_pixels(self.annotated.images.image(index))
        if self.scales is None:
            pixels = self.preparation.fit(pixels)
        if pixels.nbytes <= self._room:
            self._kept[index] = pixels
            self._room -= pixels.nbytes
        return pixels


def canvas(annotated: Annotated, preparation: Preparation) -> tuple[int, int]:
    """Height and width that every image fits into, prepared and padded."""
    sizes = [preparation.size(*shape) for shape in annotated.shapes]
    height, width = (padded_size(max(sides), preparation.divisor) for sides in zip(*sizes, strict=True))
    return height, width
