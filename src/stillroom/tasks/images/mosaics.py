"""Mosaics: made-up images with several labels, from real ones with one label each. They need no download."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.transforms.v2.functional import pil_to_tensor

from stillroom.engine.loading import sample_seeds, uniforms
from stillroom.errors import InputError
from stillroom.tasks.images.classified import open_source
from stillroom.tasks.images.stores import Images

_SPLITS = {"train": 0, "val": 1, "teacher": 2}
_LARGEST = 16  # pixels of a tile by default
_NOISE = 16.0  # grey levels that the pixels of an empty cell spread over


class Mosaics:
    """Grids of small images; an image's labels are the classes that its cells show.

    Each cell is filled with probability `fill`, by a random image of the set, averaged down to the cell's size; at least one is. Empty
    cells are of the set's mean grey, with a little noise (how much is inferred). What is drawn is a function of the seed and the image's
    number: more images are the same ones and further ones. Training and teacher's mosaics show training images, those to validate on
    validation images.

    Args:
        source: the classified images, as `ImageData` takes them.
        grid: cells in a row and in a column.
        tile: height and width of a cell in pixels; by default the images' own, 16 at most.
        fill: in (0, 1].
        seed: of all that is drawn.
        argument: what error messages call the source.

    Raises:
        InputError: an argument that cannot be used.
    """

    def __init__(
        self, source: str, *, grid: int = 2, tile: int | None = None, fill: float = 0.7, seed: int = 0, argument: str = "data"
    ) -> None:
        if not 0 < fill <= 1:
            raise InputError(argument, f"fill={fill}", "a share above 0 and up to 1")
        for name, value in (("grid", grid), ("tile", 1 if tile is None else tile)):
            if value < 1:
                raise InputError(argument, f"{name}={value}", "a whole number of at least 1")
        self.source = open_source(source, argument=argument)
        self.classes = self.source.classes
        self.grid, self.fill, self.seed = grid, fill, seed
        self.tile = min(self.source.image_size, _LARGEST) if tile is None else tile
        self.size = grid * self.tile
        self.key: dict[str, Any] = {"tiles": self.source.fingerprint, "grid": grid, "tile": self.tile, "fill": fill, "seed": seed}

    def images(self, split: str, count: int) -> MosaicImages:
        """So many mosaics of a split: train, val or teacher."""
        cells = self.grid**2
        seeds = sample_seeds(self.seed, _SPLITS[split], np.arange(count))
        draws = uniforms(seeds, 2 * cells + 1)
        filled_NG = draws[:, :cells] < self.fill
        only_N = (draws[:, -1] * cells).astype(np.int64)
        filled_NG[np.arange(count), only_N] |= ~filled_NG.any(1)
        tiles = self.source.val if split == "val" else self.source.train
        chosen_NG = np.where(filled_NG, (draws[:, cells : 2 * cells] * len(tiles)).astype(np.int64), -1)
        return MosaicImages(self, tiles, chosen_NG, seeds, split)


class MosaicImages:
    """Mosaics that are put together when the first of them is looked at.

    Attributes:
        labels: uint8 [N, K], 0 or 1.
    """

    def __init__(self, mosaics: Mosaics, tiles: Images, chosen_NG: np.ndarray, seeds: np.ndarray, split: str) -> None:
        self.mosaics, self.tiles, self.chosen, self.seeds, self.split = mosaics, tiles, chosen_NG, seeds, split
        self.labels = np.zeros((len(chosen_NG), len(mosaics.classes)), np.uint8)
        rows, cells = np.nonzero(chosen_NG >= 0)
        self.labels[rows, tiles.labels[chosen_NG[rows, cells]]] = 1

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        """One mosaic, uint8 [3, S, S]."""
        return self._pixels[index]

    def name(self, index: int) -> str:
        """For reports: its split and number."""
        return f"{self.split}/{index}"

    @cached_property
    def _pixels(self) -> Tensor:
        """uint8 [N, 3, S, S]."""
        side, grid = self.mosaics.tile, self.mosaics.grid
        used, places = np.unique(self.chosen[self.chosen >= 0], return_inverse=True)
        tiles = torch.stack([_averaged(self.tiles.image(int(index)), side) for index in used])
        noise = torch.from_numpy(uniforms(self.seeds, grid**2 * side**2).astype(np.float32)).view(-1, grid**2, 1, side, side)
        cells = (tiles.mean() + _NOISE * (noise - 0.5)).expand(-1, -1, 3, -1, -1).clone()
        cells[torch.from_numpy(self.chosen >= 0)] = tiles[torch.from_numpy(places)]
        count = len(self)
        rows = cells.view(count, grid, grid, 3, side, side).permute(0, 3, 1, 4, 2, 5)
        return rows.reshape(count, 3, grid * side, grid * side).round().clamp(0, 255).to(torch.uint8)


def _averaged(image: Image.Image | Tensor, side: int) -> Tensor:
    """float32 [3, side, side] in 0 to 255, by averaging blocks of pixels."""
    pixels = image if isinstance(image, Tensor) else pil_to_tensor(image.convert("RGB"))
    return adaptive_avg_pool2d(pixels.float(), side)
