"""From an image as it was read to what a network is given, in training and in evaluation.

A `Transform` has two halves: what must be done to every image alone (resizing, random crops of photographs), and what is done to a whole
batch at once (shifts, flips, noise, normalising), which is where the time goes for small images that lie in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import center_crop, resize

from stillroom.engine.loading import uniforms
from stillroom.errors import InputError, near

AUGMENTATIONS = ("cifar", "tiny-imagenet", "imagenet", "digits", "none")
_PADDING = 4
_NOISE = 0.15


class Transform:
    """An image, or a batch of them, to normalised float32.

    Args:
        each: PIL image or uint8 [3, H, W] -> uint8 [3, S, S]; may draw from the global generators.
        mean, std: of each channel, for pixels in [0, 1].
        together: uint8 [B, 3, S, S] and seeds int [B] -> float [B, 3, S, S] in [0, 1]; its randomness comes from the seeds.
        fixed: `each` only brings the image to its size, so that it can be done once and for all.
    """

    def __init__(
        self,
        each: Callable[[Any], Any],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        together: Callable[[Tensor, np.ndarray], Tensor] | None = None,
        fixed: bool = True,
    ) -> None:
        self.each, self.together, self.fixed = each, together, fixed
        self.normalize = v2.Normalize(list(mean), list(std), inplace=True)

    def batch(self, images_BCHW: Tensor, seeds: np.ndarray) -> Tensor:
        """uint8 images that `each` has prepared -> network input [B, 3, S, S]; one seed per image."""
        scaled_BCHW = _scaled(images_BCHW) if self.together is None else self.together(images_BCHW, seeds)
        normalized: Tensor = self.normalize(scaled_BCHW)
        return normalized

    def __call__(self, image: Image.Image | Tensor, seed: int = 0) -> Tensor:
        """One image -> network input [3, S, S]."""
        return self.batch(self.each(image)[None], np.array([seed]))[0]


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
    flip = v2.RandomHorizontalFlip()
    if augment == "imagenet":
        return Transform(
            v2.Compose([v2.RGB(), v2.RandomResizedCrop(image_size, antialias=True), flip, v2.PILToTensor()]), mean, std, fixed=False
        )
    if augment == "tiny-imagenet":
        return Transform(v2.Compose([_Fit(image_size, image_size), v2.RandomRotation(20), flip]), mean, std, fixed=False)
    together = {"cifar": _shift_and_flip, "digits": _roll_and_noise, "none": None}[augment]
    return Transform(_Fit(image_size, image_size), mean, std, together=together)


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
        if isinstance(image, Image.Image) and image.mode != "RGB":
            image = image.convert("RGB")
        height, width = image.shape[-2:] if isinstance(image, Tensor) else image.size
        if not height == width == self.resize == self.crop:
            image = resize(image, [self.resize], interpolation=self.interpolation, antialias=True)
            image = center_crop(image, [self.crop])
        return image if isinstance(image, Tensor) else torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _scaled(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.to(torch.float32).div_(255)


def _shift_and_flip(images_BCHW: Tensor, seeds: np.ndarray) -> Tensor:
    """Random crop of the padded image and horizontal flip, each image its own."""
    draws = uniforms(seeds, 3)
    padded = F.pad(images_BCHW, (_PADDING,) * 4)
    shifted = _windows(padded, _whole(draws[:, 0], 2 * _PADDING + 1), _whole(draws[:, 1], 2 * _PADDING + 1), images_BCHW.shape[-2:])
    flipped_B = torch.from_numpy(draws[:, 2] < 0.5)
    return _scaled(torch.where(flipped_B[:, None, None, None], shifted.flip(-1), shifted))


def _roll_and_noise(images_BCHW: Tensor, seeds: np.ndarray) -> Tensor:
    """Cyclic shift by -1, 0 or 1 in both directions, then noise; values may leave [0, 1]."""
    height, width = images_BCHW.shape[-2:]
    draws = uniforms(seeds, 2 + 2 * height * width)
    padded = F.pad(_scaled(images_BCHW), (1, 1, 1, 1), mode="circular")
    rolled = _windows(padded, _whole(draws[:, 0], 3), _whole(draws[:, 1], 3), (height, width))
    radius, angle = np.split(draws[:, 2:], 2, axis=1)
    normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # Box and Muller
    return rolled + _NOISE * torch.from_numpy(normal.astype(np.float32)).view(-1, 1, height, width)


def _whole(draws_B: np.ndarray, count: int) -> Tensor:
    return torch.from_numpy((draws_B * count).astype(np.int64))


def _windows(images_BCHW: Tensor, tops_B: Tensor, lefts_B: Tensor, size: Sequence[int]) -> Tensor:
    """The window of the given size at each image's own place."""
    every = images_BCHW.unfold(2, size[0], 1).unfold(3, size[1], 1)  # a view [B, C, top, left, H, W]
    return every[torch.arange(len(images_BCHW)), :, tops_B, lefts_B]
