"""The data of a classification run: batches of images, labels and sample ids."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from stillroom.engine.cache import EveryView, ReplayedBatches, Views
from stillroom.engine.loading import Loader, SeekableBatches, identity
from stillroom.engine.task import Task
from stillroom.errors import InputError, at_least, near
from stillroom.tasks.classification.metrics import ClassificationEvaluator
from stillroom.tasks.classification.sources import SMALL, open_source
from stillroom.tasks.classification.subsets import make_harder, read_hardship, restricted
from stillroom.tasks.classification.views import View, ViewBatches
from stillroom.tasks.images.arguments import cpus, renormalisation, statistics
from stillroom.tasks.images.batches import Batches
from stillroom.tasks.images.folders import counted, warn_left_out
from stillroom.tasks.images.stores import Images, MemoryImages, TakenImages, into_memory, joined, stratified, unreadable
from stillroom.tasks.images.transforms import (
    AUGMENTATIONS,
    Transform,
    describe_transform,
    eval_transform,
    train_transform,
)

_MEMORY = 1.5e9  # bytes of decoded images that are kept


class ImageData:
    """A training and a validation set of classified images.

    Small images (up to 64 pixels, up to 1.5 GB decoded) are decoded once, when a loader or the labels are first asked for, and stay in
    memory. Everything else is read from its files, by worker processes, in every epoch.

    Image files are looked at when the data are opened (see `images.unreadable`). Those that cannot be decoded are left out, with one
    warning; the others are numbered without them, and the fingerprint tells sets with other files left out apart.

    Args:
        data: where the images are: ``digits`` (small, comes with scikit-learn), ``shapes`` (60 classes of drawn pictures),
            ``imagefolder:PATH[,val=0.2]`` (folder or zip, one folder per class), ``cifar10:PATH``, ``cifar100:PATH``,
            ``tiny-imagenet:PATH``, ``imagenet:PATH``, or ``package.module:function`` or ``file.py:function`` returning (train, val).
            Behind any of them ``,imbalance=exp:100`` (or step, reverse) trains on a long tail, with ``,largest=500`` images of its largest
            class, and ``,noise=0.2`` with wrong labels.
        batch_size: images in a batch, of all processes together.
        workers: processes that read images ahead; by default none for images in memory, else up to 4.
        image_size: height and width in pixels that the network is given; by default the data's own, or 224.
        augment: random changes of training images: ``cifar``, ``tiny-imagenet``, ``imagenet``, ``digits`` or ``none``; by default what
            suits the data.
        subset: train on this many images only, drawn evenly from the classes; by default on all.
        val_subset: validate on this many images only, drawn evenly from the classes; by default on all.
        mean: of each channel, for pixels in [0, 1], e.g. ``[0.5, 0.5, 0.5]``; by default the data's own, or ImageNet's.
        std: standard deviation of each channel, likewise.
        teacher_mean: the mean that the teacher was trained with, where it is another than the student's.
        teacher_std: the teacher's standard deviation, likewise.
        subset_seed: which images the subsets, a long tail and wrong labels are.
        strict: refuse data with image files that cannot be decoded, which are left out otherwise.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    task: ClassVar[Task]

    def __init__(
        self,
        data: str = "digits",
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
        spec, hardship = read_hardship(data)
        self.source = open_source(spec)
        self.data = data
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.image_size = self.source.image_size if image_size is None else at_least("image_size", image_size, 1)
        self.augment = augment or self.source.augment
        self.mean, self.std = statistics(mean, std, (self.source.mean, self.source.std))
        self.renormalise = renormalisation((self.mean, self.std), teacher_mean, teacher_std)
        self.classes: tuple[str, ...] = self.source.classes
        self.num_classes = len(self.classes)
        self.input_shape = (3, self.image_size, self.image_size)
        self.strict = strict
        listed = (
            _taken(self.source.train, "subset", subset, self.num_classes, subset_seed),
            _taken(self.source.val, "val_subset", val_subset, self.num_classes, subset_seed),
        )
        listed, left_out = self._readable(listed)
        try:
            images, self.indices = make_harder(listed[0], self.num_classes, hardship, seed=subset_seed)
        except InputError as error:
            raise InputError("data", f"{error.argument}={error.got}", error.expected) from None
        self._listed = images, listed[1]
        content = self.source.fingerprint
        if left_out:
            content = hashlib.sha256(repr((content, left_out)).encode()).hexdigest()[:16]
        # Evaluation prepares images as training does, except that "none" says nothing about it.
        self._style = self.source.augment if self.augment == "none" else self.augment
        self._train_transform = train_transform(self.augment, self.image_size, self.mean, self.std)
        self._eval_transform = eval_transform(self._style, self.image_size, self.mean, self.std)
        self.in_memory = self._fits_memory()
        self.workers = self._default_workers() if workers is None else at_least("workers", workers, 0)
        if hardship:
            content = hashlib.sha256(repr((content, hardship)).encode()).hexdigest()[:16]
        parts = content, self.image_size, self.augment, subset, val_subset, self.mean, self.std, subset_seed
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        self.cache_key: dict[str, Any] = {
            "data": content,
            "image_size": self.image_size,
            "augment": self.augment,
            "subset": subset,
            "val_subset": val_subset,
            "subset_seed": subset_seed,
            "mean": list(self.mean),
            "std": list(self.std),
            "teacher_mean": None if self.renormalise is None else list(self.renormalise.to_mean),
            "teacher_std": None if self.renormalise is None else list(self.renormalise.to_std),
        }
        self.views: Views | None = None
        self.training_views: tuple[View, ...] = ()

    def restricted(
        self,
        *,
        train: np.ndarray | Tensor | None = None,
        val: np.ndarray | Tensor | None = None,
        labels: np.ndarray | Tensor | None = None,
        classes: Sequence[int] | None = None,
        name: str = "train",
    ) -> ImageData:
        """The same data with fewer images, other training labels or fewer classes. Batch ids number the images that are left.

        `classes` comes first: images of other classes are left out, and class k is `classes[k]` from then on. `train`, `val` and `labels`
        are of what it leaves.

        Args:
            train, val: indices of the images to keep, int64 [M], in the order that they will be numbered in.
            labels: of the training images that are kept, int64 [M]: pseudo-labels, for example.
            classes: numbers of the classes to keep, in their new order.
            name: what the kept training images are called in `indices`, which is written into the folder of each stage.

        Raises:
            InputError: an index or a class that there is not, or an image without a label of its own.
        """
        part = copy.copy(self)
        (images, kept), (val_images, _) = restricted(
            self._train, self._val, self.num_classes, train=train, val=val, labels=labels, classes=classes
        )
        if classes is not None:
            part.classes = tuple(self.classes[number] for number in classes)
            part.num_classes = len(part.classes)
        part.__dict__.update(_train=images, _val=val_images)  # what the cached properties answer from now on
        origin = self.indices.get(name)
        part.indices = {**self.indices, name: kept if origin is None else origin[kept]}
        given = [None if array is None else np.asarray(array).tobytes() for array in (train, val, labels)]
        part._mark("restricted", str(given), str(classes))
        return part

    def joined(self, images: Images, said: str) -> ImageData:
        """The same data with more training images behind its own.

        Args:
            images: whose labels are classes of this data; any of them stands for images without labels, which a method must not read.
            said: what tells these images from others in the data's fingerprint.
        """
        part = copy.copy(self)
        part.__dict__.update(_train=joined(self._train, self._prepared(images)), _val=self._val)
        part._mark("joined", said)
        return part

    def in_views(self, *views: View, said: str) -> ImageData:
        """The same data, but that training batches show every image in each of these views (`ViewBatch`).

        Args:
            views: how images are changed and prepared: transforms, or functions of one image to a normalised tensor.
            said: what tells these views from others in the data's fingerprint.
        """
        part = copy.copy(self)
        part.training_views = views
        part._mark("views", said)
        return part

    def _mark(self, *parts: str) -> None:
        """Makes the fingerprints those of other data."""
        self.fingerprint = hashlib.sha256(repr((self.fingerprint, *parts)).encode()).hexdigest()[:16]
        self.cache_key = {**self.cache_key, "restricted": self.fingerprint}

    def replaying(self, views: Views) -> ImageData:
        """The same data, but that training shows these views of its images and no others; its batches say which."""
        _ = self._train, self._val  # decoded once, for both
        replaying = copy.copy(self)
        replaying.views = views
        replaying.fingerprint = hashlib.sha256(repr((self.fingerprint, views)).encode()).hexdigest()[:16]
        return replaying

    def for_teacher(self) -> ImageData:
        """The same data: teachers are trained on what students are."""
        return self

    @property
    def train_size(self) -> int:
        """N, images to train on."""
        return len(self._train)

    @property
    def train_labels(self) -> Tensor:
        """Label of each training image, int64 [N]; batch ids index it."""
        return torch.from_numpy(self._train.labels)

    @property
    def class_counts(self) -> Tensor:
        """Training images of each class, int64 [C]."""
        return torch.bincount(self.train_labels, minlength=self.num_classes)

    @property
    def val_labels(self) -> Tensor:
        """Label of each validation image, int64 [N]."""
        return torch.from_numpy(self._val.labels)

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1, drop_last: bool = True) -> Loader:
        """Shuffled, augmented batches of `batch_size / world` images.

        A set smaller than one batch is one batch, of as many images as can be shared evenly by the processes.

        Args:
            seed: of the order and the augmentation.
            rank, world: this process and how many there are.
            drop_last: leave out a short last batch; else one of two images or more is kept.
        """
        count = len(self._train)
        if count < world:
            raise InputError("data", f"{count} training images", f"at least one for each of the {world} processes")
        batch_size = self.batch_size if self.batch_size <= count else count // world * world
        batches = (
            SeekableBatches(count, batch_size, seed=seed, drop_last=drop_last, least=2, rank=rank, world=world)
            if self.views is None
            else ReplayedBatches(count, batch_size, views=self.views, seed=seed, rank=rank, world=world)
        )
        if self.training_views:
            fitted = self.in_memory and self._train_transform.fixed
            return Loader(ViewBatches(self._train, self.training_views, fitted=fitted), batches, workers=self.workers, collate=identity)
        return self._loader(self._train, self._train_transform, batches, training=True)

    def every_view(self, views: Views, *, batch_size: int, start: int = 0) -> Loader:
        """Every view of every training image once, in the order of `EveryView`, from batch number `start` on.

        Its batches are pairs: a `Batch`, and what was drawn for each of its images (`transforms.Parameters`).
        """
        batches = EveryView(len(self._train), batch_size, views=views)
        loader = Loader(
            self._samples(self._train, self._train_transform, told=True), batches, workers=self.workers, collate=identity, training=False
        )
        loader.load_state_dict({"epoch": 0, "batch": start})
        return loader

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The validation images in order, each exactly once over all processes."""
        return self._eval_loader(self._val, rank, world)

    def train_eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The training images in order and without augmentation, each exactly once over all processes."""
        return self._eval_loader(self._train, rank, world)

    def evaluator(self) -> ClassificationEvaluator:
        """What measures a network on these classes."""
        return ClassificationEvaluator(self.num_classes)

    def example_inputs(self) -> Tensor:
        """A batch of one, [1, 3, H, W]: the first validation image."""
        return self._eval_transform(self._val.image(0))[None]

    def describe(self) -> dict[str, Any]:
        """What must be known to use a network that was trained on this data: classes and how images are prepared."""
        transform = describe_transform(self._style, self.image_size, self.mean, self.std)
        return {
            "source": self.data,
            "classes": list(self.classes),
            "image_size": self.image_size,
            "transform": transform,
            "fingerprint": self.fingerprint,
        }

    def val_image(self, index: int) -> Image.Image:
        """A validation image for people to look at."""
        image = self._val.image(index)
        return image if isinstance(image, Image.Image) else to_pil_image(image)

    def train_name(self, index: int) -> str:
        """Where a training image comes from."""
        return self._train.name(index)

    def val_name(self, index: int) -> str:
        """Where a validation image comes from."""
        return self._val.name(index)

    @cached_property
    def _train(self) -> Images:
        return self._prepared(self._listed[0])

    @cached_property
    def _val(self) -> Images:
        return self._prepared(self._listed[1])

    def _readable(self, listed: tuple[Images, Images]) -> tuple[tuple[Images, Images], list[str]]:
        """Training and validation images without the files that cannot be decoded, and the names of these."""
        damaged = [unreadable(images) for images in listed]
        names = [images.name(index) for images, indices in zip(listed, damaged, strict=True) for index in indices.tolist()]
        if not names:
            return listed, names
        if self.strict:
            raise InputError("data", counted(names), "none such, since strict was asked for")
        if int(getattr(rank_zero_only, "rank", 0)) == 0:
            warn_left_out(names)
        train, val = (TakenImages(images, np.setdiff1d(np.arange(len(images)), i)) for images, i in zip(listed, damaged, strict=True))
        kept: tuple[Images, Images] = train, val
        for images, split in zip(kept, ("training", "validation"), strict=True):
            counts = np.bincount(images.labels, minlength=self.num_classes)
            if empty := [name for name, count in zip(self.classes, counts, strict=True) if not count]:
                raise InputError("data", f"no readable {split} image of {', '.join(empty[:5])}", "at least one of each class")
        return kept, names

    def _prepared(self, images: Images) -> Images:
        if not self.in_memory or (isinstance(images, MemoryImages) and images.pixels.shape[-2:] == self.input_shape[1:]):
            return images
        return into_memory(images, self.image_size, lambda image: self._eval_transform.prepare(image)[0], strict=self.strict)

    def _fits_memory(self) -> bool:
        bytes_per_image = 3 * self.image_size**2
        small = self.image_size <= SMALL and bytes_per_image * sum(map(len, self._listed)) <= _MEMORY
        return small and self._style != "imagenet"  # whose crops are cut from the original image

    def _default_workers(self) -> int:
        return 0 if self.in_memory and self._train_transform.fixed else min(4, cpus())

    def _eval_loader(self, images: Images, rank: int, world: int) -> Loader:
        batches = SeekableBatches(len(images), self.batch_size, shuffle=False, drop_last=False, rank=rank, world=world)
        return self._loader(images, self._eval_transform, batches, training=False)

    def _loader(self, images: Images, transform: Transform, batches: SeekableBatches, *, training: bool) -> Loader:
        return Loader(self._samples(images, transform), batches, workers=self.workers, collate=identity, training=training)

    def _samples(self, images: Images, transform: Transform, *, told: bool = False) -> Batches:
        return Batches(images, transform, prepared=self.in_memory and transform.fixed, told=told)


def _taken(images: Images, argument: str, count: int | None, classes: int, seed: int) -> Images:
    if count is None:
        return images
    if not classes <= count <= len(images):
        raise InputError(argument, count, f"a number from {classes} (one of each class) to {len(images)} (all there are)")
    indices = stratified(images.labels, count, seed=seed)
    return images.take(indices) if isinstance(images, MemoryImages) else TakenImages(images, indices)
