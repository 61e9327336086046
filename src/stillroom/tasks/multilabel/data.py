"""The data of a multi-label run: batches of images, 0/1 labels and sample ids."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import to_pil_image

from stillroom.engine.loading import Draw, Loader, Seeded, SeekableBatches, identity, sample_order
from stillroom.engine.task import Task
from stillroom.errors import InputError, at_least, near
from stillroom.tasks.images.arguments import cpus, renormalisation, statistics
from stillroom.tasks.images.batches import Pictures
from stillroom.tasks.images.folders import counted, warn_left_out
from stillroom.tasks.images.stores import Images, MemoryImages, TakenImages, into_memory, unreadable
from stillroom.tasks.images.transforms import Transform
from stillroom.tasks.multilabel.metrics import MultiLabelEvaluator
from stillroom.tasks.multilabel.sources import open_source
from stillroom.tasks.multilabel.transforms import AUGMENTATIONS, describe_transform, train_transform, transform_from

_MEMORY = 0.5e9  # bytes of squashed images that are kept


class Batch(NamedTuple):
    """Images with several labels.

    Attributes:
        images: float32 [B, 3, S, S].
        labels: int64 [B, K], 0 or 1.
        ids: int64 [B], each sample's index in its data set.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    @property
    def inputs(self) -> Tensor:
        """What a network reads."""
        return self.images


