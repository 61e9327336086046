"""The crops that one image is shown in: V large ones, which give targets, then S small ones, which only predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.transforms import v2

from stillroom.engine.loading import uniforms
from stillroom.errors import InputError, at_least, one_of
from stillroom.modules.pixels import windows
from stillroom.tasks.images.transforms import Parameters, Transform, eval_transform
from stillroom.tasks.images.views import View

Style = Literal["cifar", "photographs", "small", "digits"]


def crops(style: Style, image_size: int, mean: Sequence[float], std: Sequence[float], *, large: int, small: int) -> tuple[View, ...]:
    """The views of a training image.

    - cifar: large crops are shifted by up to an eighth of the size or cut out of half of the area and more; small ones, 9/16 of the size,
      out of 30 to 80 % of it. Mirrored, colours jittered, at times solarised or equalised.
    - photographs: the shorter side brought to 256/224 of the size, a random window of the size, mirrored.
    - small: of pictures of some 16 pixels, which a crop would destroy: mirrored, shifted by up to a pixel, noise; digits: not mirrored.

    Args:
        style: which of these; small crops are there for cifar alone.
        image_size: side of the large crops, in pixels.
        mean, std: of each channel, for pixels in [0, 1].
        large, small: V and S, two or more together.

    Raises:
        InputError: too few views, or small crops of a style that has none.

    Source: CrKD's released code; "small" and "digits" are the project's own, for its experiments.
    """
    one_of("view_style", style, get_args(Style))
    at_least("large_crops", large, 1)
    if small < 0 or (small and style != "cifar"):
        raise InputError("small_crops", small, "a whole number from 0" if style == "cifar" else f"0: {style} has no small crops")
    if large + small < 2:
        raise InputError("large_crops", large, "two or more views of an image, large and small ones together")
    if style == "photographs":
        resized = v2.Resize(round(image_size * 256 / 224), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
        return (_changed((resized, v2.RandomCrop(image_size), v2.RandomHorizontalFlip()), mean, std),) * large
    if style != "cifar":
        fit = eval_transform("none", image_size, mean, std).each
        return (Transform(fit, mean, std, together=_ShiftNoise(mirrored=style == "small")),) * large
    shifted, cut = v2.RandomCrop(image_size, padding=image_size // 8), v2.RandomResizedCrop(image_size, scale=(0.5, 1.0), antialias=True)
    of_large = v2.RandomChoice([shifted, cut]), *_colours(0.6, 0.1)
    of_small = v2.RandomResizedCrop(round(image_size * 18 / 32), scale=(0.3, 0.8), antialias=True), *_colours(0.8, 0.2)
    return (_changed(of_large, mean, std),) * large + (_changed(of_small, mean, std),) * small


def _changed(changes: Sequence[nn.Module], mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """An image, PIL or uint8 [3, H, W], changed and normalised."""
    end = v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std)), v2.ToPureTensor()
    return v2.Compose([v2.ToImage(), v2.RGB(), *changes, *end])


def _colours(jitter: float, extreme: float) -> list[nn.Module]:
    """Mirror, colour jitter, solarisation and equalisation, with these probabilities."""
    return [
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=jitter),
        v2.RandomApply([_Solarise()], p=extreme),
        v2.RandomEqualize(p=extreme),
    ]


class _Solarise(nn.Module):
    """Inverts what is as bright as a threshold or brighter, which is uniform in 0 .. 256."""

    def forward(self, image: Tensor) -> Tensor:
        """uint8 [3, H, W]."""
        return torch.where(image >= 256 * torch.rand(()), 255 - image, image)


class _ShiftNoise:
    """Shifted by -1, 0 or 1 pixels in both directions (the edge repeated), noise of deviation 0.08; half of them mirrored, if any are."""

    def __init__(self, *, mirrored: bool) -> None:
        self.mirrored = mirrored

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        draws = uniforms(seeds, 3)
        return {"roll": (3 * draws[:, :2]).astype(np.int64) - 1, "flip": self.mirrored & (draws[:, 2] < 0.5), "noise": seeds}

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        """uint8 to float; values may leave [0, 1]."""
        channels, height, width = images_BCHW.shape[1:]
        padded = pad(images_BCHW.float() / 255, (1, 1, 1, 1), mode="replicate")
        shifted = windows(padded, torch.from_numpy(1 - drawn["roll"]), (height, width))
        flipped_B = torch.from_numpy(drawn["flip"])
        shifted = torch.where(flipped_B[:, None, None, None], shifted.flip(-1), shifted)
        draws = uniforms(drawn["noise"], 3 + 2 * channels * height * width)[:, 3:]
        radius, turn = np.split(draws, 2, axis=1)
        normal = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * turn)
        return shifted + 0.08 * torch.from_numpy(normal.astype(np.float32)).view_as(shifted)
