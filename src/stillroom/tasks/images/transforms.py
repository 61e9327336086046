"""From an image as it was read to what a network is given, in training and in evaluation.

A `Transform` has two halves: what must be done to every image alone (resizing, random crops of photographs), and what is done to a whole
batch at once (shifts, flips, noise, normalising), which is where the time goes for small images that lie in memory.

Random changes come in two steps, `draw` and `apply`: what was drawn has a name and a number, so that it can be stored beside an answer to
the changed image and applied again. Names and units:

- ``crop``: float32 (top, left, height, width), as fractions of the image's height and width; black lies outside;
- ``flip``: bool, mirrored left to right (after cropping, rotating);
- ``roll``: int64 (down, right), a cyclic shift in pixels; ``noise``: int64, the seed of the noise that is added;
- ``angle``: float32, a rotation in degrees, counter-clockwise;
- ``turn``: int64, 0 to 7 (1: mirrored; 2: upside down; 4: transposed);
- ``cutout``: float32 (top, left) of a rectangle's centre as fractions, and its colour, in [0, 1]; ``policy``: int64, the seed of what
  RandAugment draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import center_crop, horizontal_flip, pil_to_tensor, resize, resized_crop, rotate

from stillroom.engine.loading import kept_generators, seed_generators, uniforms
from stillroom.errors import one_of
from stillroom.modules.pixels import windows

AUGMENTATIONS = ("cifar", "tiny-imagenet", "imagenet", "digits", "none")
SQUASHED_AUGMENTATIONS = (
    "randaugment",
    "mirror",
    "turn",
    "none",
)  # of images that are squashed to a square, since a crop would lose objects
PAIR_AUGMENTATIONS = ("crop90", "mirror", "none")  # of images whose captions may say where something is
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


def train_transform(augment: str, image_size: int, mean: Sequence[float], std: Sequence[float], *, squash: bool = False) -> Transform:
    """The transform of a training set.

    Args:
        augment: ``cifar``: shift by up to 4 pixels (black outside) and mirror; ``tiny-imagenet``: rotation by up to 20 degrees and mirror;
            ``imagenet``: crop of 8 to 100 % of the area and mirror; ``digits``: roll by up to 1 pixel and Gaussian noise of standard
            deviation 0.15, the same in all channels; ``mirror``: left to right, half of the time; ``turn``: one of the eight ways to turn
            and mirror a square, for images without an up and a down; ``randaugment``: squashed, a rectangle of half the side in one random
            colour over a random place (Cutout), then two random operations of RandAugment at magnitude 9 (the number and the magnitude are
            inferred), as L2D's code; ``crop90``: crop of 90 to 100 % of the area, by bicubic interpolation, as CLIPs are trained; ``none``.
        image_size: height and width of the result, in pixels.
        mean, std: of each channel, for pixels in [0, 1].
        squash: bring images to a square without regard to their shape, where nothing is cropped; else the shorter side is resized and the
            centre cut out.

    Raises:
        InputError: an unknown augmentation.
    """
    one_of("augment", augment, dict.fromkeys((*AUGMENTATIONS, *SQUASHED_AUGMENTATIONS, *PAIR_AUGMENTATIONS)))
    each: dict[str, Callable[[int], Change]] = {
        "imagenet": CropAndFlip,
        "crop90": partial(CropAndFlip, scale=(0.9, 1.0), interpolation="bicubic", mirror=False),
        "tiny-imagenet": _RotateAndFlip,
        "randaugment": _CutoutAndRandAugment,
    }
    if augment in each:
        return Transform(each[augment](image_size), mean, std)
    together: dict[str, BatchChange] = {"cifar": _ShiftAndFlip(), "digits": _RollAndNoise(), "mirror": _Turned(2), "turn": _Turned(8)}
    fit = _Squash(image_size) if squash else Fit(image_size, image_size)
    return Transform(fit, mean, std, together=together.get(augment))


def eval_transform(style: str, image_size: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """The transform of a validation set: for ``imagenet`` the shorter side is resized to 256/224 of the size and the centre is cut out; for
    ``squash`` the image is resized to a square; for all others the shorter side is resized to the size itself."""
    return transform_from(describe_transform(style, image_size, mean, std))


def describe_transform(style: str, image_size: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """What `transform_from`, or another program, needs to prepare images as `eval_transform` does; plain numbers and strings."""
    shorter = round(image_size * 256 / 224) if style == "imagenet" else image_size
    sizes = {"resize": [image_size, image_size]} if style == "squash" else {"resize": shorter, "crop": image_size}
    return {
        "image_size": image_size,
        **sizes,
        "interpolation": "bilinear",
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
    }


def transform_from(description: dict[str, Any]) -> Transform:
    """The evaluation transform that `describe_transform` described."""
    interpolation = v2.InterpolationMode(description["interpolation"])
    squash = isinstance(description["resize"], Sequence)
    fit = _Squash(description["image_size"]) if squash else Fit(description["resize"], description["crop"], interpolation)
    return Transform(fit, description["mean"], description["std"])


class Fit(nn.Module):
    """RGB, the shorter side resized, the centre cut out, as a uint8 tensor. An image that is there already costs next to nothing."""

    def __init__(self, resize: int, crop: int, interpolation: v2.InterpolationMode = v2.InterpolationMode.BILINEAR) -> None:
        super().__init__()
        self.resize, self.crop, self.interpolation = resize, crop, interpolation

    def forward(self, image: Image.Image | Tensor) -> Tensor:
        """uint8 [3, crop, crop]."""
        image = _rgb(image)
        height, width = height_and_width(image)
        if not height == width == self.resize == self.crop:
            image = resize(image, [self.resize], interpolation=self.interpolation, antialias=True)
            image = center_crop(image, [self.crop])
        return image if isinstance(image, Tensor) else torch.from_numpy(np.array(image)).permute(2, 0, 1)


class _Squash:
    """RGB, resized to a square without regard to its shape, uint8 [3, S, S]; an image that is there already costs nothing."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        if isinstance(image, Image.Image):
            return pil_to_tensor(resize(image.convert("RGB"), [self.size] * 2))
        return image if tuple(image.shape[1:]) == (self.size, self.size) else resize(image, [self.size] * 2, antialias=True)


