"""The images of a WAD run: a pool of labelled and unlabelled ones, and the data that a round makes of it."""

from __future__ import annotations

import logging

import numpy as np

from stillroom.engine.loading import Cycled, Loader
from stillroom.errors import InputError, at_least
from stillroom.methods.wad.split import mismatch_split
from stillroom.tasks.classification import ImageData
from stillroom.tasks.classification.other_images import WithOtherTrainingImages
from stillroom.tasks.classification.subsets import ChosenClasses, chosen_classes
from stillroom.tasks.images.data import hashed
from stillroom.tasks.images.transforms import transform_from
from stillroom.tasks.images.unlabelled import open_unlabelled, readable

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


def benchmark(data: ImageData, known_classes: ChosenClasses, labelled: int, mismatch: float, *, even: bool = False, seed: int = 0) -> Pool:
    """The paper's benchmark made from fully labelled data (see `mismatch_split`).

    Args:
        data: images of target and unknown classes.
        known_classes: the target classes, as `chosen_classes` reads them, in the order that the student will have them in; by default the
            first half of all.
        labelled, mismatch, even, seed: see `mismatch_split`.
    """
    numbers = chosen_classes((data.num_classes + 1) // 2 if known_classes is None else known_classes, data.classes, fewest=2)
    labels = data.train_labels.numpy()
    split = mismatch_split(labels, numbers, labelled, mismatch, even=even, seed=seed)
    ids = np.concatenate([split.labelled, split.unlabelled])
    shown = labels[ids].copy()
    shown[len(split.labelled) :] = numbers[_UNLABELLED]
    place = np.full(data.num_classes, -1)
    place[numbers] = np.arange(len(numbers))
    pool = data.restricted(train=ids, labels=shown).restricted(classes=numbers)
    return Pool(pool, np.arange(len(split.labelled)), place[labels[ids]])


def own_images(data: ImageData, unlabelled: str) -> Pool:
    """Labelled data beside a pile of images without labels, see `open_unlabelled`.

    Files that cannot be decoded are left out, with one warning.

    Raises:
        InputError: no such pile, or no image in it that can be decoded, or (`data.strict`) one that cannot.
    """
    if unlabelled == "restyled":
        raise InputError("unlabelled", unlabelled, "a pile of images: there is one of the labelled images restyled for kd3 only")
    images, said = open_unlabelled(unlabelled, _UNLABELLED)
    return Pool(data.joined(readable(images, strict=data.strict), said), np.arange(data.train_size), None)


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
        self.data, self.steps, self.number = data, at_least("iterations", steps, 1), number
        self.pools = {"labelled": labelled, **({"unlabelled": unlabelled} if len(unlabelled) > 1 else {})}
        self.fingerprint = hashed(repr((data.fingerprint, steps, number, *(ids.tobytes() for ids in self.pools.values()))))
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
