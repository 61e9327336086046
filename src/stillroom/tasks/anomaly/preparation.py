"""Pictures and masks in the one size that networks read, and maps back in the pictures' own pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from stillroom.errors import at_least, one_of
from stillroom.tasks.images.transforms import Transform

Fit = Literal["squash", "crop"]
FITS = ("squash", "crop")


class Preparation:
    """How a picture becomes a square of pixels.

    Args:
        image_size: S, its side.
        fit: ``squash`` resizes to the square without regard to the shape: all of the picture is seen; ``crop`` resizes the shorter side
            and cuts out the centre: what lies beside it is never seen.
        antialias: smooth before shrinking; programs that resize tensors without it get other numbers.

    Raises:
        InputError: an option that cannot be used.
    """

    def __init__(self, image_size: int, fit: str = "squash", *, antialias: bool = True) -> None:
        self.image_size, self.fit, self.antialias = at_least("image_size", image_size, 8), one_of("fit", fit, FITS), antialias

    def __call__(self, picture: Image.Image | Tensor) -> Tensor:
        """A picture as uint8 [3, S, S]."""
        pixels = pil_to_tensor(picture.convert("RGB")) if isinstance(picture, Image.Image) else picture
        return self._fitted(pixels, InterpolationMode.BILINEAR)

    def mask(self, mask_HW: np.ndarray) -> np.ndarray:
        """A mask of the picture as bool [S, S]; of each pixel the nearest one of the mask."""
        pixels = torch.from_numpy(mask_HW.astype(np.uint8))[None]
        return self._fitted(pixels, InterpolationMode.NEAREST_EXACT)[0].numpy() > 0

    def _fitted(self, pixels: Tensor, interpolation: InterpolationMode) -> Tensor:
        size = [self.image_size] * (2 if self.fit == "squash" else 1)
        if tuple(pixels.shape[1:]) != (self.image_size,) * 2:
            antialias = self.antialias and interpolation == InterpolationMode.BILINEAR
            pixels = center_crop(resize(pixels, size, interpolation=interpolation, antialias=antialias), [self.image_size] * 2)
        return pixels

    def placed(self, map_SS: Tensor, height: int, width: int) -> Tensor:
        """A map of the square in the picture's own pixels, float32 [height, width]; NaN where the picture was never seen."""
        shape = height, width
        if self.fit == "crop":  # the size that the whole picture was resized to, and the square in it, as torchvision has them
            short = min(shape)
            resized = [self.image_size if side == short else int(self.image_size * side / short) for side in shape]
            top, left = (round((side - self.image_size) / 2.0) for side in resized)
            whole = torch.full(resized, torch.nan)
            whole[top : top + self.image_size, left : left + self.image_size] = map_SS
            seen = (~whole.isnan()).float()
            enlarged, share = (interpolate(one[None, None], shape, mode="bilinear")[0, 0] for one in (whole.nan_to_num(0.0), seen))
            return torch.where(share > 0.5, enlarged / share.clamp_min(0.5), torch.nan)
        return interpolate(map_SS[None, None].float(), shape, mode="bilinear")[0, 0]

    def transform(self, mean: Sequence[float], std: Sequence[float]) -> Transform:
        """To what a network reads; `mean` and `std` of each channel, for pixels in [0, 1]."""
        return Transform(self, mean, std)

    def describe(self, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
        """All of it in plain numbers and words."""
        size = self.image_size
        sizes = {"resize": [size, size]} if self.fit == "squash" else {"resize": size, "crop": size}
        described = {"image_size": size, **sizes, "interpolation": "bilinear", "antialias": self.antialias}
        return {**described, "fit": self.fit, "mean": list(mean), "std": list(std)}

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> Preparation:
        """What `describe` described."""
        return cls(int(described["image_size"]), str(described["fit"]), antialias=bool(described["antialias"]))
