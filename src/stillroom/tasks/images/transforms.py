"""From an image as it was read to what a network is given, in training and in evaluation.

A `Transform` has two halves: what must be done to every image alone (resizing, random crops of photographs), and what is done to a whole
batch at once (shifts, flips, noise, normalising), which is where the time goes for small images that lie in memory.

Random changes come in two steps, `draw` and `apply`: what was drawn has a name and a number, so that it can be stored beside an answer to
the changed image and applied again. Names and units:

- ``crop``: float32 (top, left, height, width), as fractions of the image's height and width; black lies outside;
- ``flip``: bool, mirrored left to right (after cropping, rotating);
- ``roll``: int64 (down, right), a cyclic shift in pixels; ``noise``: int64, the seed of the noise that is added;
- ``angle``: float32, a rotation in degrees, counter-clockwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import center_crop, horizontal_flip, pil_to_tensor, resize, resized_crop, rotate

from stillroom.engine.loading import uniforms
from stillroom.errors import InputError, near
from stillroom.modules.pixels import windows

AUGMENTATIONS = ("cifar", "tiny-imagenet", "imagenet", "digits", "none")
_PADDING = 4
_NOISE = 0.15
_DEGREES = 20.0

Parameters = dict[str, np.ndarray]  # what was drawn, by name: for one image, or a row for each


class Change(Protocol):
    """A random change of one image, drawn from the global generators."""

    def draw(self, image: Image.Image | Tensor) -> Parameters:
        """What is to be done to this image."""

    def apply(self, image: Image.Image | Tensor, drawn: Parameters) -> Tensor:
        """The image as uint8 [3, S, S], changed as drawn."""


class BatchChange(Protocol):
    """A random change of whole batches; a pure function of the seeds."""

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        """What is to be done to images of this height and width, a row for each of the seeds int [B]."""

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        """uint8 [B, 3, S, S] as float [B, 3, S, S] in [0, 1] (but for noise), changed as drawn."""


class Transform:
    """An image, or a batch of them, to normalised float32.

    Args:
        each: PIL image or uint8 [3, H, W] -> uint8 [3, S, S]; or a random change.
        mean, std: of each channel, for pixels in [0, 1].
        together: what is done to a batch of uint8 images before they are normalised; None for nothing.
    """

    def __init__(
        self, each: Callable[[Any], Tensor] | Change, mean: Sequence[float], std: Sequence[float], *, together: BatchChange | None = None
    ) -> None:
        self.each, self.together = each, together
        self.normalize = v2.Normalize(list(mean), list(std), inplace=True)

    @property
    def fixed(self) -> bool:
        """Whether each image alone is only brought to its size, which can be done once and for all."""
        return callable(self.each)

    def prepare(self, image: Image.Image | Tensor) -> tuple[Tensor, Parameters]:
        """One image as uint8 [3, S, S], and what was drawn for it from the global generators."""
        if callable(self.each):
            return self.each(image), {}
        drawn = self.each.draw(image)
        return self.each.apply(image, drawn), drawn

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        """What will be done to a batch of prepared images; one seed per image."""
        return {} if self.together is None else self.together.draw(seeds, size)

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        """Prepared uint8 images -> network input [B, 3, S, S], changed as drawn."""
        scaled_BCHW = _scaled(images_BCHW) if self.together is None else self.together.apply(images_BCHW, drawn)
        normalized: Tensor = self.normalize(scaled_BCHW)
        return normalized

    def batch(self, images_BCHW: Tensor, seeds: np.ndarray) -> Tensor:
        """Prepared uint8 images -> network input [B, 3, S, S]; one seed per image."""
        return self.apply(images_BCHW, self.draw(seeds, images_BCHW.shape[-2:]))

    def replay(self, image: Image.Image | Tensor, drawn: Parameters) -> Tensor:
        """One image -> network input [3, S, S], changed as was drawn for it before."""
        prepared = self.each(image) if callable(self.each) else self.each.apply(image, drawn)
        return self.apply(prepared[None], {name: values[None] for name, values in drawn.items()})[0]

    def __call__(self, image: Image.Image | Tensor, seed: int = 0) -> Tensor:
        """One image -> network input [3, S, S]."""
        return self.batch(self.prepare(image)[0][None], np.array([seed]))[0]


def train_transform(augment: str, image_size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """The transform of a training set.

    Args:
        augment: one of `AUGMENTATIONS`. ``cifar``: shift by up to 4 pixels (black outside) and mirror; ``tiny-imagenet``: rotation by up to
            20 degrees and mirror; ``imagenet``: crop of 8 to 100 % of the area and mirror; ``digits``: roll by up to 1 pixel and Gaussian
            noise of standard deviation 0.15, the same in all channels; ``none``.
        image_size: height and width of the result, in pixels.

    Raises:
        InputError: an unknown augmentation.
    """
    if augment not in AUGMENTATIONS:
        raise InputError("augment", augment, f"one of {near(augment, AUGMENTATIONS)}")
    if augment == "imagenet":
        return Transform(_CropAndFlip(image_size), mean, std)
    if augment == "tiny-imagenet":
        return Transform(_RotateAndFlip(image_size), mean, std)
    together: dict[str, BatchChange] = {"cifar": _ShiftAndFlip(), "digits": _RollAndNoise()}
    return Transform(_Fit(image_size, image_size), mean, std, together=together.get(augment))


def eval_transform(style: str, image_size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """The transform of a validation set: for ``imagenet`` the shorter side is resized to 256/224 of the size and the centre is cut out;
    for all others the shorter side is resized to the size itself."""
    return transform_from(describe_transform(style, image_size, mean, std))


def describe_transform(style: str, image_size: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """What `transform_from`, or another program, needs to prepare images as `eval_transform` does; plain numbers and strings."""
    resize = round(image_size * 256 / 224) if style == "imagenet" else image_size
    return {
        "image_size": image_size,
        "resize": resize,
        "crop": image_size,
        "interpolation": "bilinear",
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
    }


def transform_from(description: dict[str, Any]) -> Transform:
    """The evaluation transform that `describe_transform` described."""
    interpolation = v2.InterpolationMode(description["interpolation"])
    return Transform(_Fit(description["resize"], description["crop"], interpolation), description["mean"], description["std"])


class _Fit(nn.Module):
    """RGB, the shorter side resized, the centre cut out, as a uint8 tensor. An image that is there already costs next to nothing."""

    def __init__(self, resize: int, crop: int, interpolation: v2.InterpolationMode = v2.InterpolationMode.BILINEAR) -> None:
        super().__init__()
        self.resize, self.crop, self.interpolation = resize, crop, interpolation

    def forward(self, image: Image.Image | Tensor) -> Tensor:
        image = _rgb(image)
        height, width = _height_and_width(image)
        if not height == width == self.resize == self.crop:
            image = resize(image, [self.resize], interpolation=self.interpolation, antialias=True)
            image = center_crop(image, [self.crop])
        return image if isinstance(image, Tensor) else torch.from_numpy(np.array(image)).permute(2, 0, 1)


class _CropAndFlip:
    """Photographs: a crop of 8 to 100 % of the area, resized, and mirrored half of the time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.crop = v2.RandomResizedCrop(size, antialias=True)

    def draw(self, image: Image.Image | Tensor) -> Parameters:
        box = self.crop.make_params([image])
        height, width = _height_and_width(image)
        crop = np.array([box["top"] / height, box["left"] / width, box["height"] / height, box["width"] / width], np.float32)
        return {"crop": crop, "flip": _coin()}

    def apply(self, image: Image.Image | Tensor, drawn: Parameters) -> Tensor:
        height, width = _height_and_width(image)
        # Fractions in float32 give back the very pixels for all sizes below a million.
        box = np.round(drawn["crop"].astype(np.float64) * [height, width, height, width]).astype(int).tolist()
        return _tensor(_mirrored(resized_crop(_rgb(image), *box, size=[self.size] * 2, antialias=True), drawn))


