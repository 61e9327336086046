"""The images of a WAD run: a pool of labelled and unlabelled ones, and the data that a round makes of it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from stillroom.engine.loading import Cycled, Loader
from stillroom.errors import InputError, near
from stillroom.methods.wad.split import mismatch_split
from stillroom.tasks.classification import ImageData
from stillroom.tasks.classification.other_images import WithOtherTrainingImages
from stillroom.tasks.images.folders import EXTENSIONS, list_files, warn_left_out
from stillroom.tasks.images.stores import FileImages, TakenImages, unreadable
from stillroom.tasks.images.transforms import transform_from

logger = logging.getLogger(__name__)
_UNLABELLED = 0  # what unlabelled images have in a label's place: nothing reads it


class Pool:
    """Labelled and unlabelled training images under one numbering, and the target classes' validation images.

    Attributes:
        data: the images; those without labels carry class 0, so that nothing can be learned from their true one.
        labelled: int64, the labelled images' numbers.
        unlabelled: int64, the others'.
        truth: int64 [N], for measuring alone: the target class of every image, -1 for an unknown one. None where it is not known.
    """

    def __init__(self, data: ImageData, labelled: np.ndarray, truth: np.ndarray | None) -> None:
        self.data, self.labelled, self.truth = data, labelled, truth
        self.unlabelled = np.setdiff1d(np.arange(data.train_size), labelled)
        if not len(self.unlabelled):
            logger.warning("there is no unlabelled image: WAD will train on the labelled ones alone")

    @property
    def plain(self) -> ImageData:
        """The pool, its training images prepared as validation images are: what random views are made from."""
        return self.data.in_views(transform_from(self.data.describe()["transform"]), said="plain")


def benchmark(
    data: ImageData, targets: Sequence[str | int] | None, labelled: int, mismatch: float, *, even: bool = False, seed: int = 0
) -> Pool:
    """The paper's benchmark made from fully labelled data (see `mismatch_split`).

    Args:
        data: images of target and unknown classes.
        targets: names of the target classes, or their numbers, in the order that the student will have them in; by default the first
            half of all.
        labelled, mismatch, even, seed: see `mismatch_split`.
    """
    numbers = list(range((data.num_classes + 1) // 2)) if targets is None else [_number(name, data) for name in targets]
    if len(set(numbers)) < max(2, len(numbers)):
        raise InputError("target_classes", list(targets or data.classes), "at least two classes, each once")
    labels = data.train_labels.numpy()
    split = mismatch_split(labels, numbers, labelled, mismatch, even=even, seed=seed)
    ids = np.concatenate([split.labelled, split.unlabelled])
    shown = labels[ids].copy()
    shown[len(split.labelled) :] = numbers[_UNLABELLED]
    place = np.full(data.num_classes, -1)
    place[numbers] = np.arange(len(numbers))
    pool = data.restricted(train=ids, labels=shown).restricted(classes=numbers)
    return Pool(pool, np.arange(len(split.labelled)), place[labels[ids]])


def own_images(data: ImageData, folder: str) -> Pool:
    """Labelled data beside a folder (or zip) of images without labels, at any depth.

    Files that cannot be decoded are left out, with one warning.

    Raises:
        InputError: the folder has no readable image.
    """
    store, files, _ = list_files(folder, "unlabelled")
    names = sorted(name for name in files if name.rpartition(".")[2].lower() in EXTENSIONS)
    images = FileImages(store, names, np.full(len(names), _UNLABELLED))
    damaged = unreadable(images)
    if len(damaged) == len(names):
        raise InputError("unlabelled", folder, "images that can be decoded")
    if len(damaged):
        warn_left_out([names[i] for i in damaged])
    said = hashlib.sha256(repr([(name, files[name]) for name in names]).encode()).hexdigest()
    kept = TakenImages(images, np.setdiff1d(np.arange(len(names)), damaged))
    return Pool(data.joined(kept, said), np.arange(data.train_size), None)


class RoundData(WithOtherTrainingImages):
    """What a round's student is shown: a batch of labelled and a batch of unlabelled images, each gone through at its own pace.

    Args:
        data: the pool's images.
        labelled: numbers of those that are labelled, truly or by promotion.
        unlabelled: numbers of the others; of none, and batches hold labelled images only.
        steps: iterations of an epoch.
        number: of the round, which shows its images in an order of its own.
    """

    def __init__(self, data: ImageData, labelled: np.ndarray, unlabelled: np.ndarray, steps: int, number: int) -> None:
        if steps < 1:
            raise InputError("iterations", steps, "a number of at least 1")
        self.data, self.steps, self.number = data, steps, number
        self.pools = {"labelled": labelled, **({"unlabelled": unlabelled} if len(unlabelled) > 1 else {})}
        parts = data.fingerprint, steps, number, *(ids.tobytes() for ids in self.pools.values())
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        self.batch_size = data.batch_size
        origin = data.indices.get("train")
        self.indices = {name: ids if origin is None else origin[ids] for name, ids in self.pools.items()}

    @property
    def train_size(self) -> int:
        """Images of both kinds."""
        return sum(map(len, self.pools.values()))

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1) -> Cycled:
        """Batches of both kinds, the last of a pass perhaps short, but of two images at least."""
        loaders: dict[str, Loader] = {}
        for name, ids in self.pools.items():
            loaders[name] = self.data.train_loader(seed=seed + 1_000_003 * self.number, rank=rank, world=world, drop_last=False)
            loaders[name].choose(ids)
        return Cycled(loaders, self.steps)


def _number(name: Any, data: ImageData) -> int:
    """A class by its name, or else by its number."""
    name = str(name)
    if name in data.classes:
        return data.classes.index(name)
    if name.isdigit() and int(name) < data.num_classes:
        return int(name)
    raise InputError("target_classes", name, f"classes of the data or their numbers, such as {near(name, data.classes)}")
