"""Student A: a mapper that edits a generator's latent codes (the paper's students; StyleCLIP's networks).

    w_hat = w + 0.1 M(w)      x = G(w_hat)

Only the mapper M is trained. The generator G is frozen, but the gradient goes through it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, linear

from stillroom.errors import InputError

LATENT_WEIGHT = 0.1


class PixelNorm(nn.Module):
    """x / sqrt(mean(x^2 over dimension 1) + 1e-8).

    Of codes [B, n, d] dimension 1 is the layers', not the features': a quirk of the released code, kept by default.
    """

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, codes: Tensor) -> Tensor:
        """Codes of any shape with that dimension."""
        return codes * (codes.square().mean(self.dim, keepdim=True) + self.eps).rsqrt()


class EqualisedLinear(nn.Module):
    """A linear layer whose stored weights are divided by `rate` and multiplied again at use, then leaky ReLU times `gain`.

    Args:
        width: d, in and out.
        rate: lr_mul; the stored weight starts from N(0, 1) / rate and counts as weight * rate / sqrt(d), the bias as bias * rate.
        slope: of the leaky ReLU.
        gain: behind it.
    """

    def __init__(self, width: int, *, rate: float = 0.01, slope: float = 0.2, gain: float = math.sqrt(2)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / rate)
        self.bias = nn.Parameter(torch.zeros(width))
        self.rate, self.slope, self.gain = rate, slope, gain

    def forward(self, codes: Tensor) -> Tensor:
        """Codes [..., d]."""
        weight = self.weight * (self.rate / math.sqrt(self.weight.shape[1]))
        return leaky_relu(linear(codes, weight, self.bias * self.rate), self.slope) * self.gain


class Mapper(nn.Module):
    """PixelNorm and four equalised linear layers.

    Args:
        width: d.
        norm_dim, norm_eps: of the `PixelNorm`.
        options: those of `EqualisedLinear`.
    """

    def __init__(self, width: int, *, norm_dim: int = 1, norm_eps: float = 1e-8, **options: float) -> None:
        super().__init__()
        self.mapping = nn.Sequential(PixelNorm(norm_dim, norm_eps), *(EqualisedLinear(width, **options) for _ in range(4)))

    def forward(self, codes: Tensor) -> Tensor:
        """The offset of codes [B, d] or [B, n, d], of their shape, before the factor 0.1."""
        offset: Tensor = self.mapping(codes)
        return offset


class LevelsMapper(nn.Module):
    """A mapper of its own for the coarse, the medium and the fine layers of W+ codes; a disabled group's offset is zero.

    Args:
        width: d.
        levels: which of coarse, medium and fine are enabled. A change of hair colour wants the last two, one of pose the first [inferred].
        division: the layers where medium and fine begin.
        options: those of `Mapper`.
    """

    def __init__(
        self,
        width: int,
        *,
        levels: Sequence[bool] = (False, True, True),
        division: tuple[int, int] = (4, 8),
        norm_dim: int = 1,
        norm_eps: float = 1e-8,
        **options: float,
    ) -> None:
        super().__init__()
        if not any(levels):
            raise InputError("levels", list(levels), "at least one of coarse, medium and fine enabled")
        self.division = division
        made = [Mapper(width, norm_dim=norm_dim, norm_eps=norm_eps, **options) if enabled else None for enabled in levels]
        self.coarse_mapping, self.medium_mapping, self.fine_mapping = made

    def forward(self, codes_BND: Tensor) -> Tensor:
        """The offset of codes [B, n, d], of their shape."""
        medium, fine = self.division
        parts = codes_BND[:, :medium], codes_BND[:, medium:fine], codes_BND[:, fine:]
        mappers = self.coarse_mapping, self.medium_mapping, self.fine_mapping
        offsets = [torch.zeros_like(part) if mapper is None else mapper(part) for mapper, part in zip(mappers, parts, strict=True)]
        return torch.cat(offsets, 1)


class StyleMapper(nn.Module):
    """A mapper for each vector of S-space codes.

    Args:
        widths: d_k of each style vector.
        skip: vectors that stay as they are, such as those of the layers that turn features into colours.
        options: those of `Mapper`.
    """

    def __init__(self, widths: Sequence[int], *, skip: Sequence[int] = (), **options: Any) -> None:
        super().__init__()
        self.skip = frozenset(skip)
        self.mappers = nn.ModuleDict({str(k): Mapper(width, **options) for k, width in enumerate(widths) if k not in self.skip})

    def forward(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """The offsets of style vectors [B, d_k] each."""
        return [torch.zeros_like(code) if k in self.skip else self.mappers[str(k)](code) for k, code in enumerate(codes)]


Codes = Tensor | Sequence[Tensor]


def edited(before: Codes, offset: Codes, latent_weight: float = LATENT_WEIGHT) -> Codes:
    """The edited code: w + latent_weight * M(w), of a W+ tensor or of each style vector."""
    if isinstance(before, Tensor):
        assert isinstance(offset, Tensor)
        return before + latent_weight * offset
    return [code + latent_weight * change for code, change in zip(before, offset, strict=True)]


def code_l2(before: Codes, after: Codes, weight: float = 10.0) -> Tensor:
    """L_2: weight times the mean squared difference of W+ codes; of style vectors, times the sum over them of each one's mean."""
    pairs = [(before, after)] if isinstance(before, Tensor) and isinstance(after, Tensor) else list(zip(before, after, strict=True))
    return weight * torch.stack([(changed - code).square().mean() for code, changed in pairs]).sum()


class LatentEditor(nn.Module):
    """The student of a generator's codes: ``student(codes)`` is the edited image, in one pass.

    Args:
        mapper: `LevelsMapper`, `Mapper` or `StyleMapper`.
        generator: from codes to images [B, 3, H, W]; frozen here, and kept in eval mode.
        latent_weight: the factor of the offset.
    """

    def __init__(self, mapper: nn.Module, generator: nn.Module, *, latent_weight: float = LATENT_WEIGHT) -> None:
        super().__init__()
        self.mapper, self.latent_weight = mapper, latent_weight
        self.generator = generator.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LatentEditor:
        """The mapper's mode; the generator's stays."""
        super().train(mode)
        self.generator.eval()
        return self

    def both_codes(self, codes: Codes) -> tuple[Codes, Codes]:
        """The codes before and after the edit."""
        return codes, edited(codes, self.mapper(codes), self.latent_weight)

    def unedited(self, codes: Codes) -> Tensor:
        """x0 = G(w), without gradient."""
        with torch.no_grad():
            image: Tensor = self.generator(codes)
        return image

    def forward(self, codes: Codes) -> Tensor:
        """x = G(w + 0.1 M(w))."""
        image: Tensor = self.generator(self.both_codes(codes)[1])
        return image
