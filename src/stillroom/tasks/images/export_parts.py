"""What every export of a student of images has: pictures to check the file on, and what the file says of itself."""

from __future__ import annotations

import json

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import to_pil_image

from stillroom._version import __version__
from stillroom.engine.card import Card
from stillroom.engine.specification import with_files

CHECKED = 5  # pictures


def description(card: Card) -> dict[str, str]:
    """What a file says about the student of a card.

    All are strings: ``task``; ``classes``, a JSON list in the order of the answers; ``transform``, a JSON object that says how images are
    prepared; ``model``, the student's specification, in which a Python file is named without the folders that it lies in on this machine;
    ``stillroom``, the version.
    """
    return {
        "task": card.task,
        "classes": json.dumps(list(card.content["classes"])),
        "transform": json.dumps(card.content["transform"]),
        "model": with_files(card.model, lambda file: file.name),
        "stillroom": __version__,
    }


def made_up_pictures(side: int, count: int = CHECKED) -> list[Image.Image]:
    """Always the same pictures with the statistics of photographs: as much contrast in each octave of scale. The run's data may be gone."""
    height, width = side, round(side * 4 / 3)
    generator = torch.Generator().manual_seed(0)
    pictures_BCHW = torch.zeros(count, 3, height, width)
    cells = 1
    while cells <= side:
        octave: Tensor = torch.rand(count, 3, cells, cells, generator=generator)
        pictures_BCHW += interpolate(octave, (height, width), mode="bilinear", align_corners=False)
        cells *= 2
    low, high = pictures_BCHW.amin((1, 2, 3), keepdim=True), pictures_BCHW.amax((1, 2, 3), keepdim=True)
    return [to_pil_image(picture) for picture in ((pictures_BCHW - low) / (high - low) * 255).to(torch.uint8)]
