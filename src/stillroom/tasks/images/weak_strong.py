"""A weak and a strong view of a training image, for methods in which the answer to the first teaches the second.

``cifar`` and ``imagenet`` are those of MDCS's paper, image by image. ``small`` is for small images in memory, whole batches at once; its
numbers are this library's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.transforms import v2

from stillroom.engine.loading import uniforms
from stillroom.errors import one_of
from stillroom.modules.pixels import grey, windows
from stillroom.tasks.images.cached import Augmented
from stillroom.tasks.images.transforms import Parameters, Transform, eval_transform
from stillroom.tasks.images.views import View

Style = Literal["small", "cifar", "imagenet"]

_ROTATION = 15.0  # degrees
_JITTER = 0.4  # brightness, contrast and saturation
_BRIGHTNESS, _TINT, _GREY = 0.4, 0.2, 0.2


class Viewed(Augmented, Protocol):
    """Data of images, by what says which views suit them."""

    image_size: int

    @property
    def mean(self) -> Sequence[float]:
        """Of each channel."""

    @property
    def std(self) -> Sequence[float]:
        """Of each channel."""


def weak_and_strong(data: Viewed, style: Style | None = None) -> tuple[tuple[View, View], str]:
    """Both views for such data, mirrored unless they are digits, and a word for the data's fingerprint.

    Args:
        data: whose images are shown.
        style: as `two_views` has it; by default ``imagenet`` for photographs, else ``small``.
    """
    style = style or ("imagenet" if data.augment == "imagenet" else "small")
    mirror = data.augment != "digits"
    return two_views(style, data.image_size, data.mean, data.std, mirror=mirror), f"{style}, mirror {mirror}"


def two_views(style: Style, image_size: int, mean: Sequence[float], std: Sequence[float], *, mirror: bool = True) -> tuple[View, View]:
    """The weak and the strong view.

    - ``small``: weak = crop of the image reflected at its border by an eighth of its side, mirror; strong = the same, then brightness
      times 0.6 to 1.4, each channel times 0.8 to 1.2, grey for one image in five, a black square of half the side.
    - ``cifar``: weak = crop of the image padded with black by an eighth of its side (4 pixels of 32), mirror, rotation by up to 15 degrees;
      strong = crop, mirror, AutoAugment's policy for CIFAR-10, a black square of half the side (16 pixels of 32).
    - ``imagenet``: both = crop of 8 to 100 % of the area, mirror, jitter of brightness, contrast and saturation by 0.4; strong further
      RandAugment (2 operations of magnitude 10, standard deviation 0.5; timm's).

    Black squares lie anywhere, cut off at the border, and are drawn before normalising.

    Args:
        style: which.
        image_size: height and width of the result, in pixels.
        mean, std: of each channel, for pixels in [0, 1].
        mirror: whether images may be mirrored; digits and letters may not.

    Returns:
        A batched `Transform` each, or functions of one image (PIL or uint8 [3, H, W] -> float32 [3, S, S]) that draw from the global
        generators.

    Raises:
        InputError: an unknown style.
    """
    one_of("view_style", style, get_args(Style))
    if style == "small":
        fit = eval_transform("small", image_size, mean, std).each
        return Transform(fit, mean, std, together=Weak(mirror)), Transform(fit, mean, std, together=Strong(mirror))
    mirrors = [v2.RandomHorizontalFlip()] if mirror else []
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
    normalise = v2.Normalize(list(mean), list(std))
    if style == "cifar":
        begin = [eval_transform("cifar", image_size, mean, std).each, v2.RandomCrop(image_size, padding=image_size // 8), *mirrors]
        weak = [*begin, v2.RandomRotation(_ROTATION), *end, normalise]
        policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
        return v2.Compose(weak), v2.Compose([*begin, policy, *end, Cutout(image_size // 2), normalise])
    begin = [v2.RandomResizedCrop(image_size, antialias=True), *mirrors, v2.ColorJitter(_JITTER, _JITTER, _JITTER)]
    return v2.Compose([*begin, *end, normalise]), v2.Compose([*begin, _rand_augment(image_size, mean), *end, normalise])


class Weak:
    """Crop of the reflected image and mirror: a `transforms.BatchChange`.

    Draws ``corner`` int64 [B, 2], the crop's place in the image with its border, and ``flip`` bool [B].
    """

    def __init__(self, mirror: bool) -> None:
        self.mirror = mirror

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        """One row for each seed."""
        draws = uniforms(seeds, 3)
        return {"corner": (draws[:, :2] * (2 * _border(size) + 1)).astype(np.int64), "flip": self.mirror & (draws[:, 2] < 0.5)}

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        """uint8 [B, 3, S, S] -> float32 in [0, 1]."""
        height, width = images_BCHW.shape[-2:]
        padded = pad(images_BCHW.to(torch.float32) / 255, (_border((height, width)),) * 4, mode="reflect")
        cropped = windows(padded, torch.from_numpy(drawn["corner"]), (height, width))
        return torch.where(torch.from_numpy(drawn["flip"])[:, None, None, None], cropped.flip(-1), cropped)


class Strong(Weak):
    """Weak, then brightness, tint, grey and a black square: a `transforms.BatchChange`.

    Draws besides ``brightness`` float32 [B] and ``tint`` float32 [B, 3], factors; ``grey`` bool [B]; ``hole`` int64 [B, 2], the pixel at
    the square's centre.
    """

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        """One row for each seed."""
        draws = uniforms(seeds, 10)[:, 3:]  # the first three are the weak view's
        return super().draw(seeds, size) | {
            "brightness": (1 + _BRIGHTNESS * (2 * draws[:, 0] - 1)).astype(np.float32),
            "tint": (1 + _TINT * (2 * draws[:, 1:4] - 1)).astype(np.float32),
            "grey": draws[:, 4] < _GREY,
            "hole": (draws[:, 5:] * np.array(size)).astype(np.int64),
        }

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        """uint8 [B, 3, S, S] -> float32 in [0, 1]."""
        images = super().apply(images_BCHW, drawn)
        factor_BC = torch.from_numpy(drawn["brightness"])[:, None] * torch.from_numpy(drawn["tint"])
        images = (images * factor_BC[..., None, None]).clamp(max=1)
        images = torch.where(torch.from_numpy(drawn["grey"])[:, None, None, None], grey(images), images)
        return blackened(images, torch.from_numpy(drawn["hole"]), images.shape[-1] // 2)


class Cutout(nn.Module):
    """A black square somewhere in one image [3, H, W], its centre drawn from PyTorch's global generator.

    Args:
        side: of the square, in pixels.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, image: Tensor) -> Tensor:
        """Float or uint8 [3, H, W], the same."""
        hole_2 = (torch.rand(2) * torch.tensor(image.shape[-2:])).long()
        return blackened(image[None], hole_2[None], self.side)[0]


