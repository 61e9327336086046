"""Images of which some classes are labelled and the others are to be found."""

from __future__ import annotations

from typing import Any

import numpy as np

from stillroom.engine.loading import Loader
from stillroom.engine.run.recorder import Evaluator
from stillroom.errors import at_least
from stillroom.methods.crkd.evaluator import DiscoveryEvaluator
from stillroom.tasks.classification import ImageData
from stillroom.tasks.classification.subsets import ChosenClasses, chosen_classes
from stillroom.tasks.images.stores import joined, taken


class NovelClassData(ImageData):
    """Labelled images of known classes 0 .. L-1, unlabelled ones of novel classes behind them; validation images of all classes.

    Batches hold the labels of the unlabelled images too: only evaluation may look at them.

    Args:
        data: where the images are: see `ImageData`. ``shapes`` needs no file.
        known_classes: the classes that are known; their names or numbers, or one number: the first so many. All others are novel. By
            default 60 % of them.
        clusters: how many novel classes to look for, where it is not known how many there are; by default as many as there are.
        batch_size: images in a batch, labelled and unlabelled, of all processes together.
        augment: random changes of training images, see `ImageData`; here they choose how views are made, where `view_style` does not.
        options: those of `ImageData`.

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
        augment: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data, batch_size=batch_size, augment=augment, **options)
        given = round(0.6 * self.num_classes) if known_classes is None else known_classes
        known = sorted(chosen_classes(given, self.classes, most=self.num_classes - 1))
        if not isinstance(given, int):  # known classes are the first ones from here on; the images are the same, under other numbers
            novel = [number for number in range(self.num_classes) if number not in known]
            ordered = self.restricted(classes=[*known, *novel])
            self.classes, self._shown = ordered.classes, ordered._shown
            self.fingerprint, self.cache_key = ordered.fingerprint, ordered.cache_key
        self.known_count = len(known)
        self.clusters = at_least("clusters", self.num_classes - self.known_count if clusters is None else clusters, 1)
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
        return self._eval_loader(joined(self._val, taken(self._train, np.flatnonzero(~self.labelled))), rank, world)

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
