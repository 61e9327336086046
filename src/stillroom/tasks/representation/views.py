"""Random views for methods that compare several of each image: crops of any size with changed colours, and warped scans of digits.

What must be done to each image alone (a crop of a photograph) is done to it; everything else to whole batches, in the loader's workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, pad

from stillroom.engine.loading import sample_seeds, uniforms
from stillroom.modules.pixels import grey
from stillroom.tasks.images.transforms import BatchChange, CropAndFlip, Fit, Parameters, Transform, noise

if TYPE_CHECKING:
    from stillroom.tasks.representation.data import RepresentationData

_JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True)
class Look:
    """What a view does to an image.

    Args:
        scale: smallest and largest share of the area that a crop takes.
        size: height and width of the view in pixels; by default the data's.
        jitter: probability that brightness, contrast, saturation and hue are changed, in this order, by up to 0.4, 0.4, 0.2 and 0.1.
        grey: probability of no colour.
        blur: probability of a Gaussian blur of radius 0.1 to 2 pixels.
        solarise: probability that bright pixels (above one half) are inverted.

    Source: the augmentation of DINO and AdaSim (specification, "Training and evaluation protocol").
    """

    scale: tuple[float, float] = (0.4, 1.0)
    size: int | None = None
    jitter: float = 0.8
    grey: float = 0.2
    blur: float = 0.0
    solarise: float = 0.0


# The two global views, and the small crops that a method may show besides.
FIRST, SECOND = Look(blur=1.0), Look(blur=0.1, solarise=0.2)


def crop_view(data: RepresentationData, look: Look) -> Transform:
    """A view of these data: of small images in memory all is done batch by batch; photographs are cropped one by one (bicubic)."""
    size = look.size or data.image_size
    colours = Colours(look)
    if data.in_memory:
        together = Changes((BatchCrop(size, look.scale), colours))
        return Transform(Fit(data.image_size, data.image_size), data.mean, data.std, together=together)
    return Transform(CropAndFlip(size, look.scale, "bicubic"), data.mean, data.std, together=colours)


def warp_view(data: RepresentationData) -> Transform:
    """A view of scans of digits (`Warp`)."""
    return Transform(Fit(data.image_size, data.image_size), data.mean, data.std, together=Warp())


class Changes:
    """Several changes of whole batches, one after the other."""

    def __init__(self, changes: Sequence[BatchChange]) -> None:
        self.changes = tuple(changes)

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        """What each will do; their names begin with its number."""
        drawn: Parameters = {}
        for number, change in enumerate(self.changes):
            own = change.draw(sample_seeds(number, 0, seeds), size)
            drawn |= {f"{number}.{name}": values for name, values in own.items()}
        return drawn

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        """uint8 [B, 3, H, W] as float in [0, 1], changed."""
        for number, change in enumerate(self.changes):
            own = {name.partition(".")[2]: values for name, values in drawn.items() if name.startswith(f"{number}.")}
            images_BCHW = change.apply(images_BCHW, own)
        return images_BCHW


class BatchCrop:
    """Crops of a share of the area and a ratio of sides from 3:4 to 4:3, resized (bilinear), and mirrored half of the time.

    Args:
        size: height and width of the result.
        scale: smallest and largest share.
    """

    def __init__(self, size: int, scale: tuple[float, float]) -> None:
        self.size, self.scale = size, scale

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        """``crop``: (top, left, height, width) as fractions; ``flip``."""
        draws = uniforms(seeds, 5)
        area = self.scale[0] + draws[:, 0] * (self.scale[1] - self.scale[0])
        ratio = np.exp(np.log(4 / 3) * (2 * draws[:, 1] - 1))
        sides = np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], 1).clip(max=1.0)
        corners = draws[:, 2:4] * (1 - sides)
        return {"crop": np.concatenate([corners, sides], 1).astype(np.float32), "flip": draws[:, 4] < 0.5}

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        """uint8 [B, 3, H, W] or float in [0, 1] -> float [B, 3, S, S]."""
        top, left, height, width = torch.from_numpy(drawn["crop"]).unbind(1)
        across = torch.where(torch.from_numpy(drawn["flip"]), -width, width)
        zero = torch.zeros_like(top)
        rows = torch.stack([across, zero, 2 * left + width - 1, zero, height, 2 * top + height - 1], 1).view(-1, 2, 3)
        return _sampled(images_BCHW, rows, self.size)


class Colours:
    """Jitter, grey, blur and solarisation, each image its own.

    Hue is turned in the colour space YIQ, which is one matrix for each image.
    """

    def __init__(self, look: Look) -> None:
        self.look = look

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        """``colours``: uniform numbers in [0, 1), float32 [B, 9]."""
        return {"colours": uniforms(seeds, 9).astype(np.float32)}

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        """uint8 [B, 3, H, W] or float in [0, 1] -> float in [0, 1]."""
        images = _floats(images_BCHW)
        draws = torch.from_numpy(drawn["colours"]).view(-1, 9, 1, 1, 1).unbind(1)
        jittered = _jittered(images, [1 + most * (2 * draw - 1) for most, draw in zip(_JITTER[:3], draws[:3], strict=True)])
        jittered = _hued(jittered, 2 * math.pi * _JITTER[3] * (2 * draws[3] - 1))
        images = torch.where(draws[4] < self.look.jitter, jittered, images)
        images = torch.where(draws[5] < self.look.grey, grey(images).expand_as(images), images)
        if self.look.blur:
            images = torch.where(draws[6] < self.look.blur, _blurred(images, 0.1 + 1.9 * draws[7].flatten()), images)
        if self.look.solarise:
            images = torch.where((draws[8] < self.look.solarise) & (images >= 0.5), 1 - images, images)
        return images


class Warp:
    """Of scans of digits: rotated by up to 10 degrees, scaled by 0.85 to 1.15, shifted by up to a tenth of the side, made lighter or darker
    by 0.6 to 1.4, with Gaussian noise of standard deviation 0.05, the same in all channels.

    Source: AdaSim's specification, "Small-scale experiment", A.
    """

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        """``warp``: uniform numbers, float64 [B, 5]; ``noise``: the seed of the noise."""
        return {"warp": uniforms(seeds, 5), "noise": seeds}

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        """uint8 [B, 3, H, W] -> float; values may leave [0, 1]."""
        draws = torch.from_numpy(drawn["warp"])
        angle, scale = math.radians(10) * (2 * draws[:, 0] - 1), 0.85 + 0.3 * draws[:, 1]
        cosine, sine, shift = angle.cos() / scale, angle.sin() / scale, 0.2 * (2 * draws[:, 2:4] - 1)
        rows = torch.stack([cosine, -sine, shift[:, 0], sine, cosine, shift[:, 1]], 1).view(-1, 2, 3).float()
        height, width = images_BCHW.shape[-2:]
        warped = _sampled(images_BCHW, rows, height) * (0.6 + 0.8 * draws[:, 4]).float().view(-1, 1, 1, 1)
        return warped + 0.05 * noise(drawn["noise"], height, width)


def _floats(images_BCHW: Tensor) -> Tensor:
    return images_BCHW if images_BCHW.is_floating_point() else images_BCHW.to(torch.float32).div_(255)


def _sampled(images_BCHW: Tensor, rows_B23: Tensor, size: int) -> Tensor:
    """The images seen through affine maps of the square [-1, 1]^2; black lies outside."""
    grid = affine_grid(rows_B23, [len(images_BCHW), 1, size, size], align_corners=False)
    return grid_sample(_floats(images_BCHW), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _jittered(images: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Brightness, contrast and saturation, each blended with black, with the mean luma, with the luma."""
    brightness, contrast, saturation = factors
    images = (images * brightness).clamp(0, 1)
    mean = grey(images).mean((1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * contrast).clamp(0, 1)
    luma = grey(images)
    return (luma + (images - luma) * saturation).clamp(0, 1)


def _hued(images: Tensor, angle: Tensor) -> Tensor:
    """Colours turned by an angle in radians, one for each image."""
    to_yiq = torch.tensor(_YIQ)
    cosine, sine = angle.flatten().cos(), angle.flatten().sin()
    zero, one = torch.zeros_like(cosine), torch.ones_like(cosine)
    turn = torch.stack([one, zero, zero, zero, cosine, -sine, zero, sine, cosine], 1).view(-1, 3, 3)
    return torch.einsum("bij,bjhw->bihw", to_yiq.inverse() @ turn @ to_yiq, images).clamp(0, 1)


def _blurred(images: Tensor, radius_B: Tensor) -> Tensor:
    """Gaussian blur, each image with its own standard deviation in pixels; the border is mirrored."""
    reach = min(6, min(images.shape[-2:]) - 1)
    kernel = torch.exp(-torch.arange(-reach, reach + 1.0).square() / (2 * radius_B[:, None].square()))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    flat = pad(images, (reach,) * 4, mode="reflect").flatten(0, 1)[None]
    groups = flat.shape[1]
    blurred = conv2d(conv2d(flat, kernel[..., None, :], groups=groups), kernel[..., None], groups=groups)
    return blurred.view(len(images), 3, *images.shape[-2:])
