"""Random views of images for the teacher (stage 1, item 2), drawn on the device, each row of a batch its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from stillroom.modules.pixels import grey


class PhotoViews(nn.Module):
    """SimCLR's views of photographs: mirror, colours, grey, and a crop resized to the whole image.

    The order of the four colour changes (brightness, contrast, saturation, hue) and their definitions, torchvision's, are inferred; so is
    that a crop longer than the image is cut to it.

    Args:
        mirror: probability of a mirror image.
        jitter: probability that the colours change: brightness, contrast and saturation by factors in [1 - strength, 1 + strength], hue by
            up to `hue` of the colour circle.
        strength, hue: see above.
        grey: probability of losing all colour.
        area: share of the image that a crop has, at least; at most all of it. Its aspect ratio is between 3/4 and 4/3.
    """

    def __init__(
        self, mirror: float = 0.5, jitter: float = 0.8, strength: float = 0.4, hue: float = 0.1, grey: float = 0.2, area: float = 0.08
    ) -> None:
        super().__init__()
        self.mirror, self.jitter, self.strength, self.hue, self.grey, self.area = mirror, jitter, strength, hue, grey, area

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], [B, 3, H, W] -> the same."""
        return self._cropped(self._coloured(pixels.float())).clamp(0, 1)

    def _coloured(self, pixels: Tensor) -> Tensor:
        rows = pixels.new_empty(len(pixels), 1, 1, 1)
        brightness, contrast, saturation = (torch.empty_like(rows).uniform_(1 - self.strength, 1 + self.strength) for _ in range(3))
        changed = (pixels * brightness).clamp(0, 1)
        middle = grey(changed).mean((2, 3), keepdim=True)
        changed = (middle + contrast * (changed - middle)).clamp(0, 1)
        pale = grey(changed)
        changed = (pale + saturation * (changed - pale)).clamp(0, 1)
        changed = hue_shifted(changed, torch.empty_like(rows).uniform_(-self.hue, self.hue))
        changed = torch.where(torch.rand_like(rows) < self.jitter, changed, pixels)
        return torch.where(torch.rand_like(rows) < self.grey, grey(changed), changed)

    def _cropped(self, pixels: Tensor) -> Tensor:
        count = len(pixels)
        area = torch.empty(count, device=pixels.device).uniform_(self.area, 1)
        ratio = torch.empty(count, device=pixels.device).uniform_(math.log(3 / 4), math.log(4 / 3)).exp()
        width, height = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
        sign = torch.where(torch.rand(count, device=pixels.device) < self.mirror, -1.0, 1.0)
        right, down = 2 * torch.rand(2, count, device=pixels.device) - 1
        nothing = torch.zeros_like(area)
        rows = [torch.stack((sign * width, nothing, right * (1 - width)), 1), torch.stack((nothing, height, down * (1 - height)), 1)]
        return warped(pixels, torch.stack(rows, 1), "reflection")


class ScanViews(nn.Module):
    """Views of scanned signs, which a mirror would turn into others: moved, turned, scaled on a black ground, and noise.

    Args:
        shift: largest move in both directions, in pixels.
        degrees: largest turn.
        scale: sizes from 1 - scale to 1 + scale.
        noise: standard deviation of Gaussian noise, the same in all channels.
    """

    def __init__(self, shift: float = 1.0, degrees: float = 15.0, scale: float = 0.15, noise: float = 0.1) -> None:
        super().__init__()
        self.shift, self.degrees, self.scale, self.noise = shift, degrees, scale, noise

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1], [B, 3, H, W] -> the same, but for noise."""
        count, _, height, width = pixels.shape
        angle = torch.empty(count, device=pixels.device).uniform_(-self.degrees, self.degrees).deg2rad()
        inverse = 1 / torch.empty(count, device=pixels.device).uniform_(1 - self.scale, 1 + self.scale)
        right, down = torch.empty(2, count, device=pixels.device).uniform_(-self.shift, self.shift)
        cos, sin = inverse * angle.cos(), inverse * angle.sin()
        turned = [torch.stack((cos, -sin, 2 * right / width), 1), torch.stack((sin, cos, 2 * down / height), 1)]
        moved = warped(pixels.float(), torch.stack(turned, 1), "zeros")
        return moved + self.noise * torch.randn_like(moved[:, :1])


def warped(pixels: Tensor, matrices_B23: Tensor, border: str) -> Tensor:
    """Each image resampled (bilinear) at the places that its matrix sends the output's coordinates in [-1, 1]^2 to."""
    with torch.autocast(pixels.device.type, enabled=False):
        grid = affine_grid(matrices_B23.float(), list(pixels.shape), align_corners=False)
        return grid_sample(pixels.float(), grid, padding_mode=border, align_corners=False)


def hue_shifted(pixels: Tensor, turns: Tensor) -> Tensor:
    """Pixels in [0, 1] with every hue turned by so many whole turns [B, 1, 1, 1]; value and saturation stay."""
    value = pixels.amax(1, keepdim=True)
    spread = value - pixels.amin(1, keepdim=True)
    red, green, blue = pixels.split(1, 1)
    safe = torch.where(spread > 0, spread, 1.0)
    sixth = torch.where(value == red, (green - blue) / safe, torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe))
    # A channel is the value less the spread times a trapezium of the hue, whose phase is the channel's own.
    phases = torch.arange(5, 0, -2, device=pixels.device).view(3, 1, 1)
    place = (phases + sixth + 6 * turns).remainder(6)
    return value - spread * torch.minimum(place, 4 - place).clamp(0, 1)
