"""An unlabelled collection to train on: anyone's pile of images, in the place of a set's own training images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from stillroom.engine.loading import Draw, Loader, SeekableBatches, identity, sample_order, sample_seeds
from stillroom.errors import InputError, one_of
from stillroom.methods.kd3.restyle import restyled
from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.classification.other_images import WithOtherTrainingImages
from stillroom.tasks.images.arguments import statistics
from stillroom.tasks.images.batches import Batches
from stillroom.tasks.images.classified import SMALL
from stillroom.tasks.images.data import hashed
from stillroom.tasks.images.patches import patches
from stillroom.tasks.images.stores import Images, MemoryImages, into_memory, taken
from stillroom.tasks.images.transforms import AUGMENTATIONS, Transform, eval_transform, train_transform
from stillroom.tasks.images.unlabelled import open_unlabelled, readable

RESTYLED = "restyled"
_MEMORY = 1.5e9  # bytes of decoded images that are kept
_UNLABELLED = -1
_LAP = 2**32  # keeps the passes of one epoch apart from other epochs


class WebData(WithOtherTrainingImages):
    """Unlabelled images to train on, and a classification set's validation images to be measured on.

    Where networks are given small images (up to 64 pixels, up to 1.5 GB in all) the collection is decoded once, brought to that size, and
    stays in memory; else it is read from its files in every epoch. Files that cannot be decoded are left out, with one warning. Labels,
    where a collection has some, are forgotten: every label is -1.

    Args:
        data: whose validation images, classes, image size, batch size, workers and statistics these are.
        unlabelled: where the images are, see `open_unlabelled`; or ``restyled``: the training images of `data` in other styles, and as many
            patches of two photographs that come with scikit-learn, for a first look. Or images in memory.
        augment: random changes of the images, see `transforms.AUGMENTATIONS`; by default ``imagenet`` (crop of 8 to 100 % of the area, and
            mirror), for restyled images those of `data`.
        mean: of each channel, for pixels in [0, 1]; by default that of `data`.
        std: standard deviation of each channel, likewise.
        steady: epochs of always as many batches as a pass over the whole collection has, whichever images are chosen: these are shown
            again and again. Else an epoch shows what is chosen once.

    Raises:
        InputError: no such collection, no image in it that can be decoded, or (`data.strict`) one that cannot.
    """

    def __init__(
        self,
        data: ImageData,
        unlabelled: str | MemoryImages = RESTYLED,
        *,
        augment: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        steady: bool = False,
    ) -> None:
        if augment is not None:
            one_of("unlabelled_augment", augment, AUGMENTATIONS)
        self.data, self.steady = data, steady
        self.images, content = _opened(unlabelled, data)
        if len(self.images) < 2:
            raise InputError("unlabelled", "one image", "a collection of two images or more")
        self.augment = augment or (data.augment if unlabelled == RESTYLED else "imagenet")
        used = statistics(mean, std, (data.mean, data.std), of="unlabelled_")
        self._changed = train_transform(self.augment, data.image_size, *used)
        self._plain = eval_transform("cifar" if isinstance(self.images, MemoryImages) else "imagenet", data.image_size, *used)
        self.fingerprint = hashed(repr((data.fingerprint, content, self.augment, used, steady)))
        self.indices: Mapping[str, np.ndarray] = {}

    def __len__(self) -> int:
        """N, the images of the collection."""
        return len(self.images)

    @property
    def train_size(self) -> int:
        """N, web images."""
        return len(self)

    @property
    def batch_size(self) -> int:
        """Images in a batch, of all processes together."""
        return min(self.data.batch_size, len(self.images))

    def train_loader(self, *, seed: int, rank: int = 0, world: int = 1) -> Loader:
        """Shuffled, changed batches of the collection; a short last one of fewer than two images a process is left out."""
        if len(self.images) < 2 * world:
            raise InputError("unlabelled", f"{len(self.images)} images", f"at least two for each of the {world} processes")
        kind = SteadyBatches if self.steady else SeekableBatches
        batches = kind(
            len(self.images), self.batch_size, seed=seed, drop_last=False, least=min(2 * world, self.batch_size), rank=rank, world=world
        )
        return self._loader(self._changed, batches, training=True)

    def scoring_loader(self, *, seed: int, plain: bool = False, rank: int = 0, world: int = 1) -> Loader:
        """Every image once, in order.

        Args:
            seed: of the changes.
            plain: show the images as evaluation does, and not changed.
            rank, world: this process and how many there are.
        """
        batches = SeekableBatches(len(self.images), self.batch_size, seed=seed, shuffle=False, drop_last=False, rank=rank, world=world)
        return self._loader(self._plain if plain else self._changed, batches, training=False)

    def _loader(self, transform: Transform, batches: SeekableBatches, *, training: bool) -> Loader:
        prepared = transform.fixed and isinstance(self.images, MemoryImages)
        samples = Batches(self.images, transform, prepared=prepared, told=False)
        return Loader(samples, batches, workers=self.data.workers, collate=identity, training=training)


class SteadyBatches(SeekableBatches):
    """Epochs of always as many full batches as a pass over the whole set has.

    Where fewer samples are chosen they are gone through again and again, each time in a new order and with new changes. The arguments are
    those of `SeekableBatches`; a short last batch is left out.
    """

    def _count(self, samples: int) -> int:
        return self.size // self.batch_size if samples else 0

    def _batches(self, epoch: int, start: int) -> Iterator[list[Draw]]:
        samples = np.arange(self.size) if self.chosen is None else self.chosen
        for batch in range(start, len(self)):
            first, last = (batch * self.batch_size + bound for bound in self._bounds(self.batch_size))
            laps, places = np.divmod(np.arange(first, last), len(samples))
            ids = np.empty_like(places)
            for lap in np.unique(laps).tolist():
                order = sample_order(self.seed, epoch + lap * _LAP, len(samples))
                ids[laps == lap] = samples[order[places[laps == lap]]]
            seeds = sample_seeds(self.seed, epoch + laps * _LAP, ids)
            yield [Draw(*pair) for pair in zip(ids.tolist(), seeds.tolist(), strict=True)]


def _opened(pile: str | MemoryImages, data: ImageData) -> tuple[Images, str]:
    """The images of a collection, without labels, and a hash of them."""
    if isinstance(pile, MemoryImages):
        content = hashlib.sha256(pile.pixels.numpy().tobytes()).hexdigest()[:16]
        return taken(pile, np.arange(len(pile)), np.full(len(pile), _UNLABELLED)), content
    return _restyled(data) if pile == RESTYLED else _collection(pile, data.image_size, data.strict)


def _restyled(data: ImageData) -> tuple[Images, str]:
    """The training images of `data`, restyled, and patches of photographs."""
    size = data.image_size
    if size > SMALL or 3 * size**2 * data.train_size > _MEMORY:
        raise InputError("unlabelled", RESTYLED, f"imagefolder:PATH, a pile of unlabelled images, for images of {size} pixels")
    from sklearn.datasets import load_sample_images

    fit = eval_transform("cifar", size, data.mean, data.std)
    own = torch.stack([fit.prepare(data._train.image(index))[0] for index in range(data.train_size)])
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    pixels = torch.cat((restyled(own), patches(photographs, len(own), size)))
    names = [f"restyled/{index}" for index in range(len(own))] + [f"patch/{index}" for index in range(len(own))]
    return MemoryImages(pixels, np.full(len(pixels), _UNLABELLED), names), f"{RESTYLED} {data.fingerprint}"


@lru_cache(maxsize=2)  # opened anew for every arm of a comparison
def _collection(spec: str, size: int, strict: bool) -> tuple[Images, str]:
    """The images of a collection without labels, as far as they can be decoded, and a hash of its content."""
    images, content = open_unlabelled(spec, _UNLABELLED)
    whole = len(images)
    if size <= SMALL and 3 * size**2 * whole <= _MEMORY:
        fit = eval_transform("cifar", size, (0.0,) * 3, (1.0,) * 3)
        images = into_memory(images, size, lambda image: fit.prepare(image)[0], strict=strict)
    else:
        images = readable(images, strict=strict)
    return images, f"{content} {len(images)} of {whole} at {size}"
