"""SAM, spatial alignment via matching: what was heard becomes a map with the layout of what is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stillroom.errors import InputError, at_least, positive
from stillroom.losses.precision import at_least_float32

_SCORES = 2**24  # scores that are in memory at a time
_SPREAD = 0.02  # of the embeddings at the beginning


class Matched(NamedTuple):
    """What a block made of audio features.

    Attributes:
        output_BVC: p_bar, the map.
        pooled_BVC: p_hat, before it was refined; None without embeddings to choose from.
        similarity_BKV: T, the best match of each embedding at each position; None likewise.
    """

    output_BVC: Tensor
    pooled_BVC: Tensor | None
    similarity_BKV: Tensor | None


class SpatialAlignment(nn.Module):
    """A SAM block: audio features [B, A, C] to a map [B, V, C].

        T^k(l) = scale max_j p^k(l)^T W a(j),    pi^k(l) = softmax_k T^k(l),    p_hat(l) = sum_k pi^k(l) p^k(l)
        p_bar = MultiHead(query = p_hat, key = a, value = a) + p_hat

    Embeddings p are drawn from N(0, 0.02^2), W by Xavier's rule [inferred]. Scores and the softmax are in float32 at least. Any A will do.

    Args:
        channels: C.
        grid: the map's sides, whose product is V.
        embeddings: K.
        heads: of the attention.
        scale: of the scores.
        select: choose among the embeddings; without, the only one is the query ("attention only").
        refine: by attention over the audio features; without, p_hat is the answer ("embeddings only").
        spatial: an embedding is a vector for each position, or else one for all.

    Raises:
        InputError: K below 1 or above 1 without `select`, heads that do not divide C, or a block that would do nothing.
    """

    def __init__(
        self,
        channels: int,
        grid: Sequence[int],
        *,
        embeddings: int = 64,
        heads: int = 8,
        scale: float = 1.0,
        select: bool = True,
        refine: bool = True,
        spatial: bool = True,
    ) -> None:
        super().__init__()
        at_least("embeddings", embeddings, 1)
        if channels % at_least("heads", heads, 1):
            raise InputError("heads", heads, f"a divisor of the {channels} channels of the features")
        if not select and (embeddings > 1 or not refine):
            raise InputError("select", "no choice", "one embedding, which attention refines")
        self.grid, self.positions = tuple(grid), math.prod(grid)
        self.scale, self.select = positive("scale", scale), select
        self.embeddings = nn.Parameter(_SPREAD * torch.randn(embeddings, self.positions if spatial else 1, channels))
        if select:
            self.projection = nn.Parameter(nn.init.xavier_uniform_(torch.empty(channels, channels)))
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True) if refine else None

    def forward(self, audio_BAC: Tensor) -> Tensor:
        """The map, [B, V, C]."""
        return self.match(audio_BAC).output_BVC

    def match(self, audio_BAC: Tensor) -> Matched:
        """The map, and how it came about."""
        embeddings_KVC = self.embeddings.expand(-1, self.positions, -1)
        similarity = pooled = None
        if self.select:
            similarity = self.similarity(audio_BAC)
            weights_BKV = similarity.softmax(1)
            pooled = torch.einsum("bkv,kvc->bvc", weights_BKV, at_least_float32(embeddings_KVC)).to(self.embeddings.dtype)
        query_BVC = embeddings_KVC.expand(len(audio_BAC), -1, -1) if pooled is None else pooled
        if self.attention is None:
            return Matched(query_BVC, pooled, similarity)
        attended_BVC, _ = self.attention(query_BVC, audio_BAC, audio_BAC, need_weights=False)
        return Matched(attended_BVC + query_BVC, pooled, similarity)

    def similarity(self, audio_BAC: Tensor) -> Tensor:
        """T, [B, K, V] (V = 1 for embeddings that are the same everywhere).

        The scores [B, K, V, A] are made for some embeddings at a time; what a backward pass keeps of them is where the largest were.
        """
        with torch.autocast(audio_BAC.device.type, enabled=False):
            audio, embeddings_KVC = at_least_float32(audio_BAC), at_least_float32(self.embeddings)
            projected_BAC = audio @ at_least_float32(self.projection).T
            count, places = embeddings_KVC.shape[:2]
            together = count
            if not torch.compiler.is_exporting():
                together = max(1, _SCORES // max(1, projected_BAC.shape[0] * projected_BAC.shape[1] * places))
            found = [torch.einsum("kvc,bac->bkva", part_KVC, projected_BAC).max(-1).values for part_KVC in embeddings_KVC.split(together)]
            return self.scale * torch.cat(found, 1)
