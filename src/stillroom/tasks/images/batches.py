"""Batches of labelled images, read whole by their draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from stillroom.engine.loading import Draw, Seeded
from stillroom.tasks.images.stores import Images, MemoryImages
from stillroom.tasks.images.transforms import Parameters, Transform


class Batch(NamedTuple):
    """Labelled images.

    Attributes:
        images: float32 [B, 3, H, W], normalised.
        labels: int64 [B], classes 0 .. C-1; where an image has several labels, [B, K], 0 or 1; float32 [B] where they are quantities.
        ids: int64 [B], each sample's index in its data set.
        views: int64 [B], which recorded view of its training sample each image is (see `ImageSetData.replaying`); None for others.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    views: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """What a network reads."""
        return self.images


class Batches(Dataset[Any]):
    """Whole batches by their draws.

    Args:
        prepared: the images are in memory and need nothing done to each.
        told: answer with what was drawn for the images as well.
    """

    def __init__(self, images: Images, transform: Transform, *, prepared: bool, told: bool) -> None:
        self.images, self.transform, self.prepared, self.told = images, transform, prepared, told
        labels = torch.from_numpy(images.labels)
        self.labels = labels if labels.is_floating_point() else labels.long()
        self.samples = Seeded(Pictures(images), transform.prepare)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> Batch | tuple[Batch, Parameters]:
        return self.__getitems__([draw])

    def __getitems__(self, draws: Sequence[Draw]) -> Batch | tuple[Batch, Parameters]:
        ids, seeds, views = np.array(draws, np.int64).T
        ids_B, views_B = torch.from_numpy(ids.copy()), torch.from_numpy(views.copy())
        drawn: Parameters = {}
        if self.prepared and isinstance(self.images, MemoryImages):
            images_BCHW = self.images.pixels[ids_B]
        else:
            pictures, drawn_each = zip(*self.samples.__getitems__(draws), strict=True)
            images_BCHW = torch.stack(pictures)
            drawn = {name: np.stack([each[name] for each in drawn_each]) for name in drawn_each[0]}
        drawn |= self.transform.draw(seeds, images_BCHW.shape[-2:])
        inputs_BCHW = self.transform.apply(images_BCHW, drawn)
        batch = Batch(inputs_BCHW, self.labels[ids_B], ids_B, None if draws[0].view < 0 else views_B)
        return (batch, drawn) if self.told else batch


class Pictures(Dataset[Any]):
    """The images alone, by index."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor | Image.Image:
        return self.images.image(index)
