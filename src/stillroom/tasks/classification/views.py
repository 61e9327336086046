"""Training batches that show every image several times, each time changed another way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from stillroom.engine.loading import Draw, kept_generators, sample_seeds, seed_generators
from stillroom.tasks.images.stores import Images, MemoryImages
from stillroom.tasks.images.transforms import Transform

# A transform of our own, which works on whole batches where it can, or a function of one image: PIL or uint8 [3, H, W] -> float [3, S, S].
View = Transform | Callable[[Any], Tensor]


class ViewBatch(NamedTuple):
    """Classified images in several views.

    Attributes:
        views: one tensor float32 [B, 3, H_v, W_v] for each view, normalised; row b of all of them is the same image.
        labels: int64 [B].
        ids: int64 [B], each sample's index in its data set.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    ids: Tensor

    @property
    def inputs(self) -> Tensor:
        """The first view."""
        return self.views[0]


class ViewBatches(Dataset[Any]):
    """Whole batches of views by their draws; each view of a sample has randomness of its own.

    Args:
        images: what is shown.
        views: how, one after the other.
        fitted: the images are in memory, in the size that the network is given.
    """

    def __init__(self, images: Images, views: Sequence[View], *, fitted: bool) -> None:
        self.images, self.views, self.fitted = images, tuple(views), fitted
        self.labels = torch.from_numpy(images.labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> ViewBatch:
        return self.__getitems__([draw])

    def __getitems__(self, draws: Sequence[Draw]) -> ViewBatch:
        ids = np.array([draw.id for draw in draws], np.int64)
        seeds = np.array([draw.seed for draw in draws], np.int64)
        pictures = None if self._all_at_once else [self.images.image(index) for index in ids.tolist()]
        shown = tuple(self._view(view, ids, sample_seeds(number, 0, seeds), pictures) for number, view in enumerate(self.views))
        ids_B = torch.from_numpy(ids)
        return ViewBatch(shown, self.labels[ids_B], ids_B)

    @property
    def _all_at_once(self) -> bool:
        return self.fitted and isinstance(self.images, MemoryImages) and all(isinstance(v, Transform) and v.fixed for v in self.views)

    def _view(self, view: View, ids: np.ndarray, seeds: np.ndarray, pictures: list[Tensor | Image.Image] | None) -> Tensor:
        if pictures is None:
            assert isinstance(self.images, MemoryImages)
            assert isinstance(view, Transform)
            return view.batch(self.images.pixels[torch.from_numpy(ids)], seeds)
        each: Callable[[Any], Any] = view.prepare if isinstance(view, Transform) else view
        prepared = []
        with kept_generators():
            for picture, seed in zip(pictures, seeds.tolist(), strict=True):
                seed_generators(seed)
                prepared.append(each(picture))
        if not isinstance(view, Transform):
            return torch.stack(prepared)
        images_BCHW = torch.stack([image for image, _ in prepared])
        drawn = {name: np.stack([each_drawn[name] for _, each_drawn in prepared]) for name in prepared[0][1]}
        return view.apply(images_BCHW, drawn | view.draw(seeds, images_BCHW.shape[-2:]))
