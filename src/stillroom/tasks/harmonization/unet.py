"""The baseline network: a U-Net that reads a composite and its foreground mask and answers with the harmonised picture.

It is that of iSSAM (Sofiiuk et al., "Foreground-aware Semantic Representations for Image Harmonization", without its backbone): an encoder
of blocks F_0 .. F_n, a decoder with skips, attention that treats foreground and background apart, and an output that blends the
composite with new colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, max_pool2d

from stillroom.errors import InputError, at_least
from stillroom.tasks.images.padding import cropped, padded
from stillroom.tasks.images.quality import gaussian_window

_FROM = 2  # the encoder level from which on there are batch norms, and the decoder's from which on there is attention
_SHARPNESS = 3.0  # of the output's blending
CHANNELS = 4  # of an input: a picture and its mask

Change = Callable[[list[Tensor], Tensor], list[Tensor]]


class _TwoConvolutions(nn.Module):
    """Two 3x3 convolutions, each followed by batch norm, where there is one, and ReLU.

    Args:
        in_channels, channels: before and after.
        norm: with batch norms.
    """

    def __init__(self, in_channels: int, channels: int, *, norm: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(in_channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1, self.bn2 = (nn.BatchNorm2d(channels) if norm else nn.Identity() for _ in range(2))

    def convolved(self, features_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(features_BCHW))))))


class DownBlock(_TwoConvolutions):
    """A level of the encoder."""

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H, W]."""
        return self.convolved(features_BCHW)


class ChannelGate(nn.Module):
    """x * sigmoid(W2 ReLU(W1 [avgpool; maxpool])): each channel scaled by what the whole map holds."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(channels // 16, 8)
        self.fc1, self.fc2 = nn.Linear(2 * channels, hidden), nn.Linear(hidden, channels)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """The shape stays."""
        pooled = torch.cat((features_BCHW.mean((2, 3)), features_BCHW.amax((2, 3))), 1)
        return features_BCHW * self.fc2(torch.relu(self.fc1(pooled))).sigmoid()[:, :, None, None]


class Learned(nn.Module):
    """What the attention computes of the foreground: two 3x3 convolutions without bias through half the channels."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        middle = int(channels * ratio)
        self.conv1, self.bn1 = nn.Conv2d(channels, middle, 3, padding=1, bias=False), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = nn.Conv2d(middle, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """The shape stays."""
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(features_BCHW))))))


