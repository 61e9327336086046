"""KD^3's part 3a: MixDistribution, a second view of each image with the style of a mixture of its own and another's.

With mu, sigma of each channel over the pixels, held constant, and a partner perm(b) in the batch:

    x~_b = sigma'_b (x_b - mu_b) / sigma_b + mu'_b        mu'_b = lambda_b mu_b + (1 - lambda_b) mu_perm(b),   sigma'_b likewise

lambda_b ~ Beta(a, a), one number per image. It works on normalised images and clamps nothing.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from stillroom.errors import InputError, one_of, positive, share

Partners = Literal["random", "crossdomain"]


def mix_distribution(images_BCHW: Tensor, share_B: Tensor, partners_B: Tensor, eps: float = 1e-6) -> Tensor:
    """Each image with its channels' mean and spread mixed with its partner's.

    The statistics are constants: d x~ / d x = sigma' / sigma. A constant channel comes out as its mixed mean.

    Args:
        images_BCHW: x, normalised, of at least two pixels.
        share_B: lambda in [0, 1], the image's own share.
        partners_B: perm, int64, the partner's place in the batch.
        eps: added to the variance, which is unbiased.

    Returns:
        x~, [B, C, H, W] in the images' type; the statistics are computed in float32.

    Raises:
        InputError: the images are not [B, C, H, W] of at least two pixels, or not as many shares or partners.

    Source: part 3a.
    """
    if images_BCHW.ndim != 4 or images_BCHW.shape[2:].numel() < 2:
        raise InputError("images_BCHW", f"shape {list(images_BCHW.shape)}", "[B, C, H, W] of at least two pixels")
    count = len(images_BCHW)
    for name, values in (("share_B", share_B), ("partners_B", partners_B)):
        if values.shape != (count,):
            raise InputError(name, f"shape {list(values.shape)}", f"[{count}], one for each image")
    with torch.autocast(images_BCHW.device.type, enabled=False):
        pixels = images_BCHW.float()
        constants = pixels.detach()
        mean_BC11 = constants.mean((2, 3), keepdim=True)
        spread_BC11 = (constants.var((2, 3), keepdim=True, unbiased=True) + eps).sqrt()
        share_B111 = share_B.float().view(-1, 1, 1, 1)
        mixed_mean = share_B111 * mean_BC11 + (1 - share_B111) * mean_BC11[partners_B]
        mixed_spread = share_B111 * spread_BC11 + (1 - share_B111) * spread_BC11[partners_B]
        return (mixed_spread * ((pixels - mean_BC11) / spread_BC11) + mixed_mean).to(images_BCHW.dtype)


class MixDistribution(nn.Module):
    """Draws shares and partners and mixes; in eval mode the images stay as they are.

    Args:
        beta: a > 0 of Beta(a, a). Small: an image keeps its own style or takes its partner's, and is seldom between.
        probability: of a batch being mixed at all, in [0, 1].
        partners: ``random``: any permutation; ``crossdomain``: the first half of the batch takes a permutation of the second half, and
            conversely.
        eps: see `mix_distribution`.

    Raises:
        InputError: a number is out of its range.
    """

    def __init__(self, beta: float = 0.1, *, probability: float = 1.0, partners: Partners = "random", eps: float = 1e-6) -> None:
        super().__init__()
        self.beta, self.eps = positive("beta", beta), positive("eps", eps)
        self.probability = share("probability", probability)
        self.partners = one_of("partners", partners, get_args(Partners))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        if not self.training or (self.probability < 1 and torch.rand(()) >= self.probability):
            return images_BCHW
        count, device = len(images_BCHW), images_BCHW.device
        shape = torch.full((count,), self.beta, device=device)
        share_B = torch.distributions.Beta(shape, shape, validate_args=False).sample()  # validating would wait for the device
        return mix_distribution(images_BCHW, share_B, self._partners(count, device), self.eps)

    def _partners(self, count: int, device: torch.device) -> Tensor:
        if self.partners == "random":
            return torch.randperm(count, device=device)
        takers = (count + 1) // 2
        halves = torch.arange(count - 1, -1, -1, device=device).split([takers, count - takers])
        return torch.cat([half[torch.randperm(len(half), device=device)] for half in halves])

    def extra_repr(self) -> str:
        """The numbers, for the fingerprint of a run."""
        return f"beta={self.beta}, probability={self.probability}, partners={self.partners}, eps={self.eps}"
