"""GIFT: the foreground of encoder features, transformed by kernels that a global vector of the image makes.

For features F_l of a level, a mask M_l brought to their size by area, and the global vector v of the image:

    w'_{b,o,i,k} = s_{b,i} c W_{o,i,k},  s = A v + b_A,  c = 1 / sqrt(9 C_l)       modulated
    w''_{b,o,i,k} = w' / sqrt( sum_{i,k} w'^2 + 1e-8 )                             demodulated
    delta = conv1x1( two such convolutions of F_l, each with bias and a leaky ReLU )
    F'_l = F_l + M_l * delta

delta starts at zero, and with it the whole as the identity. Of the paper only the abstract is public; its authors' later survey says that
kernels are predicted from global information. The form of the kernels is that of DucoNet, their follow-up; all else is inferred.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, conv2d, leaky_relu

from stillroom.errors import one_of

GlobalSource = Literal["all", "zero", "background"]
Blend = Literal["residual", "replace"]
SOURCES: tuple[str, ...] = ("all", "zero", "background")
BLENDS: tuple[str, ...] = ("residual", "replace")


def mask_at(mask_B1HW: Tensor, like_BCHW: Tensor) -> Tensor:
    """M_l: the mask averaged over areas to the height and width of features, [B, 1, H_l, W_l]."""
    size = like_BCHW.shape[2], like_BCHW.shape[3]
    return mask_B1HW if (mask_B1HW.shape[2], mask_B1HW.shape[3]) == size else adaptive_avg_pool2d(mask_B1HW, size)


def global_vector(bottleneck_BCHW: Tensor, mask_B1HW: Tensor, source: str = "all") -> Tensor:
    """v, [B, C]: what the transformation knows of the image.

    Args:
        bottleneck_BCHW: the encoder's last features, not transformed.
        mask_B1HW: of the whole image, in any size.
        source: ``all``, the mean over the whole image; ``background``, over what is not foreground (0 where all is); ``zero``, nothing,
            the ablation that leaves a local transformation of the same size.
    """
    if source == "zero":
        return torch.zeros_like(bottleneck_BCHW[:, :, 0, 0])
    if source == "all":
        return bottleneck_BCHW.mean((2, 3))
    outside_B1HW = 1 - mask_at(mask_B1HW, bottleneck_BCHW)
    area_B1 = outside_B1HW.sum((2, 3)).clamp_min(torch.finfo(outside_B1HW.dtype).tiny)
    return (outside_B1HW * bottleneck_BCHW).sum((2, 3)) / area_B1


class ModulatedConv(nn.Module):
    """A 3x3 convolution whose kernel each image makes of a stored one, by a scale of each input channel; with bias.

    Scaling the inputs and the outputs is the same as convolving with a kernel per image, at the cost of one kernel, and can be exported
    for batches of any size.

    Args:
        channels: C, in and out.
        global_channels: of the vector that makes the scales.
        epsilon: under the root of the demodulation.
    """

    def __init__(self, channels: int, global_channels: int, *, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(channels, channels, 3, 3)), nn.Parameter(torch.zeros(channels))
        self.scale = nn.Linear(global_channels, channels)
        nn.init.normal_(self.scale.weight, std=1 / math.sqrt(global_channels))
        nn.init.ones_(self.scale.bias)
        self.epsilon = epsilon

    def forward(self, features_BCHW: Tensor, vector_BD: Tensor) -> Tensor:
        """The shape of the features stays. Kernels are made in float32 under reduced precision."""
        with torch.autocast(features_BCHW.device.type, enabled=False):
            dtype = torch.promote_types(features_BCHW.dtype, self.weight.dtype)
            kernel = self.weight / math.sqrt(self.weight[0].numel())
            scale_BC = self.scale(vector_BD.to(self.weight.dtype))
            power_BO = scale_BC.square() @ kernel.square().sum((2, 3)).T
            strength_BO = torch.rsqrt(power_BO + self.epsilon)
            scaled = features_BCHW.to(dtype) * scale_BC[:, :, None, None]
        return conv2d(scaled, kernel, padding=1) * strength_BO[:, :, None, None] + self.bias[:, None, None]


class Gift(nn.Module):
    """The transformation of one level's features; the identity at first.

    Args:
        channels: C_l of the level.
        global_channels: of the global vector.
        blend: ``residual``: F + M delta; ``replace``: F (1 - M) + M delta.
        slope: of the leaky ReLUs.
        epsilon: see `ModulatedConv`.

    Raises:
        InputError: another blend.
    """

    def __init__(self, channels: int, global_channels: int, *, blend: str = "residual", slope: float = 0.2, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.blend, self.slope = one_of("blend", blend, BLENDS), slope
        self.conv1, self.conv2 = (ModulatedConv(channels, global_channels, epsilon=epsilon) for _ in range(2))
        self.out = nn.Conv2d(channels, channels, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features_BCHW: Tensor, vector_BD: Tensor, mask_B1HW: Tensor) -> Tensor:
        """F'_l. The mask may be of another size; where it is 0 the features stay as they are."""
        mask = mask_at(mask_B1HW, features_BCHW)
        found = leaky_relu(self.conv1(features_BCHW, vector_BD), self.slope)
        found = leaky_relu(self.conv2(found, vector_BD), self.slope)
        kept = features_BCHW if self.blend == "residual" else features_BCHW * (1 - mask)
        return kept + mask * self.out(found)
