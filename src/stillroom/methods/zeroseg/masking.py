"""The masked autoencoder: which patches are seen, and how the others are guessed.

L_rec = mean over removed patches of the mean squared error with their pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.losses.precision import in_one_type
from stillroom.methods.zeroseg.grouping import Block

_NORM_EPS = 1e-6


class Mask(NamedTuple):
    """Which patches of each image are seen.

    Attributes:
        keep: int64 [B, N_v], numbers of those that are, in the order in which they are encoded.
        restore: int64 [B, N], where each patch stands among those that are kept and then those that are removed.
        removed: float32 [B, N], 1 for removed.
    """

    keep: Tensor
    restore: Tensor
    removed: Tensor

    def visible(self, tokens_BNC: Tensor) -> Tensor:
        """The tokens of the patches that are seen, [B, N_v, C]."""
        return tokens_BNC.gather(1, self.keep[:, :, None].expand(-1, -1, tokens_BNC.shape[2]))


def visible_patches(patches: int, ratio: float) -> int:
    """N_v = floor(N (1 - rho)), as the released masked autoencoder computes it.

    Raises:
        InputError: a ratio outside [0, 1), or one that leaves no patch.
    """
    if not 0 <= ratio < 1:
        raise InputError("mask_ratio", ratio, "a number from 0 and below 1")
    kept = int(patches * (1 - ratio))
    if kept < 1:
        raise InputError("mask_ratio", ratio, f"a ratio that leaves one of {patches} patches at least")
    return kept


def random_mask(noise_BN: Tensor, ratio: float) -> Mask:
    """The patches with the smallest noise are seen.

    Raises:
        InputError: see `visible_patches`.
    """
    kept = visible_patches(noise_BN.shape[1], ratio)
    order_BN = noise_BN.argsort(1)
    restore_BN = order_BN.argsort(1)
    return Mask(order_BN[:, :kept], restore_BN, (restore_BN >= kept).float())


def patchified(images_BCHW: Tensor, patch: int) -> Tensor:
    """[B, N, patch * patch * C]: of each patch its rows, of these the columns, of these the channels."""
    cut = images_BCHW.unflatten(2, (-1, patch)).unflatten(4, (-1, patch))  # [B, C, rows, patch, columns, patch]
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def reconstruction_targets(images_BCHW: Tensor, patch: int, *, normalise_pixels: bool = False) -> Tensor:
    """What the removed patches are guessed against, [B, N, patch * patch * C]; optionally each patch less its mean, over its deviation."""
    target = patchified(images_BCHW, patch)
    if not normalise_pixels:
        return target
    variance, mean = torch.var_mean(target, -1, keepdim=True)
    return (target - mean) / (variance + 1e-6).sqrt()


def reconstruction_loss(predicted_BND: Tensor, target_BND: Tensor, removed_BN: Tensor) -> Tensor:
    """L_rec, the mean over the removed patches; 0 where none is."""
    predicted, target = in_one_type(predicted_BND, target_BND)
    each_BN = (predicted - target).square().mean(-1)
    return (each_BN * removed_BN).sum() / removed_BN.sum().clamp_min(1)


def positions(height: int, width: int, channels: int) -> Tensor:
    """Sine-cosine positions of a grid, float32 [height * width, channels]: half of the channels from the column, half from the row.

    Of each axis the sines and then the cosines of position / 10000^(2k / (channels / 2)).

    Raises:
        InputError: channels that cannot be divided by four.
    """
    if channels % 4:
        raise InputError("width", channels, "a multiple of 4: sines and cosines of two axes")
    rates = 10000.0 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels / 4))

    def axis(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64)[:, None] * rates
        return torch.cat((angles.sin(), angles.cos()), 1)

    columns = axis(width)[None].expand(height, -1, -1)
    rows = axis(height)[:, None].expand(-1, width, -1)
    return torch.cat((columns, rows), -1).flatten(0, 1).float()


def _initialise(network: nn.Module) -> None:
    """Linear maps by Xavier's uniform rule, as the released masked autoencoder has them; biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


class _Embedding(nn.Module):
    """Patches to tokens."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)
        nn.init.xavier_uniform_(self.proj.weight.flatten(1))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, images_B3HW: Tensor) -> Tensor:
        tokens_BNC: Tensor = self.proj(images_B3HW).flatten(2).mT
        return tokens_BNC


class Encoder(nn.Module):
    """A plain ViT over the patches that are seen: embedding, positions, a class token, pre-norm blocks, a norm.

    Its parameters bear the names of the released masked autoencoder, whose weights may be its start.

    Args:
        width: C.
        depth, heads: of its blocks.
        patch: side of a patch in pixels.
    """

    def __init__(self, width: int, depth: int, heads: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, eps=_NORM_EPS) for _ in range(depth))
        self.norm = nn.LayerNorm(width, _NORM_EPS)
        _initialise(self)
        self.patch_embed = _Embedding(width, patch)
        nn.init.normal_(self.cls_token, std=0.02)

    def grid(self, images_BCHW: Tensor) -> tuple[int, int]:
        """Patches down and across; what is left over at the bottom and at the right is not seen."""
        return images_BCHW.shape[2] // self.patch, images_BCHW.shape[3] // self.patch

    def forward(self, images_B3HW: Tensor, mask: Mask | None = None) -> tuple[Tensor, Tensor]:
        """The class token [B, 1, C], and the tokens of the patches that are seen [B, N_v, C]; of all without a mask."""
        x_BNC = self.patch_embed(images_B3HW)
        x_BNC = x_BNC + positions(*self.grid(images_B3HW), x_BNC.shape[-1]).to(x_BNC)
        if mask is not None:
            x_BNC = mask.visible(x_BNC)
        x_BNC = torch.cat((self.cls_token.expand(x_BNC.shape[0], -1, -1), x_BNC), 1)
        for block in self.blocks:
            x_BNC = block(x_BNC)
        x_BNC = self.norm(x_BNC)
        return x_BNC[:, :1], x_BNC[:, 1:]


class Reconstruction(nn.Module):
    """Guesses the pixels of all patches of those that were seen.

    Args:
        encoded: C of the encoder.
        width, depth, heads: its own.
        patch: side of a patch in pixels.
    """

    def __init__(self, encoded: int, width: int, depth: int, heads: int, patch: int) -> None:
        super().__init__()
        self.embed, self.mask_token = nn.Linear(encoded, width), nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, eps=_NORM_EPS) for _ in range(depth))
        self.norm, self.pred = nn.LayerNorm(width, _NORM_EPS), nn.Linear(width, 3 * patch**2)
        _initialise(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, cls_B1C: Tensor, tokens_BVC: Tensor, mask: Mask, grid: tuple[int, int]) -> Tensor:
        """[B, N, patch * patch * 3]."""
        cls_B1C, seen = self.embed(torch.cat((cls_B1C, tokens_BVC), 1)).tensor_split([1], 1)
        missing = mask.restore.shape[1] - seen.shape[1]
        x_BNC = torch.cat((seen, self.mask_token.to(seen).expand(seen.shape[0], missing, -1)), 1)
        x_BNC = x_BNC.gather(1, mask.restore[:, :, None].expand(-1, -1, x_BNC.shape[2]))
        x_BNC = torch.cat((cls_B1C, x_BNC + positions(*grid, x_BNC.shape[-1]).to(x_BNC)), 1)
        for block in self.blocks:
            x_BNC = block(x_BNC)
        found: Tensor = self.pred(self.norm(x_BNC))[:, 1:]
        return found
