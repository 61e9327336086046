"""Crops that can be cut again: drawn once as fractions of the image, cut and resized whenever they are wanted.

A box is (top, left, height, width) as fractions of the image's height and width, as in `transforms`. Cutting follows Pillow, which the
released code uses: corners rounded to the nearest pixel, resized with a filter as wide as the crop is reduced by (antialiased).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from stillroom.engine.loading import uniforms
from stillroom.errors import InputError, share

Interpolation = Literal["bilinear", "bicubic"]

_ATTEMPTS = 10
_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_A = -0.5  # Pillow's bicubic


@dataclass(frozen=True)
class CropRule:
    """How crops are drawn: the usual random resized crop.

    Args:
        area: smallest and largest fraction of the image's area; uniform between them.
        aspect: smallest and largest width / height; log-uniform between them.
        flip: probability of a mirrored crop.

    Raises:
        InputError: a range that is none, or a probability outside [0, 1].
    """

    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        for name, most in (("area", 1.0), ("aspect", math.inf)):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != 2 or not 0 < values[0] <= values[1] <= most or values[1] == math.inf:
                raise InputError(name, list(values), f"two numbers above 0{' and up to 1' if most == 1 else ''}, the smaller first")
        share("flip", self.flip)

    def draw(self, sizes_N2: np.ndarray, seeds_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A crop of each image: up to ten attempts at a box that fits, then the largest centred one of an allowed shape.

        Args:
            sizes_N2: height and width in pixels, int [N, 2].
            seeds_N: of which the crops are pure functions, int64 [N].

        Returns:
            Boxes float32 [N, 4], and whether they are flipped, bool [N].
        """
        draws = uniforms(seeds_N, 4 * _ATTEMPTS + 1)
        area_NA, aspect_NA, down_NA, right_NA = np.split(draws[:, 1:], 4, axis=1)
        sizes_N2 = np.asarray(sizes_N2, np.int64)
        height_N1, width_N1 = sizes_N2[:, :1], sizes_N2[:, 1:]
        target_NA = height_N1 * width_N1 * (self.area[0] + (self.area[1] - self.area[0]) * area_NA)
        low, high = np.log(self.aspect)
        shape_NA = np.exp(low + (high - low) * aspect_NA)
        w_NA, h_NA = np.rint(np.sqrt(target_NA * shape_NA)), np.rint(np.sqrt(target_NA / shape_NA))
        fits_NA = (w_NA > 0) & (w_NA <= width_N1) & (h_NA > 0) & (h_NA <= height_N1)
        top_NA, left_NA = np.floor(down_NA * (height_N1 - h_NA + 1)), np.floor(right_NA * (width_N1 - w_NA + 1))
        boxes_NA4 = np.stack([top_NA, left_NA, h_NA, w_NA], -1)
        first_N = fits_NA.argmax(1)
        boxes_N4 = np.where(fits_NA.any(1)[:, None], boxes_NA4[np.arange(len(first_N)), first_N], self._centred(sizes_N2))
        return (boxes_N4 / np.concatenate([sizes_N2, sizes_N2], 1)).astype(np.float32), draws[:, 0] < self.flip

    def _centred(self, sizes_N2: np.ndarray) -> np.ndarray:
        height_N, width_N = sizes_N2.T.astype(np.float64)
        shape_N = width_N / height_N
        w_N = np.where(shape_N > self.aspect[1], np.rint(height_N * self.aspect[1]), width_N)
        h_N = np.where(shape_N < self.aspect[0], np.rint(width_N / self.aspect[0]), height_N)
        return np.stack([(height_N - h_N) // 2, (width_N - w_N) // 2, h_N, w_N], -1)


def pixel_boxes(boxes_N4: np.ndarray, sizes_N2: np.ndarray) -> np.ndarray:
    """Boxes in pixels of images of these sizes, int64 [N, 4]: both corners rounded to the nearest pixel, at least one pixel large."""
    boxes_N4, sizes_N2 = boxes_N4.astype(np.float64), np.asarray(sizes_N2, np.int64)
    corner_N2, extent_N2 = boxes_N4[:, :2] * sizes_N2, boxes_N4[:, 2:] * sizes_N2
    end_N2 = np.clip(np.rint(corner_N2 + extent_N2).astype(np.int64), 1, sizes_N2)
    start_N2 = np.clip(np.rint(corner_N2).astype(np.int64), 0, end_N2 - 1)
    return np.concatenate([start_N2, end_N2 - start_N2], 1)


def cut(image: Image.Image | Tensor, boxes_N4: np.ndarray, flips_N: np.ndarray, size: int, interpolation: Interpolation) -> Tensor:
    """Crops of one image, by Pillow.

    Args:
        image: RGB, or uint8 [3, H, W].
        boxes_N4: fractions [N, 4].
        flips_N: bool [N].
        size: height and width of the results in pixels.
        interpolation: of the resizing.

    Returns:
        uint8 [N, 3, size, size].
    """
    picture: Image.Image = to_pil_image(image) if isinstance(image, Tensor) else image
    sizes_N2 = np.broadcast_to([picture.height, picture.width], (len(boxes_N4), 2))
    crops = []
    for (top, left, height, width), flipped in zip(pixel_boxes(boxes_N4, sizes_N2).tolist(), flips_N.tolist(), strict=True):
        crop = picture.crop((left, top, left + width, top + height)).resize((size, size), _PILLOW[interpolation])
        crops.append(pil_to_tensor(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else crop))
    return torch.stack(crops)


def cut_together(images_N3HW: Tensor, boxes_N4: np.ndarray, flips_N: np.ndarray, size: int, interpolation: Interpolation) -> Tensor:
    """A crop of each of many small images of one size, as `cut` gives them up to one level of 255 (bicubic: up to a few at hard edges).

    Resizing is two matrix products for each image; for images in memory this is ten times as fast as one at a time.

    Args:
        images_N3HW: uint8.
        boxes_N4, flips_N, size, interpolation: as `cut`.

    Returns:
        uint8 [N, 3, size, size].
    """
    height, width = images_N3HW.shape[2:]
    sizes_N2 = np.broadcast_to([height, width], (len(boxes_N4), 2))
    top_N, left_N, tall_N, wide_N = torch.from_numpy(pixel_boxes(boxes_N4, sizes_N2)).T
    across_NSW, down_NSH = (_weights(*box, size, interpolation) for box in ((left_N, wide_N, width), (top_N, tall_N, height)))
    flips = torch.from_numpy(np.asarray(flips_N, bool))[:, None, None]
    across_NSW = torch.where(flips, across_NSW.flip(1), across_NSW)
    # Pillow keeps whole levels in between, and goes down first where that is less work: bicubic filters overshoot black and white there.
    narrow_N3HS = (images_N3HW.float() @ across_NSW[:, None].mT).clamp_(0, 255)
    return (down_NSH[:, None] @ narrow_N3HS).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


def _weights(start_N: Tensor, length_N: Tensor, pixels: int, size: int, interpolation: Interpolation) -> Tensor:
    """How much each of an axis's pixels adds to each of the results, float32 [N, size, pixels]; rows sum to 1."""
    scale_N11 = (length_N.float() / size)[:, None, None]
    stretch_N11 = scale_N11.clamp(min=1)  # reduced crops are filtered as wide as they are reduced
    centres_1S1 = (torch.arange(size) + 0.5)[None, :, None]
    places_N1P = (torch.arange(pixels)[None] - start_N[:, None])[:, None].float()
    distance_NSP = ((places_N1P + 0.5) / stretch_N11 - centres_1S1 * (scale_N11 / stretch_N11)).abs_()
    inside_N1P = (places_N1P >= 0) & (places_N1P < length_N[:, None, None])
    weights_NSP = _filter(distance_NSP, interpolation).mul_(inside_N1P)
    return weights_NSP / weights_NSP.sum(2, keepdim=True)


def _filter(x: Tensor, interpolation: Interpolation) -> Tensor:
    """The filter at distances x >= 0; 0 outside its support of one pixel (bilinear) or two."""
    if interpolation == "bilinear":
        return (1 - x).clamp_(min=0)
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
