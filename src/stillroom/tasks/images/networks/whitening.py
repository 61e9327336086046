"""Images as older semi-supervised learning reads them: contrast-normalised and whitened, by the network itself.

The statistics are buffers of the network: what is shipped whitens new images with the numbers of its training set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from stillroom.errors import InputError
from stillroom.modules.convolutions import Taps
from stillroom.modules.pixels import windows

_CONSTANT = 0.1  # of pixels 0..255: an image that differs anywhere has a length of about 1 at least


def contrast_normalised(pixels_BD: Tensor, *, multiplier: float = 55.0, epsilon: float = 1e-10) -> Tensor:
    """Global contrast normalisation: each image less its mean, divided by its length, times `multiplier`.

    Args:
        pixels_BD: one image in a row.
        multiplier: the length of every result.
        epsilon: an image whose length is below it is constant: it is divided by 1 instead.
    """
    centred_BD = pixels_BD - pixels_BD.mean(1, keepdim=True)
    length_B1 = centred_BD.norm(dim=1, keepdim=True)
    return multiplier * centred_BD / torch.where(length_B1 < epsilon, 1.0, length_B1)


def zca(batches: Iterable[Tensor], *, scale: float = 0.1, epsilon: float = 1e-10) -> tuple[Tensor, Tensor]:
    """Zero-phase whitening of rows: with C = covariance + scale * I = U S U^T,

        whitened = (row - mean) U diag(1 / sqrt(S + epsilon)) U^T

    Args:
        batches: the rows [B, D] of a training set, in any pieces; their sums are kept in float64.
        scale: added to the variance of every coordinate.
        epsilon: added to the eigenvalues.

    Returns:
        The mean [D] and the symmetric matrix [D, D], float64.

    Raises:
        InputError: there are fewer than two rows.
    """
    count, sum_D, products_DD = 0, torch.zeros(()), torch.zeros(())
    for rows_BD in batches:
        rows_BD = rows_BD.double()
        count, sum_D, products_DD = count + len(rows_BD), sum_D + rows_BD.sum(0), products_DD + rows_BD.T @ rows_BD
    if count < 2:
        raise InputError("batches", f"{count} rows", "at least two images to take a covariance of")
    mean_D = sum_D / count
    covariance_DD = (products_DD - count * mean_D[:, None] * mean_D) / (count - 1)
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD + scale * torch.eye(len(mean_D), dtype=mean_D.dtype, device=mean_D.device))
    return mean_D, (vectors_DD / (values_D.clamp_min(0) + epsilon).sqrt()) @ vectors_DD.T


class Whitening(nn.Module):
    """Normalised images -> contrast-normalised and whitened ones; before `fit` they are contrast-normalised only.

    Args:
        image_size: height and width; the matrix has (in_channels * image_size^2)^2 numbers, so images are to be small.
        in_channels: channels of the images.

    Raises:
        InputError: an image is larger than 64 pixels.
    """

    mean: Tensor
    matrix: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, image_size: int, in_channels: int = 3) -> None:
        super().__init__()
        if image_size > 64:
            raise InputError("image_size", image_size, "at most 64 pixels, to be whitened")
        numbers = in_channels * image_size**2
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("matrix", torch.eye(numbers))
        self.register_buffer("pixel_mean", torch.zeros(in_channels, 1, 1))
        self.register_buffer("pixel_std", torch.ones(in_channels, 1, 1))

    def fit(self, batches: Callable[[], Iterable[Tensor]], mean: Sequence[float], std: Sequence[float]) -> None:
        """Takes the statistics of a training set.

        Args:
            batches: gives the set's normalised images [B, in_channels, S, S].
            mean, std: with which each channel of pixels in [0, 1] was normalised.
        """
        self.pixel_mean.copy_(torch.tensor(mean).view(-1, 1, 1))
        self.pixel_std.copy_(torch.tensor(std).view(-1, 1, 1))
        device = self.mean.device
        mean_D, matrix_DD = zca(self.contrast_normalised(images.to(device)) for images in batches())
        self.mean.copy_(mean_D)
        self.matrix.copy_(matrix_DD)

    def contrast_normalised(self, images_BCHW: Tensor) -> Tensor:
        """Normalised images as rows [B, D] of length 55."""
        pixels_BCHW = 255 * (images_BCHW.float() * self.pixel_std + self.pixel_mean)
        return contrast_normalised(pixels_BCHW.flatten(1), epsilon=_CONSTANT)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, S, S] -> the same shape."""
        device = images.device.type  # shapes alone are worked out on "meta", which autocast does not know
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return ((self.contrast_normalised(images) - self.mean) @ self.matrix).view_as(images)


class Jitter(nn.Module):
    """In training: a mirror image half of the time, a random window of the image with a reflected border, and Gaussian noise.

    Args:
        border: pixels that a window may be off, in each direction.
        noise: standard deviation, for each number of each image.
        each: draw mirror and window for each image; otherwise once for the whole batch.
    """

    def __init__(self, border: int = 2, noise: float = 0.15, *, each: bool = False) -> None:
        super().__init__()
        self.border, self.noise, self.each = border, noise, each

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        if not self.training:
            return images
        height, width = images.shape[-2:]
        draws = len(images) if self.each else 1
        # Drawn on the CPU: where to cut must be known there.
        flips, corners = torch.rand(draws) < 0.5, torch.randint(0, 2 * self.border + 1, (draws, 2))
        padded = pad(images, (self.border,) * 4, mode="reflect")
        if self.each:
            moved = windows(padded, corners.to(images.device), (height, width))
            moved = torch.where(flips.to(images.device)[:, None, None, None], moved.flip(-1), moved)
        else:
            top, left = corners[0].tolist()
            moved = padded[..., top : top + height, left : left + width]
            moved = moved.flip(-1) if flips[0] else moved
        return moved + self.noise * torch.randn_like(moved)


class Whitened(nn.Module):
    """A network behind whitening, which jitters the whitened images while it is trained.

    Args:
        network: builds it, from `num_classes` and `in_channels`.
        num_classes: C.
        in_channels: channels of the images.
        image_size: height and width, 64 at most.
    """

    def __init__(self, network: Callable[..., nn.Module], *, num_classes: int, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        self.whitening = Whitening(image_size, in_channels)
        self.jitter = Jitter()
        self.network = network(num_classes=num_classes, in_channels=in_channels)

    def forward(self, images: Tensor) -> Tensor:
        """[B, in_channels, S, S] -> [B, num_classes]."""
        return self.network(self.jitter(self.whitening(images)))

    def taps(self) -> Taps:
        """The network's."""
        inner: Taps = self.network.taps()  # type: ignore[operator]
        feats, preact_feats = (tuple(f"network.{path}" for path in paths) for paths in (inner.feats, inner.preact_feats))
        return Taps(feats, preact_feats, f"network.{inner.pooled_feat}")
