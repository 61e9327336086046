"""The data of an editing run: pictures in [-1, 1], classes where they have them, and what is derived of them for each edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.engine.run.recorder import Evaluator
from stillroom.errors import InputError, at_least, one_of
from stillroom.tasks.editing.judges import ClassJudge, DrawnJudge, Judge
from stillroom.tasks.editing.metrics import EditingEvaluator, MeanEvaluator
from stillroom.tasks.editing.shapes import drawn_shapes
from stillroom.tasks.editing.sources import DRAWN, HALF, PHOTOS, open_source, size_of
from stillroom.tasks.images.data import ImageSetData
from stillroom.tasks.images.sources import LabelledSource
from stillroom.tasks.images.stores import taken
from stillroom.tasks.images.transforms import describe_transform, eval_transform, train_transform

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Self

_MEMORY = 0.5e9  # bytes of pictures that are kept
_AUGMENTATIONS = ("mirror", "none")


class EditingData(ImageSetData):
    """Pictures to edit: a training and a validation set.

    The shorter side is brought to `image_size`, and the centre is cut out. Pixels are in [-1, 1], whatever they show.

    Args:
        data: where the images are: ``colours`` (drawn shapes of six colours), ``photos:FOLDER`` (a folder or zip of any image files), or
            classified images such as ``imagefolder:PATH``, whose classes are what they can be edited to.
        images: a folder of photos, in the place of data: short for ``photos:FOLDER``.
        image_size: pixels of the images that the network is given; their shorter side is brought to it; by default the drawn
            ones' own, 64 where there are classes, and 256 for photos.
        augment: random changes of training images: ``mirror`` or ``none``; by default mirror, for drawn pictures none.
        batch_size: images in a batch, of all processes together.
        workers: processes that read images ahead; by default none for images in memory that are little changed, else up to 4.
        subset: train on this many images only, drawn evenly from the classes where each image has one; by default on all.
        val_subset: validate on this many images only, likewise.
        subset_seed: which images the subsets, and whatever else is drawn of the data, are.
        strict: refuse data with image files that cannot be decoded, which are left out otherwise, with one warning.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    source: LabelledSource

    def __init__(
        self,
        data: str = DRAWN,
        *,
        images: str | None = None,
        image_size: int | None = None,
        augment: str | None = None,
        batch_size: int = 32,
        workers: int | None = None,
        subset: int | None = None,
        val_subset: int | None = None,
        subset_seed: int = 0,
        strict: bool = False,
    ) -> None:
        if augment is not None:
            one_of("augment", augment, _AUGMENTATIONS)
        data = data if images is None else f"{PHOTOS}:{images}"
        source = open_source(data, "data" if images is None else "images")
        super().__init__(
            data,
            source,
            batch_size=batch_size,
            workers=workers,
            subset=subset,
            val_subset=val_subset,
            subset_seed=subset_seed,
            mean=HALF[0],
            std=HALF[1],
            strict=strict,
        )
        usual, why = size_of(source)
        self.image_size = usual if image_size is None else at_least("image_size", image_size, 8)
        self._why = why if image_size is None else "as asked for"
        self.augment = augment or ("none" if source.name == DRAWN else "mirror")
        if source.name == DRAWN and self.image_size != source.image_size:
            raise InputError("image_size", image_size, f"{source.image_size}, in which {DRAWN} are drawn")
        self._train_transform = train_transform(self.augment, self.image_size, self.mean, self.std)
        self._eval_transform = eval_transform("none", self.image_size, self.mean, self.std)
        self.in_memory = 3 * self.image_size**2 * sum(map(len, self._listed)) <= _MEMORY
        self.judge: Judge | None = None
        self.scored = ""  # the figure of a network that edits stand on; empty where edits are scored
        parts = source.fingerprint, self.image_size, self.augment, *self._subsets.values(), self.left_out
        self._identify(*parts, content=source.fingerprint, **self._subsets)

    @property
    def has_classes(self) -> bool:
        """Whether the pictures have classes, which a condition can name."""
        return self.source.name != PHOTOS

    @property
    def drawn(self) -> bool:
        """Whether masks and grounds are known."""
        return self.source.name == DRAWN

    def for_denoiser(self, batch_size: int) -> Self:
        """The same pictures, to train a denoiser on."""
        return self.derive(("denoiser", batch_size), scored="denoising", batch_size=batch_size)

    def for_judge(self) -> Self:
        """The same pictures, to train a judge's classifier on."""
        return self.derive("judge", scored="judge")

    def for_edit(self, prompt: str, source: str | None = None, classifier: nn.Module | None = None) -> Self:
        """What an edit is trained and scored on: all pictures; of classified ones those that are not what they are to become.

        Args:
            prompt: what they are to become; the name of a class where there are classes that a denoiser knows.
            source: the class that is edited; by default all but the prompt's.
            classifier: what judges photos of classes.

        Raises:
            InputError: no such class, or the prompt's own.
        """
        if prompt not in self.classes or not self.has_classes:
            return self.derive(("edit", prompt))
        target = self.classes.index(prompt)
        if source is not None and one_of("from_", source, self.classes) == prompt:
            raise InputError("from_", source, f"another class than the prompt's: one of {', '.join(set(self.classes) - {prompt})}")
        kept = []
        for split, images in zip(("train", "val"), (self._train, self._val), strict=True):
            labels = images.labels
            which = np.flatnonzero(labels != target if source is None else labels == self.classes.index(source))
            if not len(which):
                raise InputError("from_", source or f"all classes but {prompt}", f"pictures of it in the {split} set")
            kept.append(which)
        judge: Judge | None = ClassJudge(target, classifier) if classifier is not None else None
        if self.drawn:
            judge = DrawnJudge(target, self._known().take(kept[1]))
        train, val = (taken(images, which) for images, which in zip((self._train, self._val), kept, strict=True))
        before = [self.indices.get(split, np.arange(count)) for split, count in (("train", self._train_count), ("val", self._val_count))]
        indices = {split: old[which] for split, old, which in zip(("train", "val"), before, kept, strict=True)}
        return self.derive(("edit", prompt, source), train=train, val=val, judge=judge, indices=indices)

    def _known(self) -> Any:
        """What was drawn of the validation pictures that are shown."""
        count, seed = len(self.source.val), int(self.source.val.name(0).split("/")[1])
        drawn = drawn_shapes(count, seed)
        return drawn.take(self.indices["val"]) if "val" in self.indices else drawn

    @property
    def _train_count(self) -> int:
        return len(self._train)

    @property
    def _val_count(self) -> int:
        return len(self._val)

    def listed_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Training and validation pictures of each class, int64 [C] both, as the data were opened."""
        train_C, val_C = (np.bincount(images.labels, minlength=self.num_classes) for images in self._listed)
        return train_C, val_C

    def first_lines(self) -> list[str]:
        """How many pictures there are, of what; the size and why; what was met."""
        train, val = map(len, self._listed)
        of = f" of {self.num_classes} classes: {', '.join(self.classes[:20])}" if self.has_classes else ""
        first = f"{train} training and {val} validation {'drawn pictures (procedural data)' if self.drawn else 'pictures'}{of}"
        return [first, f"{self.image_size} × {self.image_size} pixels: {self._why}", *self._met()]

    def evaluator(self) -> Evaluator:
        """What scores edits; or the network that they stand on."""
        return MeanEvaluator(self.scored) if self.scored else EditingEvaluator(self.judge)

    def _described(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "transform": describe_transform("none", self.image_size, self.mean, self.std)}
