"""Training on stored crops: K crops of each image at once, with the labels that a teacher once gave them (FerKD specification, section 3).

One pass over the images with K crops of each counts as K epochs. Here each of these K epochs is a K-th of the pass, so that every epoch has
as many steps and as many crops as one of ordinary training, can be evaluated, and can be gone on from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from stillroom.engine.cache.labels import SoftLabels
from stillroom.errors import InputError


class CropBatch(NamedTuple):
    """Crops of B images, K of each: R = K * B rows, crop-major: row k * B + b is crop k of image b.

    Attributes:
        images: float32 [R, 3, H, W], normalised.
        labels: int64 [R], the images' classes.
        ids: int64 [R], the images' indices in the training set.
        crops: int64 [R], which of the stored crops of its image each row is.
        soft: the stored labels of the rows.
        num_crops: K.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    crops: Tensor
    soft: SoftLabels
    num_crops: int

    @property
    def inputs(self) -> Tensor:
        """What a network reads."""
        return self.images


class Pass(NamedTuple):
    """A part of the training in which every image is visited once.

    Attributes:
        epoch: the first of the epochs that it counts as, from 0.
        crops: how many of each image are shown, and how many epochs it counts as.
        single: whether it is one of those that show one crop of each image on purpose.
    """

    epoch: int
    crops: int
    single: bool


@dataclass(frozen=True)
class CropEpochs:
    """How the epochs of a training are passed over with several crops of each image.

    Passes begin at the epochs 0, K, 2K, ...; what begins within the last K epochs is passed over one epoch at a time, with one crop of
    each image and as many crops in a batch.

    Args:
        epochs: E, of the whole training.
        crops: K.
        single_first: epochs at the start that show one crop of each image too (a warm-up).

    Raises:
        InputError: a number below 1 (for `single_first` below 0).
    """

    epochs: int
    crops: int = 4
    single_first: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("crops", 1), ("single_first", 0)):
            if getattr(self, name) < least:
                raise InputError(name, getattr(self, name), f"a whole number of at least {least}")

    def at(self, epoch: int) -> Pass:
        """The pass that an epoch, from 0, belongs to."""
        number, place = divmod(epoch - self.single_first, self.crops)
        begins = epoch - place
        if number < 0 or begins >= self.epochs - self.crops:
            return Pass(epoch, 1, True)
        return Pass(begins, self.crops, False)

    def passes(self) -> list[Pass]:
        """All passes in order."""
        return sorted({self.at(epoch) for epoch in range(self.epochs)})