def blackened(images_BCHW: Tensor, centres_B2: Tensor, side: int) -> Tensor:
    """Images with 0 in a square, each around its own pixel (row, column), cut off at the image's border."""

    def inside(centres_B: Tensor, length: int) -> Tensor:
        offset_BL = torch.arange(length) - (centres_B[:, None] - side // 2)
        return (offset_BL >= 0) & (offset_BL < side)

    height, width = images_BCHW.shape[-2:]
    hole_BHW = inside(centres_B2[:, 0], height)[:, :, None] & inside(centres_B2[:, 1], width)[:, None, :]
    return images_BCHW.masked_fill(hole_BHW[:, None], 0)


def _border(size: Sequence[int]) -> int:
    """Pixels that a crop can be moved by."""
    return max(1, size[0] // 8)


def _rand_augment(image_size: int, mean: Sequence[float]) -> Callable[[Image.Image | Tensor], Image.Image]:
    """RandAugment of a PIL image; torchvision's has neither a spread of the magnitude nor timm's scale of it."""
    from timm.data.auto_augment import rand_augment_transform

    grey = tuple(min(255, round(255 * value)) for value in mean)
    augment = rand_augment_transform("rand-n2-m10-mstd0.5", {"translate_const": int(image_size * 0.45), "img_mean": grey})
    return v2.Compose([v2.ToPILImage(), augment])