class _RotateAndFlip:
    """Small pictures: brought to their size, rotated, and mirrored half of the time."""

    def __init__(self, size: int) -> None:
        self.fit = _Fit(size, size)

    def draw(self, image: Image.Image | Tensor) -> Parameters:
        return {"angle": torch.empty(1).uniform_(-_DEGREES, _DEGREES).numpy().reshape(()), "flip": _coin()}

    def apply(self, image: Image.Image | Tensor, drawn: Parameters) -> Tensor:
        return _tensor(_mirrored(rotate(self.fit(image), float(drawn["angle"])), drawn))


class _ShiftAndFlip:
    """Crop of the padded image and horizontal flip, each image its own."""

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        draws = uniforms(seeds, 3)
        corners = (_whole(draws[:, :2], 2 * _PADDING + 1) - _PADDING) / np.array(size)
        return {"crop": np.concatenate([corners, np.ones_like(corners)], 1).astype(np.float32), "flip": draws[:, 2] < 0.5}

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        size = images_BCHW.shape[-2:]
        corners = np.round(drawn["crop"][:, :2].astype(np.float64) * np.array(size)).astype(np.int64) + _PADDING
        shifted = windows(F.pad(images_BCHW, (_PADDING,) * 4), torch.from_numpy(corners), size)
        flipped_B = torch.from_numpy(drawn["flip"])
        return _scaled(torch.where(flipped_B[:, None, None, None], shifted.flip(-1), shifted))


class _RollAndNoise:
    """Cyclic shift by -1, 0 or 1 in both directions, then noise; values may leave [0, 1]."""

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        return {"roll": 1 - _whole(uniforms(seeds, 2), 3), "noise": seeds}

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        height, width = images_BCHW.shape[-2:]
        padded = F.pad(_scaled(images_BCHW), (1, 1, 1, 1), mode="circular")
        rolled = windows(padded, torch.from_numpy(1 - drawn["roll"]), (height, width))
        draws = uniforms(drawn["noise"], 2 + 2 * height * width)
        radius, angle = np.split(draws[:, 2:], 2, axis=1)
        normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # Box and Muller
        return rolled + _NOISE * torch.from_numpy(normal.astype(np.float32)).view(-1, 1, height, width)


def _scaled(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.to(torch.float32).div_(255)


def _whole(draws: np.ndarray, count: int) -> np.ndarray:
    return (draws * count).astype(np.int64)


def _height_and_width(image: Image.Image | Tensor) -> tuple[int, int]:
    return (image.shape[-2], image.shape[-1]) if isinstance(image, Tensor) else (image.height, image.width)


def _rgb(image: Image.Image | Tensor) -> Image.Image | Tensor:
    return image.convert("RGB") if isinstance(image, Image.Image) and image.mode != "RGB" else image


def _coin() -> np.ndarray:
    return (torch.rand(1) < 0.5).numpy().reshape(())


def _mirrored(image: Image.Image | Tensor, drawn: Parameters) -> Image.Image | Tensor:
    return horizontal_flip(image) if drawn["flip"] else image


def _tensor(image: Image.Image | Tensor) -> Tensor:
    return image if isinstance(image, Tensor) else pil_to_tensor(image)
