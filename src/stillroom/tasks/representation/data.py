"""The data of representation learning: images whose labels, where there are some, are never learnt from, and only measure features."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from stillroom.engine.loading import Loader
from stillroom.errors import InputError, at_least, one_of, positive
from stillroom.tasks.images.classified import SMALL
from stillroom.tasks.images.data import ImageSetData
from stillroom.tasks.images.sources import LabelledSource
from stillroom.tasks.images.stores import Images, joined, stratified, taken
from stillroom.tasks.images.transforms import AUGMENTATIONS, describe_transform, eval_transform, train_transform
from stillroom.tasks.representation.metrics import Protocol, RepresentationEvaluator
from stillroom.tasks.representation.sources import open_source

_MEMORY = 1.5e9  # bytes of decoded images that are kept
_BANK = 10_000
Score = Literal["knn", "few", "linear"]


class RepresentationData(ImageSetData):
    """A training and a validation set of images, without labels to learn from.

    Small images (up to 64 pixels, up to 1.5 GB decoded) are decoded once and stay in memory. Everything else is read from its files, by
    worker processes, in every epoch. Image files that cannot be decoded are left out, with one warning.

    The `eval_loader` shows the bank, training images that others are compared with, and then the validation images.

    Args:
        data: where the images are: ``images:PATH[,val=0.05]`` (folder, zip or tar of images without classes, at any depth), or any
            classified images, whose labels only measure: ``digits``, ``imagefolder:PATH``, ``cifar10:PATH``, ...
        image_size: pixels of the images that the network is given; height and width; by default the data's own, or 224.
        augment: random changes of training images, of methods that show one view of each: ``cifar``, ``tiny-imagenet``, ``imagenet``,
            ``digits`` or ``none``; by default what suits the data.
        bank: training images that features are compared with, and the linear probe learns from; by default all of up to 10 000.
        neighbours: k of the weighted k-NN.
        knn_temperature: T of the weighted k-NN; a neighbour's vote is exp(cosine / T).
        few_labels: labelled images of each class of the few-label k-NN.
        primary: which score decides: ``knn``, ``few`` (the few-label k-NN) or ``linear`` (the linear probe).
        options: those of every task on images, see `ImageSetData`.

    Attributes:
        protocol: how features are scored.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    source: LabelledSource

    def __init__(
        self,
        data: str = "digits",
        *,
        image_size: int | None = None,
        augment: str | None = None,
        bank: int | None = None,
        neighbours: int = 20,
        knn_temperature: float = 0.07,
        few_labels: int = 5,
        primary: Score = "knn",
        **options: Any,
    ) -> None:
        if augment is not None:
            one_of("augment", augment, AUGMENTATIONS)
        one_of("primary", primary, get_args(Score))
        self.protocol = Protocol(
            at_least("neighbours", neighbours, 1),
            positive("knn_temperature", knn_temperature),
            at_least("few_labels", few_labels, 1),
            primary=primary,
        )
        source = open_source(data)
        super().__init__(data, source, **options)
        self.image_size = source.image_size if image_size is None else at_least("image_size", image_size, 1)
        self._why = source.why if image_size is None else "as asked for"
        self.augment = augment or source.augment
        self._style = source.augment if self.augment == "none" else self.augment
        self._train_transform = train_transform(self.augment, self.image_size, self.mean, self.std)
        self._eval_transform = eval_transform(self._style, self.image_size, self.mean, self.std)
        small = self.image_size <= SMALL and 3 * self.image_size**2 * sum(map(len, self._listed)) <= _MEMORY
        self.in_memory = small and self._style != "imagenet"  # whose crops are cut from the original image
        known = {"image_size": self.image_size, "augment": self.augment, **self._subsets}
        parts = self._content, *known.values(), self.mean, self.std, bank, self.protocol
        self._identify(*parts, content=self._content, **known)
        self._bank = self._banked(bank)

    @property
    def labelled(self) -> bool:
        """Whether there are classes to score features by."""
        return self.num_classes > 1

    @property
    def procedural(self) -> bool:
        """Whether the pictures are made up."""
        return self.source.name == "shapes"

    @property
    def bank(self) -> np.ndarray:
        """Ids of the training images that features are compared with, int64 [M], sorted."""
        return self._bank

    @property
    def bank_size(self) -> int:
        """M; batch ids of the `eval_loader` below it are the bank's, those from it on the validation images'."""
        return len(self._bank)

    @property
    def train_labels(self) -> np.ndarray:
        """Class of each training image, int64 [N], for measures alone; -1 where there are none."""
        labels: np.ndarray = self._train.labels
        return labels

    def train_image(self, index: int) -> Image.Image:
        """A training image for people to look at."""
        image = self._train.image(index)
        return image if isinstance(image, Image.Image) else to_pil_image(image)

    def eval_loader(self, *, rank: int = 0, world: int = 1) -> Loader:
        """The bank's images and then the validation images, without random changes, each exactly once over all processes."""
        return self._eval_loader(joined(taken(self._train, self._bank), self._val), rank, world)

    def evaluator(self) -> RepresentationEvaluator:
        """What scores features of the bank and the validation images."""
        return RepresentationEvaluator(self._train.labels[self._bank], self._val.labels, self.num_classes, self.protocol)

    def first_lines(self) -> list[str]:
        """How many images there are, the size and why, how features are scored, and what was met."""
        train, val = map(len, self._listed)
        classes = f"{self.num_classes} classes, whose labels only measure" if self.labelled else "without labels"
        size = f"{self.image_size} × {self.image_size} pixels: {self._why}"
        scored = f"features are scored against {self.bank_size} training images; {self.protocol.said()}"
        alone = "without labels there are no scores: whether features collapse is measured alone (their spread and effective rank)"
        drawn = "procedural data, drawn pictures: " if self.procedural else ""
        return [f"{drawn}{train} training + {val} validation images, {classes}", size, scored if self.labelled else alone, *self._met()]

    def describe(self) -> dict[str, Any]:
        """As every task's; a backbone knows no classes."""
        return {**super().describe(), "classes": []}

    def _described(self) -> dict[str, Any]:
        transform = describe_transform(self._style, self.image_size, self.mean, self.std)
        return {"image_size": self.image_size, "transform": transform}

    def _banked(self, count: int | None) -> np.ndarray:
        there = len(self._listed[0])
        if count is not None and not max(1, self.num_classes) <= count <= there:
            raise InputError("bank", count, f"a number from {max(1, self.num_classes)} to {there}, the training images that there are")
        chosen = min(_BANK, there) if count is None else count
        return np.arange(there) if chosen == there else self._chosen(self._listed[0], "bank", chosen)

    def _chosen(self, images: Images, argument: str, count: int) -> np.ndarray:
        if not self.num_classes or not 1 <= count <= len(images):
            return super()._chosen(images, argument, count)
        return stratified(images.labels, count, seed=self.subset_seed)
