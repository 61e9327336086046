"""The data of a harmonization run: batches of composites, masks and real photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import resize, to_pil_image

from stillroom.engine.loading import Draw, sample_seeds
from stillroom.errors import InputError, at_least, one_of
from stillroom.tasks.harmonization.batches import Batch
from stillroom.tasks.harmonization.metrics import HarmonyEvaluator, pixels
from stillroom.tasks.harmonization.recolouring import COLOURS, blobs, composites
from stillroom.tasks.harmonization.scenes import Scene, Scenes
from stillroom.tasks.harmonization.sources import HarmonySource, open_source
from stillroom.tasks.images.data import ImageSetData
from stillroom.tasks.images.transforms import describe_transform

AUGMENTATIONS = ("crop", "mirror", "none")
_MEMORY = 1_000_000_000  # bytes of decoded pictures that are kept
_AREA, _RATIO = (0.5, 1.0), (3 / 4, 4 / 3)  # of random crops
_TRIES = 10  # crops that are drawn at most
_ALMOST_EMPTY, _KEPT = 1.0, 0.05  # a crop with a smaller foreground, in pixels, is drawn anew but for this share


class HarmonyData(ImageSetData):
    """A training and a validation set of composites, their masks, and the photos that they were made of.

    Pictures are squashed to a square. Up to 1 GB of them is decoded once and stays in memory; all others are read from their files in
    every epoch.

    Args:
        data: where the images are: ``patches`` (procedural), ``iharmony4:ROOT``, ``csv:FILE``, ``composites:FOLDER`` (photos with
            masks) or ``blobs:SOURCE`` (any images); options follow after commas, see `sources.open_source`.
        batch_size: images in a batch, of all processes together.
        image_size: pixels of the images that the network is given; height and width; by default 64, or the size of small images.
        augment: random changes of training images: ``crop`` (half to all of the area, and mirrored half of the time), ``mirror`` or
            ``none``; by default crop, for patches and blobs none.
        colours: how composites that are made get other colours: ``random`` lights, or ``chart``: between two random lights by the
            polynomials of a colour chart, as ccHarmony does.
        strict: refuse data with image files that cannot be decoded, which are left out otherwise, with one warning.
        options: those of every task on images, see `ImageSetData`.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    source: HarmonySource

    def __init__(
        self,
        data: str = "patches",
        *,
        batch_size: int = 32,
        image_size: int | None = None,
        augment: str | None = None,
        colours: str = "random",
        strict: bool = False,
        **options: Any,
    ) -> None:
        if augment is not None:
            one_of("augment", augment, AUGMENTATIONS)
        self.colours = one_of("colours", colours, COLOURS)
        source = open_source(data, strict=strict)
        super().__init__(data, source, batch_size=batch_size, strict=strict, **options)
        if self.renormalise is not None:
            raise InputError("teacher_mean", self.teacher_mean or self.teacher_std, "none: a teacher reads what the student reads")
        self.image_size = source.image_size if image_size is None else at_least("image_size", image_size, 1)
        self._why = source.why if image_size is None else "as asked for"
        self.augment = augment or source.augment
        self.in_memory = 7 * self.image_size**2 * sum(map(len, self._listed)) <= _MEMORY
        known = {"image_size": self.image_size, "augment": self.augment, "colours": self.colours}
        kept = tuple(map(len, self._listed))
        parts = source.fingerprint, kept, *known.values(), *self._subsets.values(), self.mean, self.std
        self._identify(*parts, content=source.fingerprint, **known)

    def first_lines(self) -> list[str]:
        """How many samples there are; the size and why; what was met."""
        train, val = map(len, self._listed)
        first = f"{train} training + {val} validation composites"
        return [first, f"{self.image_size} × {self.image_size} pixels: {self._why}", *self._met()]

    def evaluator(self) -> HarmonyEvaluator:
        """What measures harmonised pictures."""
        return HarmonyEvaluator(self.mean, self.std)

    def example_inputs(self) -> Tensor:
        """A batch of one, [1, 4, H, W]: the first validation composite and its mask."""
        return self.val_batch([0]).inputs

    def val_batch(self, indices: Sequence[int]) -> Batch:
        """Validation samples as every evaluation shows them."""
        seeds = sample_seeds(0, 0, np.array(indices, np.int64))  # those of an evaluation loader
        return _Batches(self._val, self, "none").__getitems__([Draw(*pair) for pair in zip(indices, seeds.tolist(), strict=True)])

    def val_image(self, index: int) -> Image.Image:
        """A validation composite for people to look at."""
        return to_pil_image(self.pixels(self.val_batch([index]).composites)[0].round().to(torch.uint8))

    def pixels(self, images_B3HW: Tensor) -> Tensor:
        """Normalised pictures as values from 0 to 255, clamped."""
        return pixels(images_B3HW, self.mean, self.std)

    def _described(self) -> dict[str, Any]:
        transform = describe_transform("squash", self.image_size, self.mean, self.std)
        return {"image_size": self.image_size, "transform": transform}

    def _samples(self, images: Scenes, *, training: bool, told: bool = False) -> Dataset[Any]:
        return _Batches(images, self, self.augment if training else "none")

    def _opened(self) -> tuple[Scenes, Scenes]:
        """Those that were asked for; that they can be read was seen when the source was opened."""
        listed = []
        for split, argument, count in (("train", "subset", self.subset), ("val", "val_subset", self.val_subset)):
            scenes: Scenes = getattr(self.source, split)
            if count is not None:
                self.indices[split] = self._chosen(scenes, argument, count)
                scenes = scenes.take(self.indices[split])
            listed.append(scenes)
        self.left_out, self.animated = [], []
        return listed[0], listed[1]

    def _prepared(self, images: Scenes) -> Scenes:
        return images  # kept by those who read them, see `_Batches`

    @property
    def _light(self) -> bool:
        return self.in_memory


