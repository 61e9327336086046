"""How images with several labels are prepared: squashed to a square, since a crop would lose objects, and changed at random in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from stillroom.engine.loading import kept_generators, seed_generators, uniforms
from stillroom.errors import InputError, near
from stillroom.tasks.images.transforms import BatchChange, Parameters, Transform

AUGMENTATIONS = ("randaugment", "mirror", "turn", "none")


def train_transform(augment: str, image_size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """The transform of a training set.

    Args:
        augment: one of `AUGMENTATIONS`. ``randaugment``: a rectangle of half the side in one random colour over a random place (Cutout),
            then two random operations of RandAugment at magnitude 9 (the number and the magnitude are inferred), as the paper's code;
            ``mirror``: left to right, half of the time; ``turn``: one of the eight ways to turn and mirror a square, for images without
            an up and a down; ``none``.
        image_size: height and width of the result, in pixels.
        mean, std: of each channel, for pixels in [0, 1].

    Raises:
        InputError: an unknown augmentation.
    """
    if augment not in AUGMENTATIONS:
        raise InputError("augment", augment, f"one of {near(augment, AUGMENTATIONS)}")
    if augment == "randaugment":
        return Transform(_CutoutAndRandAugment(image_size), mean, std)
    together: dict[str, BatchChange] = {"mirror": _Turned(mirror_only=True), "turn": _Turned(mirror_only=False)}
    return Transform(_Squash(image_size), mean, std, together=together.get(augment))


def describe_transform(image_size: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """What `transform_from`, or another program, needs to prepare images as in evaluation; plain numbers and strings."""
    return {
        "image_size": image_size,
        "resize": [image_size, image_size],
        "interpolation": "bilinear",
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
    }


def transform_from(description: dict[str, Any]) -> Transform:
    """The evaluation transform that `describe_transform` described."""
    return Transform(_Squash(int(description["image_size"])), description["mean"], description["std"])


class _Squash:
    """RGB, resized to a square without regard to its shape, uint8 [3, S, S]; an image that is there already costs nothing."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        if isinstance(image, Image.Image):
            return pil_to_tensor(resize(image.convert("RGB"), [self.size] * 2))
        return image if tuple(image.shape[1:]) == (self.size, self.size) else resize(image, [self.size] * 2, antialias=True)


class _CutoutAndRandAugment:
    """The paper's: squashed, then Cutout, then RandAugment.

    Draws ``cutout``: float32 (top, left) of the rectangle's centre as fractions, and its colour, in [0, 1]; ``policy``: int64, the seed of
    what RandAugment draws.
    """

    def __init__(self, size: int) -> None:
        self.squash = _Squash(size)
        self.policy = v2.RandAugment()

    def draw(self, image: Image.Image | Tensor) -> Parameters:
        return {"cutout": torch.rand(5).numpy(), "policy": torch.randint(2**62, (1,)).numpy().reshape(())}

    def apply(self, image: Image.Image | Tensor, drawn: Parameters) -> Tensor:
        squashed = self.squash(image)
        with kept_generators():
            seed_generators(int(drawn["policy"]))
            changed: Tensor = self.policy(_cut_out(squashed, drawn["cutout"]))
        return changed


def _cut_out(image_3SS: Tensor, drawn: np.ndarray) -> Tensor:
    size = image_3SS.shape[-1]
    top, left = (drawn[:2] * size - size / 4).round().astype(int).tolist()
    colour_3 = torch.from_numpy(drawn[2:] * 255).round().to(torch.uint8)
    cut_3SS = image_3SS.clone()
    cut_3SS[:, max(top, 0) : max(top + size // 2, 0), max(left, 0) : max(left + size // 2, 0)] = colour_3[:, None, None]
    return cut_3SS


class _Turned:
    """Mirrored, or turned and mirrored, each image its own; draws ``turn``: int64, 0 to 7 (1: mirrored; 2: upside down; 4: transposed)."""

    def __init__(self, *, mirror_only: bool) -> None:
        self.ways = 2 if mirror_only else 8

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        return {"turn": (uniforms(seeds, 1)[:, 0] * self.ways).astype(np.int64)}

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        turn_B = torch.from_numpy(drawn["turn"]).view(-1, 1, 1, 1)
        images_BCHW = torch.where((turn_B & 1).bool(), images_BCHW.flip(-1), images_BCHW)
        images_BCHW = torch.where((turn_B & 2).bool(), images_BCHW.flip(-2), images_BCHW)
        if self.ways == 8:
            images_BCHW = torch.where((turn_B & 4).bool(), images_BCHW.transpose(-1, -2), images_BCHW)
        return images_BCHW.to(torch.float32).div_(255)
