"""Training on stored crops: K crops of each image at once, with the labels that a teacher once gave them (FerKD specification, section 3).

One pass over the images with K crops of each counts as K epochs. Here each of these K epochs is a K-th of the pass, so that every epoch has
as many steps and as many crops as one of ordinary training, can be evaluated, and can be gone on from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from stillroom.engine.loading import Draw, Loader, SeekableBatches, identity, sample_order, sample_seeds, uniforms
from stillroom.errors import InputError, at_least, one_of
from stillroom.methods.ferkd.bank.labels import SoftLabels
from stillroom.methods.ferkd.bank.reader import LabelBank
from stillroom.methods.ferkd.crops import cut, cut_together
from stillroom.methods.ferkd.labelling import checksum, image_names, original_images
from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.classification.other_images import WithOtherTrainingImages
from stillroom.tasks.images.data import hashed
from stillroom.tasks.images.stores import Images, MemoryImages
from stillroom.tasks.images.transforms import Transform, height_and_width

logger = logging.getLogger(__name__)

_COMPARED = 8  # images whose pixels are compared with those that were labelled


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
            at_least(name, getattr(self, name), least)

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


def choose_crops(kept_BM: np.ndarray, seeds_B: np.ndarray, count: int) -> np.ndarray:
    """Crops of each image to show: different ones, or with repetitions where an image has fewer; int64 [B, count].

    Args:
        kept_BM: which stored crops there are, bool [B, M], at least one of each image.
        seeds_B: of which the choice is a pure function.
        count: K.
    """
    left_B = kept_BM.sum(1)
    draws_BK = uniforms(seeds_B, count)
    again_B = left_B < count
    picked_BK = np.empty((len(seeds_B), count), np.int64)
    for k in range(count):  # the k-th of what is left over by those before: its place among all is found by stepping over them in order
        place_B = (draws_BK[:, k] * np.where(again_B, left_B, np.maximum(left_B - k, 1))).astype(np.int64)
        for before_B in np.sort(picked_BK[:, :k], axis=1).T:
            place_B += ~again_B & (place_B >= before_B)
        picked_BK[:, k] = place_B
    columns = np.nonzero(kept_BM)[1]
    return columns[(np.cumsum(left_B) - left_B)[:, None] + picked_BK]


class CropBatches(SeekableBatches):
    """Which crops of which images the batches of an epoch show; every batch has the same number of rows, whatever K is.

    The order of the images is a pure function of (seed, pass), their crops of (seed, pass, image).

    Args:
        bank: the stored crops.
        rows_N: the bank's number of each training image.
        ids: the images that are shown, int64.
        rows: crops in a batch of all processes together, a multiple of K times `world`.
        epochs: how the training is passed over.
        seed, rank, world: as `SeekableBatches`.
    """

    def __init__(
        self, bank: LabelBank, rows_N: np.ndarray, ids: np.ndarray, rows: int, epochs: CropEpochs, *, seed: int, rank: int, world: int
    ) -> None:
        super().__init__(len(ids), rows, seed=seed, rank=rank, world=world)
        self.bank, self.rows_N, self.ids, self.epochs = bank, rows_N, ids, epochs

    def _batches(self, epoch: int, start: int) -> Iterator[list[Draw]]:
        visit = self.epochs.at(epoch)
        images = self.batch_size // visit.crops
        order = self.ids[sample_order(self.seed, visit.epoch, self.size)]
        before = (epoch - visit.epoch) * len(self)
        for batch in range(before + start, before + len(self)):
            ids = order[batch * images : (batch + 1) * images]
            first, last = self._bounds(len(ids))
            yield self._crops(visit, ids[first:last])

    def _crops(self, visit: Pass, ids_B: np.ndarray) -> list[Draw]:
        seeds_B = sample_seeds(self.seed, visit.epoch, ids_B)
        crops_BK = choose_crops(self.bank.kept(self.rows_N[ids_B]), seeds_B, visit.crops)
        columns = np.tile(ids_B, visit.crops), np.tile(seeds_B, visit.crops), crops_BK.T.reshape(-1)
        return [Draw(*each) for each in zip(*(column.tolist() for column in columns), strict=True)]


class _StoredCrops(Dataset[CropBatch]):
    """Whole batches by their draws, whose views are the numbers of stored crops."""

    def __init__(self, images: Images, bank: LabelBank, rows_N: np.ndarray, transform: Transform, size: int) -> None:
        self.images, self.bank, self.rows_N, self.transform, self.size = images, bank, rows_N, transform, size
        self.labels = torch.from_numpy(images.labels)
        self._warned = False

    def __getitems__(self, draws: Sequence[Draw]) -> CropBatch:
        ids, _, crops = np.array(draws, np.int64).T
        rows_R = self.rows_N[ids]
        boxes_R4, flips_R = self.bank.boxes(rows_R, crops)
        if isinstance(self.images, MemoryImages):
            pixels = self.images.pixels[torch.from_numpy(ids.copy())]
            cuts_R3SS = cut_together(pixels, boxes_R4, flips_R, self.size, "bilinear")
        else:
            cuts_R3SS = torch.empty(len(ids), 3, self.size, self.size, dtype=torch.uint8)
            for index in np.unique(ids).tolist():
                here = np.flatnonzero(ids == index)
                image = self.images.image(index)
                self._look_at(index, image)
                cuts_R3SS[torch.from_numpy(here)] = cut(image, boxes_R4[here], flips_R[here], self.size, "bilinear")
        inputs = self.transform.apply(cuts_R3SS, {})
        ids_R, crops_R = torch.from_numpy(ids.copy()), torch.from_numpy(crops.copy())
        return CropBatch(inputs, self.labels[ids_R], ids_R, crops_R, self.bank.soft(rows_R, crops), len(ids) // len(np.unique(ids)))

    def _look_at(self, index: int, image: Image.Image | Tensor) -> None:
        if not self._warned and misshapen(self.bank.arrays["sizes"][self.rows_N[index]], image):
            warn_of_other_images(self.images.name(index))
            self._warned = True


class BankData(WithOtherTrainingImages):
    """Data whose training batches are stored crops with stored labels (`CropBatch`), and which are measured as `data` are.

    Args:
        data: with the images, and how they are validated.
        bank: with their crops and labels; may have other images besides.
        epochs: how the training is passed over.
        missing: what to do about training images that the bank does not have: ``error``, or ``skip`` them and say how many.

    Raises:
        InputError: the bank is of other classes, or lacks images; one is named.
    """

    def __init__(self, data: ImageData, bank: LabelBank, epochs: CropEpochs, *, missing: Literal["error", "skip"] = "error") -> None:
        one_of("missing", missing, ("error", "skip"))
        if tuple(bank.classes) != tuple(data.classes):
            raise InputError(
                "labels", f"{bank.path} of {_shortly(bank.classes)}", f"a bank of the data's classes: {_shortly(data.classes)}"
            )
        self.data, self.bank, self.epochs = data, bank, epochs
        self._originals = original_images(data)
        self._rows = bank.rows_of(image_names(self._originals))
        self._ids = np.flatnonzero(self._rows >= 0)
        self.indices = {**data.indices, "labelled": self._ids} if len(self._ids) < len(self._rows) else data.indices
        self.batch_size = data.batch_size
        self.fingerprint = hashed(repr((data.fingerprint, "labels", bank.fingerprint(), repr(epochs))))
        self._check(missing)

    @property
    def train_size(self) -> int:
        """Images that there are labels of."""
        return len(self._ids)

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1) -> Loader:
        """Batches of stored crops.

        `batch_size` crops (rounded up to K of each image) are a batch of all processes together, or as many as a smaller set allows.

        Args:
            seed: of the order and the choice of crops.
            rank, world: this process and how many there are; they share the images of a batch.
        """
        crops = self.epochs.crops
        images = min(-(-self.batch_size // crops), len(self._ids) // (crops * world) * world)
        if not images:
            raise InputError("data", f"{len(self._ids)} labelled images", f"at least {crops * world}, crops of an image x processes")
        if images % world:
            got = f"{self.batch_size}, which is {images} images with {crops} crops each"
            raise InputError("batch_size", got, f"images that {world} processes can share evenly")
        batches = CropBatches(self.bank, self._rows, self._ids, images * crops, self.epochs, seed=seed, rank=rank, world=world)
        shown = _StoredCrops(self._originals, self.bank, self._rows, self.data._eval_transform, self.data.image_size)
        return Loader(shown, batches, workers=self.data.workers, collate=identity)

    def _check(self, missing: str) -> None:
        """The images are those that were labelled."""
        lacking = np.flatnonzero(self._rows < 0)
        if len(lacking):
            first = self._originals.name(int(lacking[0]))
            if missing == "error" or len(lacking) == len(self._rows):
                got = f"{self.bank.path}, which has no labels of {len(lacking)} of {len(self._rows)} images, {first} for one"
                raise InputError("labels", got, "a bank of all training images, or --missing skip")
            logger.warning("%d of %d training images have no labels and are not shown, %s for one", len(lacking), len(self._rows), first)
        rows = self._rows[self._ids]
        other = np.flatnonzero(self.bank.targets[rows] != self._originals.labels[self._ids])
        if len(other):
            index = int(self._ids[other[0]])
            got = f"{self.bank.path}, in which {self._originals.name(index)} is of class {int(self.bank.targets[self._rows[index]])}"
            raise InputError("labels", got, f"class {int(self._originals.labels[index])}, as in the data")
        for index in self._ids[:_COMPARED].tolist():
            image, row = self._originals.image(index), int(self._rows[index])
            known = int(self.bank.arrays["checksums"][row])
            if misshapen(self.bank.arrays["sizes"][row], image) or (known and known != checksum(image)):
                warn_of_other_images(self._originals.name(index))
                return


def misshapen(labelled: np.ndarray, image: Image.Image | Tensor) -> bool:
    """Whether an image's proportions are others (by more than a pixel) than its height and width when it was labelled; 0: not known."""
    height, width = labelled.tolist()
    now_height, now_width = height_and_width(image)
    return height > 0 and abs(now_height * width - now_width * height) > max(height, width)


def warn_of_other_images(name: str) -> None:
    """The boxes are fractions, so they still apply; what they show may not be what was labelled."""
    logger.warning(
        "%s is not the image that was labelled (other pixels or proportions); its crops are cut where the labelled ones were", name
    )


def _shortly(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}, ...)"
