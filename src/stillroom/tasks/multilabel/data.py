"""The data of a multi-label run: batches of images, 0/1 labels and sample ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.errors import at_least, one_of
from stillroom.tasks.images.data import NAMED, ImageSetData
from stillroom.tasks.images.sources import LabelledSource
from stillroom.tasks.images.transforms import SQUASHED_AUGMENTATIONS, describe_transform, eval_transform, train_transform
from stillroom.tasks.multilabel.metrics import MultiLabelEvaluator
from stillroom.tasks.multilabel.sources import open_source

_MEMORY = 0.5e9  # bytes of squashed images that are kept


class MultiLabelData(ImageSetData):
    """A training and a validation set of images, each with any number of labels.

    Images are squashed to a square. Sets of up to 0.5 GB in that size are decoded once, when they are first asked for, and stay in memory;
    all others are read from their files, by worker processes, in every epoch. Image files that cannot be decoded are left out, with one
    warning.

    Args:
        data: where the images are: ``mosaics`` (made up of scikit-learn's digits; those of the default are coarse enough that a small
            student has something left to learn) or ``mosaics:SOURCE`` (of any classified images),
            ``coco:IMAGES,ANNOTATIONS.json``, ``voc:ROOT`` (folder or zip) or ``csv:FILE`` (rows ``file,tag;tag``); options follow after
            commas, e.g. ``voc:bccd.zip,counts=RBC:10:15+Platelets``.
        image_size: pixels of the images that the network is given; they are squashed to this height and width; by default
            224, or the mosaics' own.
        augment: random changes of training images: ``randaugment`` (with Cutout, as the paper), ``mirror``, ``turn`` or ``none``; by
            default randaugment, for mosaics none.
        options: those of every task on images, see `ImageSetData`.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    source: LabelledSource

    def __init__(
        self, data: str = "mosaics,grid=3,tile=4", *, image_size: int | None = None, augment: str | None = None, **options: Any
    ) -> None:
        if augment is not None:
            one_of("augment", augment, SQUASHED_AUGMENTATIONS)
        source = open_source(data)
        super().__init__(data, source, **options)
        self.image_size = source.image_size if image_size is None else at_least("image_size", image_size, 1)
        self._why = source.why if image_size is None else "as asked for"
        self.augment = augment or source.augment
        self._train_transform = train_transform(self.augment, self.image_size, self.mean, self.std, squash=True)
        self._eval_transform = eval_transform("squash", self.image_size, self.mean, self.std)
        self.in_memory = 3 * self.image_size**2 * sum(map(len, self._listed)) <= _MEMORY
        kept = tuple(map(len, self._listed))
        chosen = {"subset": self.subset, "val_subset": self.val_subset}
        parts = source.fingerprint, kept, self.image_size, self.augment, *chosen.values(), self.mean, self.std, self.subset_seed
        known = {"image_size": self.image_size, "augment": self.augment, **chosen, "subset_seed": self.subset_seed}
        self._identify(*parts, content=self._content, **known)

    @property
    def train_labels(self) -> Tensor:
        """Labels of each training image, int64 [N, K]; batch ids index it."""
        return torch.from_numpy(self._train.labels).long()

    @property
    def val_labels(self) -> Tensor:
        """Labels of each validation image, int64 [N, K]."""
        return torch.from_numpy(self._val.labels).long()

    def listed_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Training and validation images with each label, int64 [K] both, as the data were opened."""
        train_K, val_K = (images.labels.sum(0, dtype=np.int64) for images in self._listed)
        return train_K, val_K

    def first_lines(self) -> list[str]:
        """How many images there are, with which labels; the size and why; what was met."""
        train, val = map(len, self._listed)
        counts = zip(self.classes[:NAMED], *self.listed_counts(), strict=False)
        shown = ", ".join(f"{name} ({trained} + {measured})" for name, trained, measured in counts)
        more = f" and {self.num_classes - NAMED} more" if self.num_classes > NAMED else ""
        first = f"{train} training + {val} validation images with {self.num_classes} labels: {shown}{more}"
        return [first, f"{self.image_size} × {self.image_size} pixels: {self._why}", *self._met()]

    def evaluator(self) -> MultiLabelEvaluator:
        """What measures a network on these labels."""
        return MultiLabelEvaluator(self.num_classes)

    def _described(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "transform": describe_transform("squash", self.image_size, self.mean, self.std)}