class _Batches(Dataset[Any]):
    """Whole batches by their draws; what was decoded is kept, up to `_MEMORY` bytes."""

    def __init__(self, scenes: Scenes, data: HarmonyData, augment: str) -> None:
        self.scenes, self.augment, self.side, self.colours = scenes, augment, data.image_size, data.colours
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
        self._kept: dict[int, Scene] = {}
        self._room = _MEMORY // max(1, data.workers)  # each process that reads keeps its own

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitems__(self, draws: Sequence[Draw]) -> Batch:
        ids, seeds, _ = np.array(draws, np.int64).T
        found = [self._sized(index, seed) for index, seed in zip(ids.tolist(), seeds.tolist(), strict=True)]
        reals = torch.stack([scene.real for scene in found]).float() / 255
        given = [scene.mask for scene in found if scene.mask is not None]
        masks = torch.stack(given).float() / 255 if given else blobs(seeds, self.side)
        made = [scene.composite for scene in found if scene.composite is not None]
        shown = torch.stack(made).float() / 255 if made else composites(reals, masks, seeds, self.colours)
        return Batch((shown - self.mean) / self.std, masks, (reals - self.mean) / self.std, torch.from_numpy(ids.copy()))

    def _sized(self, index: int, seed: int) -> Scene:
        """A sample in the size that networks are given, changed at random where that was asked for: photo, mask and composite alike."""
        scene = self._read(index)
        if self.augment == "none":
            return scene
        random = np.random.default_rng(seed)
        height, width = scene.real.shape[1:]
        box = 0, 0, height, width
        for _ in range(_TRIES if self.augment == "crop" else 0):
            box = _crop(height, width, random)
            if scene.mask is None or random.random() < _KEPT or _cut(scene.mask, box, self.side).sum() > 255 * _ALMOST_EMPTY:
                break
        mirrored = random.random() < 0.5

        def changed(part_CHW: Tensor) -> Tensor:
            cut = _cut(part_CHW, box, self.side)
            return cut.flip(-1) if mirrored else cut

        return scene.each(changed)

    def _read(self, index: int) -> Scene:
        if index in self._kept:
            return self._kept[index]
        scene = self.scenes.scene(index)
        if self.augment == "none":
            scene = scene.each(lambda part: _cut(part, (0, 0, *part.shape[1:]), self.side))
        size = sum(part.nbytes for part in scene if part is not None)
        if size <= self._room:
            self._kept[index] = scene
            self._room -= size
        return scene


def _cut(part_CHW: Tensor, box: Sequence[int], side: int) -> Tensor:
    """A part of a picture, by its top, left, height and width, squashed to a square of so many pixels."""
    top, left, rows, columns = box
    part = part_CHW[:, top : top + rows, left : left + columns]
    return part if (rows, columns) == (side, side) else resize(part, [side, side], antialias=True)


def _crop(height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of a picture; all of it, where none of a drawn shape fits."""
    area, ratio = height * width * random.uniform(*_AREA), np.exp(random.uniform(*np.log(_RATIO)))
    rows, columns = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
    if not (0 < rows <= height and 0 < columns <= width):
        return 0, 0, height, width
    return int(random.integers(height - rows + 1)), int(random.integers(width - columns + 1)), rows, columns
