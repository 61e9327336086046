"""The projection head, and how crops of several sizes go through a backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from stillroom.errors import InputError, at_least


class Prototypes(nn.Module):
    """Linear map without bias whose row j is ``gain_j v_j / |v_j|``: of unit rows' cosine with K prototypes, where the gain stays 1.

    Args:
        width: of the rows.
        count: K.
        frozen_gain: whether the gain stays 1.
    """

    def __init__(self, width: int, count: int, *, frozen_gain: bool = True) -> None:
        super().__init__()
        self.direction = nn.Parameter(nn.Linear(width, count, bias=False).weight.detach())
        self.gain = nn.Parameter(torch.ones(count, 1), requires_grad=not frozen_gain)

    def forward(self, rows: Tensor) -> Tensor:
        """[R, width] -> logits [R, K]."""
        return linear(rows, self.gain * normalize(self.direction, dim=1))


class ProjectionHead(nn.Module):
    """MLP with GELU to a bottleneck, brought to unit length there, then prototypes: [R, D] -> logits [R, K] in [-1, 1].

    Args:
        width: D.
        prototypes: K.
        hidden: width of the layers between.
        bottleneck: width of the rows that meet the prototypes.
        layers: of the MLP.
        batch_norm: whether batch norms stand between them.
        freeze_gain: whether the prototypes' lengths stay 1 (`norm_last_layer` of the paper's code).

    Raises:
        InputError: no layer.

    Source: specification, "Projection head".
    """

    def __init__(
        self,
        width: int,
        prototypes: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        batch_norm: bool = False,
        freeze_gain: bool = True,
    ) -> None:
        super().__init__()
        widths = [width, *[hidden] * (at_least("head_layers", layers, 1) - 1), bottleneck]
        mlp: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths)):
            if number:
                mlp += [*([nn.BatchNorm1d(before)] if batch_norm else []), nn.GELU()]
            mlp.append(nn.Linear(before, after))
        self.mlp = nn.Sequential(*mlp)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = Prototypes(bottleneck, prototypes, frozen_gain=freeze_gain)

    def forward(self, features: Tensor) -> Tensor:
        """The logits of features [R, D]."""
        return self.last_layer(normalize(self.mlp(features), dim=-1, eps=1e-12))


def through(backbone: Callable[[Tensor], Tensor], crops: Sequence[Tensor]) -> Tensor:
    """Features of all crops [B, C, S, S], crop 1 of all images first, then crop 2, ...; neighbours of equal width in one pass.

    Raises:
        InputError: no crop.

    Source: specification, "Multi-crop wrapper".
    """
    if not crops:
        raise InputError("crops", "none", "at least one")
    groups = [list(group) for _, group in groupby(crops, key=lambda crop: crop.shape[-1])]
    return torch.cat([backbone(torch.cat(group)) for group in groups])
