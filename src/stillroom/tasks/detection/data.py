"""The data of a detection run: padded batches of images, boxes, labels and sample ids."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import horizontal_flip, resize

from stillroom.engine.loading import Draw, SeekableBatches, uniforms
from stillroom.engine.teacher import Renormalise
from stillroom.errors import InputError, at_least, one_of
from stillroom.tasks.detection.backbones import pad_batch, padded_size, shown
from stillroom.tasks.detection.metrics import DetectionEvaluator
from stillroom.tasks.detection.preparation import Preparation, as_pixels, boxes_on
from stillroom.tasks.detection.sources import Annotated, DetectionSource, open_source
from stillroom.tasks.images.data import ImageSetData

if TYPE_CHECKING:
    from typing_extensions import Self

AUGMENTATIONS = ("mirror", "none")
_MEMORY = 1_000_000_000  # bytes of decoded images that are kept

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
        return self._replace(images=renormalise(self.images).where(shown(self.images, self.sizes)[:, None], 0))

    def objects(self) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes and labels to train on: those that are no crowd."""
        kept = [crowd == 0 for crowd in self.crowd]
        return [b[k] for b, k in zip(self.boxes, kept, strict=True)], [y[k] for y, k in zip(self.labels, kept, strict=True)]


class DetectionData(ImageSetData):
    """A training and a validation set of images with boxes.

    Args:
        data: where the images are: ``scenes`` (drawn from a seed; ``scenes:size=64,train=300``), ``coco:IMAGES,ANNOTATIONS.json``,
            ``voc:ROOT`` or ``yolo:data.yaml``; options follow after commas, see `sources.open_source`.
        batch_size: images in a batch, of all processes together.
        image_size: pixels of the images that the network is given; their shorter side is brought to it; by default the data's own.
        max_size: pixels that the longer side may have; by default no limit.
        augment: random changes of training images: ``mirror`` (the default) shows half of them mirrored; or ``none``.
        teacher_scales: while a teacher is trained, the shorter side of each image is drawn anew from this range of pixels, e.g.
            ``[480, 800]`` as the papers do; by default it is `image_size`.
        strict: refuse data with image files that cannot be decoded, which are left out otherwise, with one warning.
        options: those of every task on images, see `ImageSetData`.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    source: DetectionSource

    def __init__(
        self,
        data: str = "scenes",
        *,
        batch_size: int = 16,
        image_size: int | None = None,
        max_size: int | None = None,
        augment: str | None = None,
        teacher_scales: Range | None = None,
        strict: bool = False,
        **options: Any,
    ) -> None:
        if image_size is not None:
            at_least("image_size", image_size, 8)
        if max_size is not None and max_size < (image_size or 8):
            raise InputError("max_size", max_size, "at least the image size")
        if teacher_scales is not None and not 8 <= teacher_scales[0] <= teacher_scales[1]:
            raise InputError("teacher_scales", list(teacher_scales), "two numbers of pixels of at least 8, the smaller first")
        self.augment = one_of("augment", augment or "mirror", AUGMENTATIONS)
        source = open_source(data, strict=strict)
        super().__init__(data, source, batch_size=batch_size, strict=strict, **options)
        self.teacher_scales = teacher_scales
        self.scales: Range | None = None  # of the images that are trained on at present
        self.preparation = Preparation(image_size, max_size, self.mean, self.std, source.divisor)
        sizes = [self.preparation.size(*shape) for images in self._listed for shape in images.shapes]
        self.in_memory = sum(3 * height * width for height, width in sizes) <= _MEMORY
        # "flip" and the order are those of fingerprints and caches on people's disks, where there were no subsets.
        known = {"image_size": image_size, "max_size": max_size, "flip": self.augment == "mirror"}
        chosen = {} if self.subset is self.val_subset is None else self._subsets
        parts = source.fingerprint, *known.values(), self.mean, self.std, *chosen.values()
        self._identify(*parts, content=source.fingerprint, **known, **chosen)

    def for_teacher(self) -> Self:
        """The same data for training a teacher: the source's images for that, where it has others, in `teacher_scales`."""
        if self.source.teacher is None and self.teacher_scales is None:
            return self
        scales = "" if self.teacher_scales is None else f" {self.teacher_scales}"
        indices = self.indices if self.source.teacher is None else self._indices_but_train()
        cache_key = {**self.cache_key, "data": f"{self.source.fingerprint}, the teacher's"}
        return self.derive(f"teacher{scales}", train=self.source.teacher, scales=self.teacher_scales, indices=indices, cache_key=cache_key)

    def evaluator(self) -> DetectionEvaluator:
        """COCO's average precision; of data in Pascal VOC's layout that set's own, too."""
        return DetectionEvaluator(self.num_classes, voc=self.source.name == "voc")

    def example_inputs(self) -> Tensor:
        """A batch of one: the first validation image, padded."""
        return pad_batch([self.preparation(self.truth.image(0))], self.preparation.divisor)[0]

    @property
    def trained(self) -> Annotated:
        """The training images and their objects, in their own pixels."""
        found: Annotated = self._train
        return found

    @property
    def truth(self) -> Annotated:
        """The validation images and their objects, in their own pixels."""
        found: Annotated = self._val
        return found

    def _described(self) -> dict[str, Any]:
        both = canvas(self.trained, self.preparation), canvas(self.truth, self.preparation)
        return {"transform": self.preparation.to_json(), "canvas": [max(sides) for sides in zip(*both, strict=True)]}

    def _samples(self, images: Annotated, *, training: bool, told: bool = False) -> Dataset[Any]:
        """As training shows them; `told`, in the views that draws name: 0 for an image as it is, 1 for its mirror image."""
        if told or not training:
            return _Batches(images, self, flip=False, recorded=told, told=told)
        return _Batches(images, self, flip=self.augment == "mirror", scales=self.scales, recorded=self.views is not None)

    def _order(self, count: int, batch_size: int, *, seed: int, rank: int, world: int, drop_last: bool) -> SeekableBatches:
        """Always the same: an image and its mirror image are all its views, so that training sees what it sees without a cache."""
        return SeekableBatches(count, batch_size, seed=seed, drop_last=drop_last, least=2, rank=rank, world=world)

    def _prepared(self, images: Annotated) -> Annotated:
        return images  # kept by those who read them, see `_Batches`

    def _taken(self, images: Annotated, indices: np.ndarray) -> Annotated:  # type: ignore[override]
        return images.take(indices)

    @property
    def _light(self) -> bool:
        return self.in_memory


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
        self._room = _MEMORY // max(1, data.workers)  # each process that reads keeps its own

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
        pixels = as_pixels(self.annotated.image(index))
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
