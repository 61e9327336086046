"""Student B: a small network from a picture to the edited picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

CELL = 2  # pictures' sides are multiples of it
_GROUPS = 8
_LARGEST = 2.0  # change of a value, in [-1, 1]


class Editor(nn.Module):
    """x = clip(x0 + f(x0)), f = 2 tanh(...): starts as the identity, since its last layer starts from zero.

    conv3x3 - ReLU, three times conv3x3 - GroupNorm - ReLU, the second of them at half the resolution and joined by a skip, conv3x3. The
    clamp lets gradients through where it cuts [inferred architecture].

    Args:
        width: channels.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU())
        self.fine = _layer(width)
        self.coarse = nn.Sequential(nn.AvgPool2d(CELL), _layer(width))
        self.joined = _layer(width, 2 * width)
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def unedited(self, images: Tensor) -> Tensor:
        """x0: the pictures themselves."""
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1], of sides that are multiples of `CELL`, edited; in [-1, 1]."""
        x = self.fine(self.first(images))
        coarse = interpolate(self.coarse(x), scale_factor=float(CELL), mode="nearest")
        change = _LARGEST * self.last(self.joined(torch.cat((x, coarse), 1))).tanh()
        edited = images + change
        return edited + (edited.clamp(-1, 1) - edited).detach()


def _layer(width: int, inside: int | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside or width, width, 3, padding=1), nn.GroupNorm(_GROUPS, width), nn.ReLU())
