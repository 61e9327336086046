"""Images of which some classes are labelled and the others are to be found."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stillroom.engine.loading import Loader
from stillroom.engine.run.recorder import Evaluator
from stillroom.errors import InputError
from stillroom.methods.crkd.evaluator import DiscoveryEvaluator
from stillroom.tasks.classification import ImageData
from stillroom.tasks.classification.subsets import ChosenClasses, chosen_classes
from stillroom.tasks.images.stores import Images, MemoryImages, TakenImages


class NovelClassData(ImageData):
    """Labelled images of known classes 0 .. L-1, unlabelled ones of novel classes behind them; validation images of all classes.

    Batches hold the labels of the unlabelled images too: only evaluation may look at them.

    Args:
        data: where the images are: see `ImageData`. ``shapes`` needs no file.
        known_classes: the classes that are known; their names or numbers, or one number: the first so many. All others are novel. By
            default 60 % of them.
        clusters: how many novel classes to look for, where it is not known how many there are; by default as many as there are.
        batch_size: images in a batch, labelled and unlabelled, of all processes together.
        workers: processes that read images ahead; by default none for images in memory, else up to 4.
        image_size: pixels of the images that the network is given; height and width; by default the data's own, or 224.
        augment: random changes of training images, see `ImageData`; here they choose how views are made, where `view_style` does not.
        subset: train on this many images only, drawn evenly from the classes; by default on all.
        val_subset: validate on this many images only, drawn evenly from the classes; by default on all.
        mean: of each channel, for pixels in [0, 1]; by default the data's own, or ImageNet's.
        std: standard deviation of each channel, likewise.
        subset_seed: which images the subsets, a long tail and wrong labels are.
        strict: refuse data with image files that cannot be decoded, which are left out otherwise.

    Raises:
        InputError: no known or no novel class, a class that there is not; or see `ImageData`.
    """

    def __init__(
        self,
        data: str = "shapes",
        *,
        known_classes: ChosenClasses = None,
        clusters: int | None = None,
        batch_size: int = 128,
        workers: int | None = None,
        image_size: int | None = None,
        augment: str | None = None,
        subset: int | None = None,
        val_subset: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        subset_seed: int = 0,
        strict: bool = False,
    ) -> None:
        super().__init__(
            data,
            batch_size=batch_size,
            workers=workers,
            image_size=image_size,
            augment=augment,
            subset=subset,
            val_subset=val_subset,
            mean=mean,
            std=std,
            subset_seed=subset_seed,
            strict=strict,
        )
        given = round(0.6 * self.num_classes) if known_classes is None else known_classes
        known = sorted(chosen_classes(given, self.classes, most=self.num_classes - 1))
        if not isinstance(given, int):  # known classes are the first ones from here on
            indices = self.indices  # nothing is left out
            novel = [number for number in range(self.num_classes) if number not in known]
            self.__dict__.update(vars(self.restricted(classes=[*known, *novel])))
            self.indices = indices
        self.known_count = len(known)
        self.clusters = self.num_classes - self.known_count if clusters is None else clusters
        if self.clusters < 1:
            raise InputError("clusters", self.clusters, "a whole number of at least 1")
        self._mark("known", str(self.known_count), str(self.clusters))

    @property
    def labelled(self) -> np.ndarray:
        """Whether each training image is of a known class, bool [N]."""
        return self._train.labels < self.known_count

    def supervised(self) -> ImageData:
        """The known classes alone, to train the teacher on."""
        return self.restricted(classes=range(self.known_count))

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The validation images, and behind them the unlabelled training images; each exactly once over all processes."""
        if not self._novel:
            return super().eval_loader(rank=rank, world=world)
        return self._eval_loader(_joined(self._val, self._train, np.flatnonzero(~self.labelled)), rank, world)

    def evaluator(self) -> Evaluator:  # type: ignore[override]  # whose answers are those of several heads
        """What scores the discovery; of the known classes alone, a classifier."""
        return DiscoveryEvaluator(self.known_count, len(self._val)) if self._novel else super().evaluator()

    def describe(self) -> dict[str, Any]:
        """As `ImageData`; novel classes have numbers, not names, since a network finds them in an order of its own."""
        found = [f"novel {number + 1}" for number in range(self.clusters)] if self._novel else []
        return {**super().describe(), "classes": [*self.classes[: self.known_count], *found]}

    @property
    def _novel(self) -> bool:
        return self.num_classes > self.known_count


class _Joined:
    """All images of one set, then some of another."""

    def __init__(self, first: Images, second: Images) -> None:
        self.parts, self.labels = (first, second), np.concatenate([first.labels, second.labels])

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Any:
        return self._of(index).image(self._place(index))

    def name(self, index: int) -> str:
        return self._of(index).name(self._place(index))

    def _of(self, index: int) -> Images:
        return self.parts[index >= len(self.parts[0])]

    def _place(self, index: int) -> int:
        return index - len(self.parts[0]) * (index >= len(self.parts[0]))


def _joined(first: Images, second: Images, indices: np.ndarray) -> Images:
    """The images of `first`, then those of `second` at the given indices; in memory if both are."""
    if isinstance(first, MemoryImages) and isinstance(second, MemoryImages):
        taken = second.take(indices)
        pixels = torch.cat([first.pixels, taken.pixels])
        return MemoryImages(pixels, np.concatenate([first.labels, taken.labels]), [*first.names, *taken.names])
    return _Joined(first, TakenImages(second, indices))