class SeparatedAttention(nn.Module):
    """Spatially separated attention: M (L(A_f(x)) + A_m(x)) + (1 - M) A_b(x), with a mask M of blurred edge.

    Args:
        channels: of the features.
        ratio: share of the channels in the middle of L.
    """

    mask_blur: Tensor

    def __init__(self, channels: int, *, ratio: float = 0.5) -> None:
        super().__init__()
        self.background_gate, self.foreground_gate, self.mix_gate = (ChannelGate(channels) for _ in range(3))
        self.learn = Learned(channels, ratio)
        self.register_buffer("mask_blur", gaussian_window(7, 1.0).float()[None, None])

    def forward(self, features_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
        """The mask may be of another size than the features."""
        sized = interpolate(mask_B1HW, features_BCHW.shape[-2:], mode="bilinear", align_corners=True)
        mask = conv2d(sized, self.mask_blur.to(sized.dtype), padding=3)
        foreground = self.learn(self.foreground_gate(features_BCHW)) + self.mix_gate(features_BCHW)
        return mask * foreground + (1 - mask) * self.background_gate(features_BCHW)


class UpBlock(_TwoConvolutions):
    """Features of twice the size: upsampled, joined with the encoder's of that size, and convolved.

    Args:
        in_channels: of what comes from below.
        channels: of the encoder's features, and of the answer.
        attention: spatially separated attention on what was joined.
        ratio: see `SeparatedAttention`.
    """

    def __init__(self, in_channels: int, channels: int, *, attention: bool, ratio: float) -> None:
        super().__init__(2 * channels, channels, norm=True)
        self.up = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.att = SeparatedAttention(2 * channels, ratio=ratio) if attention else None

    def forward(self, below_BCHW: Tensor, skip_BCHW: Tensor, mask_B1HW: Tensor) -> Tensor:
        """[B, C', H/2, W/2] and [B, C, H, W] -> [B, C, H, W]."""
        larger = interpolate(below_BCHW, skip_BCHW.shape[-2:], mode="bilinear", align_corners=True)
        features = torch.cat((skip_BCHW, torch.relu(self.up(larger))), 1)
        if self.att is not None:
            features = self.att(features, mask_B1HW)
        return self.convolved(features)


class Output(nn.Module):
    """att * composite + (1 - att) * colours, in normalised values; the colours alone where the picture is not to be blended in."""

    def __init__(self, channels: int, *, fusion: bool) -> None:
        super().__init__()
        self.att = nn.Conv2d(channels, 1, 1) if fusion else None
        self.rgb = nn.Conv2d(channels, 3, 1)

    def forward(self, features_BCHW: Tensor, images_B3HW: Tensor) -> Tensor:
        """[B, 3, H, W]."""
        rgb: Tensor = self.rgb(features_BCHW)
        if self.att is None:
            return rgb
        kept = (_SHARPNESS * self.att(features_BCHW)).sigmoid()
        return kept * images_B3HW + (1 - kept) * rgb


class HarmonizationUNet(nn.Module):
    """The baseline: composite and mask [B, 4, H, W] to the harmonised picture [B, 3, H, W], both in normalised values.

    Sides of any length: they are padded with zeros to a multiple of 2^(depth - 1), and the answer is cropped back.

    Args:
        width: channels of the first level; each further one has twice as many.
        depth: number of levels, of strides 1, 2, 4, ...; with fewer than 4 there is no attention.
        fusion: blend the picture that is read into the answer; without it a network has to paint all of it anew.
        ratio: share of channels in the middle of the attention.

    Raises:
        InputError: a number that cannot be used; in the forward pass inputs without four channels.
    """

    def __init__(self, width: int = 32, depth: int = 4, *, fusion: bool = True, ratio: float = 0.5) -> None:
        super().__init__()
        self.depth = at_least("depth", depth, 2)
        self.channels = [at_least("width", width, 1) << level for level in range(depth)]
        for level, (before, channels) in enumerate(zip([CHANNELS, *self.channels], self.channels, strict=False)):
            self.add_module(f"enc{level}", DownBlock(before, channels, norm=level >= _FROM))
        for step in range(depth - 1):
            below, channels = self.channels[depth - 1 - step], self.channels[depth - 2 - step]
            self.add_module(f"dec{step}", UpBlock(below, channels, attention=step >= _FROM, ratio=ratio))
        self.out = Output(width, fusion=fusion)
        self.apply(_initialised)

    def forward(self, inputs_B4HW: Tensor) -> Tensor:
        """Normalised, not clamped."""
        return self.answer(inputs_B4HW)[0]

    def answer(self, inputs_B4HW: Tensor, change: Change | None = None) -> tuple[Tensor, list[Tensor]]:
        """The picture, and the features that the decoder was given, [B, C_l, H_l, W_l] from stride 1 on.

        Args:
            inputs_B4HW: normalised picture and mask.
            change: (F_0 .. F_(depth - 1), mask [B, 1, H, W]) -> what the decoder is given in their place.
        """
        if inputs_B4HW.ndim != 4 or inputs_B4HW.shape[1] != CHANNELS:
            raise InputError("inputs", f"shape {list(inputs_B4HW.shape)}", "a picture and its mask, [B, 4, H, W]")
        size = (inputs_B4HW.shape[2], inputs_B4HW.shape[3])
        whole = padded(inputs_B4HW, self.multiple)
        features = self.encode(whole)
        if change is not None:
            features = change(features, whole[:, 3:])
        return cropped(self.decode(features, whole), size), features

    @property
    def multiple(self) -> int:
        """What the sides of its inputs are padded to a multiple of: 2^(depth - 1)."""
        return 1 << (self.depth - 1)

    def encode(self, inputs_B4HW: Tensor) -> list[Tensor]:
        """F_0 .. F_(depth - 1): features of each level, before they are pooled; sides are such multiples."""
        found: list[Tensor] = []
        for level in range(self.depth):
            found.append(self.get_submodule(f"enc{level}")(max_pool2d(found[-1], 2) if found else inputs_B4HW))
        return found

    def decode(self, features: list[Tensor], inputs_B4HW: Tensor) -> Tensor:
        """The picture."""
        images, mask = inputs_B4HW[:, :3], inputs_B4HW[:, 3:]
        found = features[-1]
        for step in range(self.depth - 1):
            found = self.get_submodule(f"dec{step}")(found, features[self.depth - 2 - step], mask)
        answer: Tensor = self.out(found, images)
        return answer


def _initialised(module: nn.Module) -> None:
    """Gaussian with std = sqrt(2 / (fan_in + fan_out)) for convolutions and linear layers, bias 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        area = math.prod(module.weight.shape[2:])
        nn.init.normal_(module.weight, std=math.sqrt(2 / (area * (module.weight.shape[0] + module.weight.shape[1]))))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
