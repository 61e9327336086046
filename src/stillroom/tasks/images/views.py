"""Training batches that show every image several times, each time changed another way; some of the views of another image, if asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from stillroom.engine.loading import Draw, SeekableBatches, kept_generators, sample_seeds, seed_generators
from stillroom.tasks.images.stores import Images, MemoryImages
from stillroom.tasks.images.transforms import Transform

# A transform of our own, which works on whole batches where it can, or a function of one image: PIL or uint8 [3, H, W] -> float [3, S, S].
View = Transform | Callable[[Any], Tensor]
# (epoch from 0, ids int64 [B], seeds int64 [B] of each sample's randomness) -> ids int64 [B] of the images in their place
Others = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Shown:
    """How training shows each image; see `ImageSetData.in_views`.

    Attributes:
        views: how the image is changed and prepared for each of them.
        others: which image stands in another's place; None for no other.
        of_other: numbers of the views that show that one.
    """

    views: tuple[View, ...]
    others: Others | None = None
    of_other: tuple[int, ...] = ()


class PairedDraw(NamedTuple):
    """A `Draw`, and the id of the image that some views of it show instead."""

    id: int
    seed: int
    view: int
    other: int


class PairedBatches(SeekableBatches):
    """The batches of `SeekableBatches`, with another image for each sample.

    `others` is asked in the process that trains, whenever a batch is handed to the workers: what it decides by needs to be equal in every
    rank, and never reaches a worker. Workers read ahead within an epoch, so it may change between epochs alone.
    """

    def __init__(self, size: int, batch_size: int, others: Others, **options: Any) -> None:
        super().__init__(size, batch_size, **options)
        self.others = others

    def _draws(self, epoch: int, ids: np.ndarray) -> list[Draw]:
        draws = super()._draws(epoch, ids)
        others = self.others(epoch, ids, np.array([draw.seed for draw in draws], np.int64))
        return [PairedDraw(*draw, int(other)) for draw, other in zip(draws, others, strict=True)]  # type: ignore[misc]


class ViewBatch(NamedTuple):
    """Classified images in several views.

    Attributes:
        views: one tensor float32 [B, 3, H_v, W_v] for each view, normalised; row b of all of them is the same image.
        labels: int64 [B].
        ids: int64 [B], each sample's index in its data set.
        others: int64 [B], which image row b of the views `of_other` shows, where the data are shown in pairs.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    ids: Tensor
    others: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """The first view."""
        return self.views[0]


class ViewBatches(Dataset[Any]):
    """Whole batches of views by their draws; each view of a sample has randomness of its own.

    Args:
        images: what is shown.
        shown: how.
        fitted: the images are in memory, in the size that the network is given.
    """

    def __init__(self, images: Images, shown: Shown, *, fitted: bool) -> None:
        self.images, self.fitted = images, fitted
        self.views, self.of_other = shown.views, shown.of_other
        self.labels = torch.from_numpy(images.labels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> ViewBatch:
        return self.__getitems__([draw])

    def __getitems__(self, draws: Sequence[Draw | PairedDraw]) -> ViewBatch:
        ids = np.array([draw.id for draw in draws], np.int64)
        seeds = np.array([draw.seed for draw in draws], np.int64)
        paired = isinstance(draws[0], PairedDraw)
        others = np.array([draw.other for draw in draws if isinstance(draw, PairedDraw)], np.int64) if paired else ids
        own = self._pictures(ids)
        theirs = self._pictures(others) if paired else own
        shown = []
        for number, view in enumerate(self.views):
            which, pictures = (others, theirs) if number in self.of_other else (ids, own)
            shown.append(self._view(view, which, sample_seeds(number, 0, seeds), pictures))
        ids_B = torch.from_numpy(ids)
        return ViewBatch(tuple(shown), self.labels[ids_B], ids_B, torch.from_numpy(others) if paired else None)

    @property
    def _all_at_once(self) -> bool:
        return self.fitted and isinstance(self.images, MemoryImages) and all(isinstance(v, Transform) and v.fixed for v in self.views)

    def _pictures(self, ids: np.ndarray) -> list[Tensor | Image.Image] | None:
        return None if self._all_at_once else [self.images.image(index) for index in ids.tolist()]

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
