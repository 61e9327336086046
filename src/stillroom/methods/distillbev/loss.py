"""What is imitated at a tap: attention maps of both networks, and the four terms of the loss.

Source: the specification's sections "Spatial attention" and "Loss at a tap"; equal to the released code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from stillroom.errors import at_least_zero, one_of, positive
from stillroom.methods.distillbev.regions import Regions

Attention = Literal["teacher_student", "teacher", "none"]


@dataclass(frozen=True)
class Weights:
    """What the terms count: w_fg, w_bg, w_fp, w_att and w_ch; the paper's for BEVDepth."""

    foreground: float = 6e-3
    background: float = 4e-2
    mistaken: float = 6e-2
    attention: float = 2.5e-3
    channels: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            at_least_zero(name, value)


def spatial_attention(features_BCYX: Tensor, temperature: float = 0.5) -> Tensor:
    """N(X) [B, 1, ny, nx], of mean 1: a softmax over all cells of the mean size of a cell's features, times their number; no gradient."""
    mean_BN = features_BCYX.detach().float().abs().mean(1).flatten(1)
    return (mean_BN.shape[1] * (mean_BN / temperature).softmax(1)).view(len(mean_BN), 1, *features_BCYX.shape[-2:])


def channel_attention(features_BCYX: Tensor, temperature: float = 0.5) -> Tensor:
    """A_c [B, C, 1, 1], of mean 1, likewise over channels."""
    mean_BC = features_BCYX.detach().float().abs().mean((2, 3))
    return (mean_BC.shape[1] * (mean_BC / temperature).softmax(1))[:, :, None, None]


class TapLoss(nn.Module):
    """The terms at one tap: foreground, background, mistaken places, attention.

        L_fg = w_fg / B sum D M_F A         L_bg = w_bg / B sum D M_B A         D = (f(S) - T)^2
        L_fp = w_fp / B sum D M_E A A_c     L_att = w_att / B sum |mean_c T - conv(mean_c f(S))|

    Sums run over samples, channels and cells. Gradients reach f(S) through D and L_att alone.

    Args:
        weights: of the terms.
        attention: A: the mean of both networks' attention, the teacher's, or ``none``: 1 everywhere.
        temperature, channel_temperature: tau, tau_c.
        channel_mask: multiply the foreground's and the background's terms by A_c as well.

    Attributes:
        convolution: 3x3, from one channel to one; learns with the student.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        attention: Attention = "teacher_student",
        temperature: float = 0.5,
        channel_temperature: float = 0.5,
        channel_mask: bool = False,
    ) -> None:
        super().__init__()
        self.weights, self.attention, self.channel_mask = weights, one_of("attention", attention, get_args(Attention)), channel_mask
        self.temperature = positive("temperature", temperature)
        self.channel_temperature = positive("channel_temperature", channel_temperature)
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, adapted_BCYX: Tensor, teacher_BCYX: Tensor, regions: Regions) -> dict[str, Tensor]:
        """``foreground``, ``background``, ``attention``; ``mistaken`` where the regions have some; ``channels`` if it has a weight.

        Args:
            adapted_BCYX: f(S).
            teacher_BCYX: T, of the same shape; no gradient reaches it.
            regions: of the tap.
        """
        with torch.autocast(adapted_BCYX.device.type, enabled=False):
            student, teacher = adapted_BCYX.float(), teacher_BCYX.detach().float()
            count, w = len(student), self.weights
            attention: Tensor | float = 1.0
            if self.attention != "none":
                attention = spatial_attention(teacher, self.temperature)
            if self.attention == "teacher_student":
                attention = (attention + spatial_attention(student, self.temperature)) / 2
            channels = channel_attention(teacher, self.channel_temperature)
            foreground, background, mistaken = regions.weights()
            apart = (student - teacher).square()
            each = (apart * channels if self.channel_mask else apart).sum(1, keepdim=True) * attention
            learned = self.convolution(student.mean(1, keepdim=True))
            terms = {
                "foreground": w.foreground / count * (each * foreground).sum(),
                "background": w.background / count * (each * background).sum(),
                "attention": w.attention / count * (teacher.mean(1, keepdim=True) - learned).abs().sum(),
            }
            if mistaken is not None:
                terms["mistaken"] = w.mistaken / count * ((apart * channels).sum(1, keepdim=True) * attention * mistaken).sum()
            if w.channels:
                terms["channels"] = w.channels / count * (teacher.mean((2, 3)) - student.mean((2, 3))).abs().sum()
            return terms


class Upsampled(nn.Sequential):
    """The adapter ``up3(k)``: bilinear by k, corners aligned, then three 1x1 convolutions with batch norm and ReLU, C_s, C_s, C_s, C_t.

    Args:
        student, teacher: channels.
        factor: k.
    """

    def __init__(self, student: int, teacher: int, factor: int) -> None:
        layers: list[nn.Module] = [nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=True)]
        for wide in (student, student, teacher):
            layers += [nn.Conv2d(student, wide, 1), nn.BatchNorm2d(wide), nn.ReLU()]
        super().__init__(*layers)