class MultiLabelData:
    """A training and a validation set of images, each with any number of labels.

    Images are squashed to a square. Sets of up to 0.5 GB in that size are decoded once, when they are first asked for, and stay in memory;
    all others are read from their files, by worker processes, in every epoch. Image files that cannot be decoded are left out, with one
    warning.

    Args:
        data: where the images are: ``mosaics`` (made up of scikit-learn's digits; those of the default are coarse enough that a small
            student has something left to learn) or ``mosaics:SOURCE`` (of any classified images),
            ``coco:IMAGES,ANNOTATIONS.json``, ``voc:ROOT`` (folder or zip) or ``csv:FILE`` (rows ``file,tag;tag``); options follow after
            commas, e.g. ``voc:bccd.zip,counts=RBC:10:15+Platelets``.
        batch_size: images in a batch, of all processes together.
        workers: processes that read images ahead; by default none for images in memory that are little changed, else up to 4.
        image_size: height and width in pixels that images are squashed to; by default 224, or the mosaics' own.
        augment: random changes of training images: ``randaugment`` (with Cutout, as the paper), ``mirror``, ``turn`` or ``none``; by
            default randaugment, for mosaics none.
        subset: train on this many images only; by default on all.
        val_subset: validate on this many images only; by default on all.
        mean: of each channel, for pixels in [0, 1], e.g. ``[0.5, 0.5, 0.5]``; by default 0, as the paper.
        std: standard deviation of each channel, likewise; by default 1.
        teacher_mean: the mean that the teacher was trained with, where it is another than the student's.
        teacher_std: the teacher's standard deviation, likewise.
        subset_seed: which images the subsets are.
        strict: refuse data with image files that cannot be decoded, which are left out otherwise.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    task: ClassVar[Task]

    def __init__(
        self,
        data: str = "mosaics,grid=3,tile=4",
        *,
        batch_size: int = 64,
        workers: int | None = None,
        image_size: int | None = None,
        augment: str | None = None,
        subset: int | None = None,
        val_subset: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        teacher_mean: tuple[float, float, float] | None = None,
        teacher_std: tuple[float, float, float] | None = None,
        subset_seed: int = 0,
        strict: bool = False,
    ) -> None:
        if augment is not None and augment not in AUGMENTATIONS:
            raise InputError("augment", augment, f"one of {near(augment, AUGMENTATIONS)}")
        self.source = open_source(data)
        self.data = data
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.image_size = self.source.image_size if image_size is None else at_least("image_size", image_size, 1)
        self.augment = augment or self.source.augment
        self.mean, self.std = statistics(mean, std, ((0.0,) * 3, (1.0,) * 3))
        self.renormalise = renormalisation((self.mean, self.std), teacher_mean, teacher_std)
        self.classes: tuple[str, ...] = self.source.classes
        self.num_classes = len(self.classes)
        self.strict = strict
        self.indices: dict[str, np.ndarray] = {}  # of the subsets, in the whole set
        listed = (
            self._taken(self.source.train, "train", "subset", subset, subset_seed),
            self._taken(self.source.val, "val", "val_subset", val_subset, subset_seed),
        )
        self._train_listed, self._val_listed = self._readable(listed[0], "training"), self._readable(listed[1], "validation")
        self._train_transform = train_transform(self.augment, self.image_size, self.mean, self.std)
        self._eval_transform = transform_from(self.describe()["transform"])
        sizes = len(self._train_listed) + len(self._val_listed)
        self.in_memory = 3 * self.image_size**2 * sizes <= _MEMORY
        self._workers = None if workers is None else at_least("workers", workers, 0)
        kept = len(self._train_listed), len(self._val_listed)
        parts = self.source.fingerprint, kept, self.image_size, self.augment, subset, val_subset, self.mean, self.std, subset_seed
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def for_teacher(self) -> MultiLabelData:
        """The same data with the images that the source has for training a teacher: of mosaics others, and more of them."""
        if self.source.teacher is None:
            return self
        _ = self._val  # decoded once, for both
        theirs = copy.copy(self)
        theirs.__dict__.pop("_train", None)
        theirs._train_listed = self.source.teacher
        theirs.indices = {split: indices for split, indices in self.indices.items() if split != "train"}
        theirs.fingerprint = hashlib.sha256(f"{self.fingerprint} teacher".encode()).hexdigest()[:16]
        return theirs

    @property
    def workers(self) -> int:
        """Processes that read images ahead."""
        if self._workers is not None:
            return self._workers
        return 0 if self.in_memory and self._train_transform.fixed else min(4, cpus())

    @property
    def train_size(self) -> int:
        """N, images to train on."""
        return len(self._train)

    @property
    def train_labels(self) -> Tensor:
        """Labels of each training image, int64 [N, K]; batch ids index it."""
        return torch.from_numpy(self._train.labels).long()

    @property
    def val_labels(self) -> Tensor:
        """Labels of each validation image, int64 [N, K]."""
        return torch.from_numpy(self._val.labels).long()

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1) -> Loader:
        """Shuffled, augmented batches of `batch_size / world` images, without a short last one.

        A set smaller than one batch is one batch, of as many images as can be shared evenly by the processes.

        Args:
            seed: of the order and the augmentation.
            rank, world: this process and how many there are.
        """
        count = len(self._train)
        if count < world:
            raise InputError("data", f"{count} training images", f"at least one for each of the {world} processes")
        batch_size = self.batch_size if self.batch_size <= count else count // world * world
        batches = SeekableBatches(count, batch_size, seed=seed, rank=rank, world=world)
        return self._loader(self._train, self._train_transform, batches, training=True)

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The validation images in order, each exactly once over all processes."""
        batches = SeekableBatches(len(self._val), self.batch_size, shuffle=False, drop_last=False, rank=rank, world=world)
        return self._loader(self._val, self._eval_transform, batches, training=False)

    def evaluator(self) -> MultiLabelEvaluator:
        """What measures a network on these labels."""
        return MultiLabelEvaluator(self.num_classes)

    def example_inputs(self) -> Tensor:
        """A batch of one, [1, 3, S, S]: the first validation image."""
        return self._eval_transform(self._val.image(0))[None]

    def describe(self) -> dict[str, Any]:
        """What must be known to use a network that was trained on this data: its labels and how images are prepared."""
        return {
            "source": self.data,
            "classes": list(self.classes),
            "image_size": self.image_size,
            "transform": describe_transform(self.image_size, self.mean, self.std),
        }

    def val_image(self, index: int) -> Image.Image:
        """A validation image for people to look at."""
        image = self._val.image(index)
        return image if isinstance(image, Image.Image) else to_pil_image(image)

    @cached_property
    def _train(self) -> Images:
        return self._prepared(self._train_listed)

    @cached_property
    def _val(self) -> Images:
        return self._prepared(self._val_listed)

    def _taken(self, images: Images, split: str, argument: str, count: int | None, seed: int) -> Images:
        """So many of the images, drawn at random; all for None."""
        if count is None:
            return images
        if not 1 <= count <= len(images):
            raise InputError(argument, count, f"a number from 1 to {len(images)} (all there are)")
        self.indices[split] = np.sort(sample_order(seed, 0, len(images))[:count])
        return TakenImages(images, self.indices[split])

    def _readable(self, images: Images, split: str) -> Images:
        """The images without the files that cannot be decoded."""
        damaged = unreadable(images)
        if not len(damaged):
            return images
        names = [images.name(index) for index in damaged.tolist()]
        if self.strict:
            raise InputError("data", counted(names), "none such, since strict was asked for")
        if len(damaged) == len(images):
            raise InputError("data", f"no readable {split} image", "at least one")
        if int(getattr(rank_zero_only, "rank", 0)) == 0:
            warn_left_out(names)
        return TakenImages(images, np.setdiff1d(np.arange(len(images)), damaged))

    def _prepared(self, images: Images) -> Images:
        if not self.in_memory:
            return images
        return into_memory(images, self.image_size, lambda image: self._eval_transform.prepare(image)[0], strict=self.strict)

    def _loader(self, images: Images, transform: Transform, batches: SeekableBatches, *, training: bool) -> Loader:
        samples = _Batches(images, transform, prepared=self.in_memory and transform.fixed)
        return Loader(samples, batches, workers=self.workers, collate=identity, training=training)


class _Batches(Dataset[Any]):
    """Whole batches by their draws.

    Args:
        prepared: the images are in memory and need nothing done to each.
    """

    def __init__(self, images: Images, transform: Transform, *, prepared: bool) -> None:
        self.images, self.transform, self.prepared = images, transform, prepared
        self.labels = torch.from_numpy(images.labels)
        self.samples = Seeded(Pictures(images), transform.prepare)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, draws: Sequence[Draw]) -> Batch:
        ids, seeds, _ = np.array(draws, np.int64).T
        ids_B = torch.from_numpy(ids.copy())
        if self.prepared and isinstance(self.images, MemoryImages):
            images_BCHW = self.images.pixels[ids_B]
        else:
            images_BCHW = torch.stack([picture for picture, _ in self.samples.__getitems__(draws)])
        return Batch(self.transform.batch(images_BCHW, seeds), self.labels[ids_B].long(), ids_B)
