"""How an image becomes a detector's input, and how boxes come back to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import normalize, pil_to_tensor, resize
from torchvision.tv_tensors import BoundingBoxes


@dataclass(frozen=True)
class Preparation:
    """What is done to every image, as `student.json` and exported files say it.

    Attributes:
        image_size: pixels that the shorter side is brought to; None leaves images in their size.
        max_size: pixels that the longer side may have then; None for no limit.
        mean, std: of each channel, for pixels in [0, 1].
        divisor: of the height and width of a batch; images are padded to it with zeros, at the right and the bottom.
    """

    image_size: int | None
    max_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    divisor: int

    @classmethod
    def from_json(cls, described: Mapping[str, Any]) -> Preparation:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: it is no such description.
        """
        image_size, max_size = (None if described[name] is None else int(described[name]) for name in ("image_size", "max_size"))
        mean, std = (tuple(float(number) for number in described[name]) for name in ("mean", "std"))
        return cls(image_size, max_size, mean, std, int(described["divisor"]))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def size(self, height: int, width: int, *, image_size: int | None = None) -> tuple[int, int]:
        """Height and width that an image is brought to, by this `image_size` or another."""
        image_size = image_size or self.image_size
        scale = 1.0 if image_size is None else image_size / min(height, width)
        if self.max_size is not None:
            scale = min(scale, self.max_size / max(height, width))
        return max(1, round(scale * height)), max(1, round(scale * width))

    def fit(self, pixels: Tensor, *, image_size: int | None = None) -> Tensor:
        """uint8 [3, h, w], brought to its size."""
        size = self.size(*pixels.shape[-2:], image_size=image_size)
        return pixels if size == tuple(pixels.shape[-2:]) else resize(pixels, list(size), antialias=True)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [3, h, w] -> float32, by mean and standard deviation."""
        return normalize(pixels.float() / 255, list(self.mean), list(self.std))

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """An image, RGB or uint8 [3, h, w], as float32 [3, h', w'], not yet padded."""
        return self.normalise(self.fit(as_pixels(image)))


def as_pixels(image: Image.Image | Tensor) -> Tensor:
    """RGB or uint8 [3, h, w] -> uint8 [3, h, w]."""
    return image if isinstance(image, Tensor) else pil_to_tensor(image)


def boxes_on(boxes_G4: Tensor, shape: Sequence[int]) -> BoundingBoxes:
    """Absolute (x1, y1, x2, y2) with the (height, width) of their image, which transforms change with it."""
    return BoundingBoxes(boxes_G4, format="XYXY", canvas_size=(int(shape[0]), int(shape[1])))


def rescaled(boxes_G4: Tensor, shape: Sequence[int], onto: Sequence[int]) -> Tensor:
    """Boxes of an image of one (height, width) in the pixels of another."""
    (height, width), (new_height, new_width) = shape, onto
    factors = torch.tensor([new_width / width, new_height / height], device=boxes_G4.device)
    return boxes_G4 * factors.repeat(2)
