"""ML-Decoder: from a feature map to one embedding and one logit for each label; and a backbone that ends in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import InputError, at_least

EMBEDDINGS = "head.decoder"  # module path of the label-wise embeddings in a `MultiLabelNetwork`
_IN_JSON = {"attention_heads": "heads"}  # names of students on people's disks


@dataclass(frozen=True)
class HeadOptions:
    """The sizes of an ML-Decoder.

    Args:
        embed_dim: D, length of a label's embedding; a multiple of `attention_heads`.
        attention_heads: of the cross-attention.
        feedforward: width of the layer behind it.
        dropout: share of activations and attention weights dropped in training, in [0, 1).
        groups: Q, number of queries; None for one for each label. With fewer, a query answers for several labels.
    """

    embed_dim: int = 768
    attention_heads: int = 8
    feedforward: int = 2048
    dropout: float = 0.1
    groups: int | None = None

    def __post_init__(self) -> None:
        for name in ("embed_dim", "attention_heads", "feedforward"):
            at_least(name, getattr(self, name), 1)
        if self.embed_dim % self.attention_heads:
            raise InputError("embed_dim", self.embed_dim, f"a multiple of the number of heads, {self.attention_heads}")
        if not 0 <= self.dropout < 1:
            raise InputError("dropout", self.dropout, "a number from 0 and below 1")
        if self.groups is not None:
            at_least("groups", self.groups, 1)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as in `student.json`; `from_json` is the inverse."""
        return {_IN_JSON.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HeadOptions:
        """The inverse of `to_json`.

        Raises:
            TypeError: a name that is none of these.
        """
        known = {in_json: name for name, in_json in _IN_JSON.items()}
        return cls(**{known.get(name, name): value for name, value in data.items()})


class LabelDecoder(nn.Module):
    """Feature maps [B, C, h, w] -> label-wise embeddings [B, Q, D].

    One decoder layer with cross-attention and no self-attention. Its queries are random vectors that are never trained; positions are not
    encoded.

    Args:
        in_features: C.
        queries: Q.
        options: the other sizes.
    """

    queries: Tensor

    def __init__(self, in_features: int, queries: int, options: HeadOptions) -> None:
        super().__init__()
        dim = options.embed_dim
        self.embed = nn.Linear(in_features, dim)
        self.register_buffer("queries", torch.randn(queries, dim))
        self.attention = nn.MultiheadAttention(dim, options.attention_heads, dropout=options.dropout, batch_first=True)
        self.linear1 = nn.Linear(dim, options.feedforward)
        self.linear2 = nn.Linear(options.feedforward, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim, eps=1e-5) for _ in range(3))
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, map_BChw: Tensor) -> Tensor:
        """Steps 1 to 5 of the head; the last sum, normalised, is the embedding."""
        memory_BND = self.embed(map_BChw.flatten(2).transpose(1, 2)).relu()
        queries_BQD = self.queries.expand(map_BChw.shape[0], -1, -1)
        x_BQD = self.norm1(queries_BQD + self.dropout(queries_BQD))
        attended_BQD, _ = self.attention(x_BQD, memory_BND, memory_BND, need_weights=False)
        x_BQD = self.norm2(x_BQD + self.dropout(attended_BQD))
        return self.norm3(x_BQD + self.dropout(self.linear2(self.dropout(self.linear1(x_BQD).relu()))))


class GroupLinear(nn.Module):
    """Embeddings [B, Q, D] -> logits [B, K]: each query has its own matrix, for r = ceil(K / Q) labels.

    Args:
        queries: Q.
        embed_dim: D.
        num_classes: K >= Q; of the Q r products the first K are kept.
    """

    def __init__(self, queries: int, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        if not queries <= num_classes:
            raise InputError("groups", queries, f"at most the number of labels, {num_classes}")
        self.num_classes = num_classes
        # The released code has floor(K / Q + 0.999), which differs for more than a thousand queries only.
        self.weight = nn.Parameter(torch.empty(queries, embed_dim, -(-num_classes // queries)))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.xavier_normal_(self.weight)

    def forward(self, embeddings_BQD: Tensor) -> Tensor:
        """Step 6 of the head; for Q = K it is <x_c, w_c> + b_c."""
        products_BQR = torch.einsum("bqd,qdr->bqr", embeddings_BQD, self.weight)
        return products_BQR.flatten(1)[:, : self.num_classes] + self.bias


class MLDecoder(nn.Module):
    """Feature maps [B, C, h, w] -> logits [B, K]; its part `decoder` answers with the label-wise embeddings [B, Q, D].

    Args:
        in_features: C.
        num_classes: K.
        options: the other sizes.

    Raises:
        InputError: more groups than labels.

    Source: Ridnik et al. 2023 (ML-Decoder), as the released code of L2D has it.
    """

    def __init__(self, in_features: int, num_classes: int, options: HeadOptions | None = None) -> None:
        super().__init__()
        self.options = options or HeadOptions()
        queries = num_classes if self.options.groups is None else self.options.groups
        self.classifier = GroupLinear(queries, self.options.embed_dim, num_classes)
        self.decoder = LabelDecoder(in_features, queries, self.options)

    def forward(self, map_BChw: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, K]."""
        logits: Tensor = self.classifier(self.decoder(map_BChw))
        return logits


class MultiLabelNetwork(nn.Module):
    """Images [B, 3, H, W] -> logits [B, K].

    Args:
        backbone: images -> feature maps [B, C, h, w].
        head: the maps -> logits; at `EMBEDDINGS` are its label-wise embeddings.
    """

    def __init__(self, backbone: nn.Module, head: MLDecoder) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, K]."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


def check_embeddings(network: nn.Module, argument: str) -> None:
    """Raises InputError unless the network has one label-wise embedding for each label."""
    head = getattr(network, "head", None)
    if isinstance(head, MLDecoder) and head.options.groups not in (None, head.classifier.num_classes):
        raise InputError(
            argument, f"a head with {head.options.groups} queries", f"one for each of the {head.classifier.num_classes} labels"
        )
