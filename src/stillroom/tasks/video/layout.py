"""STLT: a transformer over object boxes, first within a frame and then over the frames of a clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

_CATEGORIES, _SIDES, _STATES = 3, 3, 6
BOXES = 14  # of a frame
EMPTY_BOX = (0.0, 0.0, 1e-9, 1e-9)


class Boxes(NamedTuple):
    """What was detected in every frame, padded to N boxes.

    Args:
        categories: 0 padding, 1 object, 2 hand: int64 [B, F, N].
        boxes: x1, y1, x2, y2 as shares of width and height: [B, F, N, 4]; padding is `EMPTY_BOX`.
        scores: of the detector, [B, F, N].
        sides: of hands: 0 none, 1 left, 2 right: int64 [B, F, N].
        states: of hands: 0 none, 1 to 5 what they touch: int64 [B, F, N].
    """

    categories: Tensor
    boxes: Tensor
    scores: Tensor
    sides: Tensor
    states: Tensor

    def packed(self) -> Tensor:
        """All in one tensor, float32 [B, F, N, 8], in this order."""
        parts = [self.categories[..., None], self.boxes, self.scores[..., None], self.sides[..., None], self.states[..., None]]
        return torch.cat([part.float() for part in parts], -1)

    @classmethod
    def unpacked(cls, packed: Tensor) -> Boxes:
        """The inverse."""
        return cls(packed[..., 0].long(), packed[..., 1:5], packed[..., 5], packed[..., 6].long(), packed[..., 7].long())


class _BoxEmbeddings(nn.Module):
    def __init__(self, width: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.category_embeddings = nn.Embedding(_CATEGORIES, width, padding_idx=0)
        self.box_embedding = nn.Linear(4, width)
        self.score_embedding = nn.Linear(1, width)
        self.side_embedding = nn.Embedding(_SIDES, width, padding_idx=0)
        self.state_embedding = nn.Embedding(_STATES, width, padding_idx=0)
        self.layer_norm = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, seen: Boxes) -> Tensor:
        token = self.category_embeddings(seen.categories) + self.box_embedding(seen.boxes)
        token = token + self.score_embedding(seen.scores[..., None]) + self.side_embedding(seen.sides) + self.state_embedding(seen.states)
        embedded: Tensor = self.dropout(self.layer_norm(token))
        return embedded


def _encoder(width: int, heads: int, layers: int, dropout: float, eps: float) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", eps, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class _LayoutEmbedding(nn.Module):
    """A vector for each frame: the class token, in front of the boxes, after the spatial layers."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float, eps: tuple[float, float]) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.category_box_embeddings = _BoxEmbeddings(width, dropout, eps[0])
        self.transformer = _encoder(width, heads, layers, dropout, eps[1])

    def forward(self, seen: Boxes) -> Tensor:
        batch, frames = seen.categories.shape[:2]
        tokens = self.category_box_embeddings(seen).flatten(0, 1)
        tokens = torch.cat([self.cls_token.expand(batch * frames, -1, -1), tokens], 1)
        padded = (seen.categories == 0).flatten(0, 1)
        padded = torch.cat([padded.new_zeros(batch * frames, 1), padded], 1)  # the class token is seen in a frame without boxes, too
        vectors: Tensor = self.transformer(tokens, src_key_padding_mask=padded)[:, 0]
        return vectors.unflatten(0, (batch, frames))


class _TemporalTransformer(nn.Module):
    """The class token, behind the frames, after the temporal layers, each of which sees what came before."""

    def __init__(self, width: int, heads: int, layers: tuple[int, int], frames: int, dropout: float, eps: tuple[float, float]) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.layout_embedding = _LayoutEmbedding(width, heads, layers[0], dropout, eps)
        self.position_embeddings = nn.Embedding(frames, width)
        self.layer_norm = nn.LayerNorm(width, eps[0])
        self.dropout = nn.Dropout(dropout)
        self.transformer = _encoder(width, heads, layers[1], dropout, eps[1])

    def forward(self, seen: Boxes) -> Tensor:
        vectors = self.layout_embedding(seen) + self.position_embeddings.weight[: seen.categories.shape[1]]
        vectors = self.dropout(self.layer_norm(vectors))
        vectors = torch.cat([vectors, self.cls_token.expand(len(vectors), -1, -1)], 1)
        count = vectors.shape[1]
        later = torch.ones(count, count, dtype=torch.bool, device=vectors.device).triu(1)
        answered: Tensor = self.transformer(vectors, mask=later)[:, -1]
        return answered


class STLT(nn.Module):
    """Spatio-temporal layout transformer: from boxes [B, F, N, 8] (`Boxes.packed`) to logits [B, C_a] by head.

    Args:
        heads: classes by head.
        width: of tokens.
        attention_heads: of every layer.
        layers: spatial and temporal.
        frames: most frames of a clip.
        dropout: of embeddings and layers.
        eps: of the layer norms of embeddings, and of layers.

    Source: sections "Teachers" of the specification; parameters are named as in the released code.
    """

    def __init__(
        self,
        heads: Mapping[str, int],
        width: int = 768,
        attention_heads: int = 8,
        layers: tuple[int, int] = (6, 6),
        frames: int = 16,
        dropout: float = 0.1,
        eps: tuple[float, float] = (0.1, 1e-5),
    ) -> None:
        super().__init__()
        self.temporal_transformer = _TemporalTransformer(width, attention_heads, layers, frames, dropout, eps)
        self.classifiers = nn.ModuleDict({head: nn.Linear(width, classes) for head, classes in heads.items()})

    def forward(self, boxes_BFN8: Tensor) -> dict[str, Tensor]:
        """Logits by head."""
        vectors = self.temporal_transformer(Boxes.unpacked(boxes_BFN8))
        return {head: classifier(vectors) for head, classifier in self.classifiers.items()}
