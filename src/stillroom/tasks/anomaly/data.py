"""The data of an anomaly run: good pictures of each category to train on, some of them held out, and test pictures with masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stillroom.engine.loading import Draw
from stillroom.tasks.anomaly.inspected import GOOD, Inspected
from stillroom.tasks.anomaly.metrics import AnomalyEvaluator, HeldOutEvaluator
from stillroom.tasks.anomaly.preparation import Preparation
from stillroom.tasks.anomaly.sources import AnomalySource, open_source
from stillroom.tasks.images.batches import Batches
from stillroom.tasks.images.data import ImageSetData
from stillroom.tasks.images.stores import hold_out, into_memory, stratified, taken

if TYPE_CHECKING:
    from typing_extensions import Self

_MEMORY = 0.5e9  # bytes of prepared pictures that are kept


class AnomalyBatch(NamedTuple):
    """Test pictures.

    Attributes:
        images: float32 [B, 3, S, S], normalised.
        categories: int64 [B].
        anomalous: int64 [B], 1 for a picture with a defect.
        masks: uint8 [B, S, S], 1 where the defect is, 2 everywhere in the picture of a defect whose place is not known.
        ids: int64 [B], each picture's index in the test set.
    """

    images: Tensor
    categories: Tensor
    anomalous: Tensor
    masks: Tensor
    ids: Tensor

    @property
    def inputs(self) -> Tensor:
        """The images."""
        return self.images


class AnomalyData(ImageSetData):
    """Good pictures of one or several categories of products, and pictures to test on.

    What is trained on is one category's (`of_category`): its good pictures but for those that are held out, which choose the epoch and make
    the threshold. The validation set of the whole are the test pictures of all categories; of good pictures alone, those held out.

    Args:
        data: where the images are: ``mvtec:ROOT`` (MVTec AD, MPDD, BTAD, VisA as they lie on disk, or anything in their layouts; a folder
            or a zip; ``mvtec:ROOT,category=a+b`` takes some categories, ``val=0.2`` says which share of good pictures is held out),
            ``good:FOLDER`` (good pictures alone) or ``textures`` (drawn; ``textures:category=wood+stone,train=64,test=40``).
        batch_size: images in a batch, of all processes together.
        image_size: pixels of the images that the network is given; height and width; by default 256, or the textures' own.
        fit: ``squash`` brings whole pictures to the square, ``crop`` their shorter side, and cuts out the centre.
        antialias: smooth pictures before they are shrunk.
        options: those of every task on images, see `ImageSetData`.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    source: AnomalySource

    def __init__(
        self,
        data: str = "textures",
        *,
        batch_size: int = 16,
        image_size: int | None = None,
        fit: Literal["squash", "crop"] = "squash",
        antialias: bool = True,
        **options: Any,
    ) -> None:
        source = open_source(data)
        size = source.image_size if image_size is None else image_size
        self.preparation = Preparation(size, fit, antialias=antialias)
        self.image_size = size
        super().__init__(data, source, batch_size=batch_size, **options)
        train, test = self._listed
        self.held_out_N = hold_out(train.labels, self.classes, source.share, "data")
        self.tested = len(test) > 0
        self._shown = train, test if self.tested else train.take(np.flatnonzero(self.held_out_N))
        self.category: int | None = None  # of data that one category is trained on
        self.in_memory = 3 * size**2 * (len(train) + len(test)) <= _MEMORY
        self._train_transform = self._eval_transform = self.preparation.transform(self.mean, self.std)
        self._known_by({"image_size": size, "fit": fit, "antialias": antialias, "val": source.share})

    def of_category(self, category: int) -> Self:
        """What one category's student is trained on: its good pictures, and as validation set those of them that are held out."""
        train = self._listed[0]
        mine = train.labels == category
        kept, held = np.flatnonzero(mine & ~self.held_out_N), np.flatnonzero(mine & self.held_out_N)
        whole = self.indices.get("train")
        indices = {"train": kept, "val": held} if whole is None else {"train": whole[kept], "val": whole[held]}
        return self.derive(("category", category), train=train.take(kept), val=train.take(held), indices=indices, category=category)

    def evaluator(self) -> AnomalyEvaluator | HeldOutEvaluator:
        """Of test pictures the areas under curves; of held-out good ones, while a student is trained, its distance from its teacher."""
        if self.category is not None:
            return HeldOutEvaluator()
        pictures: Inspected = self._shown[1]
        kinds = [pictures.kinds[pictures.labels == k] == GOOD for k in range(self.num_classes)]
        return AnomalyEvaluator(self.classes, both=any(good.any() and not good.all() for good in kinds))

    def first_lines(self) -> list[str]:
        """How many pictures there are of what, in which size; what was met."""
        train, test = self._listed
        held, bad = int(self.held_out_N.sum()), int((test.kinds != GOOD).sum()) if self.tested else 0
        test_said = f"{len(test) - bad} good and {bad} anomalous pictures to test on" if self.tested else "none to test on"
        counts = f"{len(train) - held} good pictures to train on + {held} held out; {test_said}"
        categories = f"{self.num_classes} categor{'y' if self.num_classes == 1 else 'ies'} ({', '.join(self.classes[:8])}"
        seen = "whole pictures squashed" if self.preparation.fit == "squash" else "the centre of pictures, their shorter side resized"
        smooth = "antialiased" if self.preparation.antialias else "without antialiasing"
        size = f"{self.image_size} × {self.image_size} pixels: {seen}, {smooth}"
        return [f"{counts}; {categories}{', ...' if self.num_classes > 8 else ''})", size, *self._met()]

    def mask(self, index: int) -> Tensor:
        """A test picture's mask as in a batch, uint8 [S, S]."""
        pictures: Inspected = self._shown[1]
        if pictures.kinds[index] == GOOD:
            return torch.zeros(self.image_size, self.image_size, dtype=torch.uint8)
        mask_HW = pictures.mask(index)
        if mask_HW is None:
            return torch.full((self.image_size, self.image_size), 2, dtype=torch.uint8)
        return torch.from_numpy(self.preparation.mask(mask_HW).astype(np.uint8))

    @property
    def trained_labels(self) -> np.ndarray:
        """The category of each good picture that is there to train on or held out, int64 [N]."""
        labels: np.ndarray = self._listed[0].labels
        return labels

    def listed_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Pictures of each category to train on, and to test on, int64 [categories] both."""
        counted = [self.trained_labels[~self.held_out_N], self._listed[1].labels]
        train, test = (np.bincount(labels, minlength=self.num_classes) for labels in counted)
        return train, test

    @property
    def kinds(self) -> np.ndarray:
        """Of each test picture `GOOD` or the name of its defect, str [N]."""
        kinds: np.ndarray = self._shown[1].kinds
        return kinds

    def _described(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "transform": self.preparation.describe(self.mean, self.std)}

    def _samples(self, images: Any, *, training: bool, told: bool = False) -> Dataset[Any]:
        transform = self._eval_transform
        batches = Batches(images, transform, prepared=self.in_memory, told=told)
        return batches if training or told or self.category is not None else _Tested(batches, self)

    def _prepared(self, images: Any) -> Any:
        if not self.in_memory or not len(images):
            return images
        return into_memory(images, self.image_size, self.preparation, strict=True)  # none left out: masks go by their numbers

    def _chosen(self, images: Any, argument: str, count: int) -> np.ndarray:
        """Evenly of the categories; of test pictures evenly of good ones and each kind of defect."""
        super()._chosen(images, argument, count)  # whether there are so many
        _, groups = np.unique(np.stack([images.labels.astype(np.str_), images.kinds]), axis=1, return_inverse=True)
        return stratified(groups.reshape(-1), count, seed=self.subset_seed)

    def _taken(self, images: Any, indices: np.ndarray) -> Any:
        return taken(images, indices)


class _Tested(Dataset[Any]):
    """Whole batches of test pictures with their masks, by their draws."""

    def __init__(self, batches: Batches, data: AnomalyData) -> None:
        self.batches, self.data = batches, data

    def __len__(self) -> int:
        return len(self.batches)

    def __getitems__(self, draws: Sequence[Draw]) -> AnomalyBatch:
        batch: Any = self.batches.__getitems__(draws)
        masks_BSS = torch.stack([self.data.mask(draw.id) for draw in draws])
        anomalous_B = torch.from_numpy((self.data.kinds[[draw.id for draw in draws]] != GOOD).astype(np.int64))
        return AnomalyBatch(batch.images, batch.labels, anomalous_B, masks_BSS, batch.ids)