class CropAndFlip:
    """Photographs: a crop of a share of the area, resized, and mirrored half of the time.

    Args:
        size: height and width of the result, in pixels.
        scale: smallest and largest share.
        interpolation: a word of torchvision's.
        mirror: whether it is mirrored at all.
    """

    def __init__(
        self, size: int, scale: tuple[float, float] = (0.08, 1.0), interpolation: str = "bilinear", *, mirror: bool = True
    ) -> None:
        self.size, self.interpolation, self.mirror = size, v2.InterpolationMode(interpolation), mirror
        self.crop = v2.RandomResizedCrop(size, scale, antialias=True)

    def draw(self, image: Image.Image | Tensor) -> Parameters:
        """``crop`` and ``flip``."""
        box = self.crop.make_params([image])
        height, width = height_and_width(image)
        crop = np.array([box["top"] / height, box["left"] / width, box["height"] / height, box["width"] / width], np.float32)
        return {"crop": crop, "flip": _coin() if self.mirror else np.array(False)}

    def apply(self, image: Image.Image | Tensor, drawn: Parameters) -> Tensor:
        """uint8 [3, S, S]."""
        height, width = height_and_width(image)
        # Fractions in float32 give back the very pixels for all sizes below a million.
        box = np.round(drawn["crop"].astype(np.float64) * [height, width, height, width]).astype(int).tolist()
        cut = resized_crop(_rgb(image), *box, size=[self.size] * 2, interpolation=self.interpolation, antialias=True)
        return _tensor(_mirrored(cut, drawn))


class _RotateAndFlip:
    """Small pictures: brought to their size, rotated, and mirrored half of the time."""

    def __init__(self, size: int) -> None:
        self.fit = Fit(size, size)

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
        return rolled + _NOISE * noise(drawn["noise"], height, width)


def noise(seeds: np.ndarray, height: int, width: int) -> Tensor:
    """Standard normal numbers, float32 [B, 1, H, W], a row for each seed."""
    draws = uniforms(seeds, 2 + 2 * height * width)
    radius, angle = np.split(draws[:, 2:], 2, axis=1)  # the first two are where an image is rolled to
    normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # Box and Muller
    return torch.from_numpy(normal.astype(np.float32)).view(-1, 1, height, width)


class _CutoutAndRandAugment:
    """Squashed to a square, then Cutout, then RandAugment."""

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
    """Mirrored, or turned and mirrored, each image its own."""

    def __init__(self, ways: int) -> None:
        self.ways = ways

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        return {"turn": (uniforms(seeds, 1)[:, 0] * self.ways).astype(np.int64)}

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        turn_B = torch.from_numpy(drawn["turn"]).view(-1, 1, 1, 1)
        images_BCHW = torch.where((turn_B & 1).bool(), images_BCHW.flip(-1), images_BCHW)
        images_BCHW = torch.where((turn_B & 2).bool(), images_BCHW.flip(-2), images_BCHW)
        if self.ways == 8:
            images_BCHW = torch.where((turn_B & 4).bool(), images_BCHW.transpose(-1, -2), images_BCHW)
        return _scaled(images_BCHW)


def _scaled(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.to(torch.float32).div_(255)


def _whole(draws: np.ndarray, count: int) -> np.ndarray:
    return (draws * count).astype(np.int64)


def height_and_width(image: Image.Image | Tensor) -> tuple[int, int]:
    """In pixels."""
    return (image.shape[-2], image.shape[-1]) if isinstance(image, Tensor) else (image.height, image.width)


def _rgb(image: Image.Image | Tensor) -> Image.Image | Tensor:
    return image.convert("RGB") if isinstance(image, Image.Image) and image.mode != "RGB" else image


def _coin() -> np.ndarray:
    return (torch.rand(1) < 0.5).numpy().reshape(())


def _mirrored(image: Image.Image | Tensor, drawn: Parameters) -> Image.Image | Tensor:
    return horizontal_flip(image) if drawn["flip"] else image


def _tensor(image: Image.Image | Tensor) -> Tensor:
    return image if isinstance(image, Tensor) else pil_to_tensor(image)
