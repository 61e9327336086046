"""CLIP's two towers. Transformers have any width, depth, heads and neurons; they run under masks and may be narrower in every layer than
in the next. An image tower may be a ResNet instead, see `clip_resnet`.

Names of parameters are those of open_clip's ``CustomTextCLIP``: ``visual.transformer.resblocks.0.attn.in_proj_weight``,
``text.token_embedding.weight``, ``logit_scale``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, normalize, scaled_dot_product_attention

from stillroom.errors import InputError, at_least, one_of
from stillroom.modules.clip_resnet import CELL, ResNetShape, ResNetTower

Activation = Literal["gelu", "quick_gelu"]
ACTIVATIONS = ("gelu", "quick_gelu")
FIRST_SCALE = math.log(1 / 0.07)  # of the log-scale
MOST_SCALE = math.log(100)  # that a learned log-scale is clamped to


@dataclass(frozen=True)
class TowerShape:
    """The sizes of a transformer.

    Args:
        width: d, channels of the residual stream.
        head_width: d_h.
        heads: of each layer; 0 leaves nothing of its attention but a bias.
        neurons: of each layer's feed-forward network; 0 likewise.

    Raises:
        InputError: a number out of its range, or lists of unlike length.
    """

    width: int
    head_width: int
    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", tuple(self.heads))
        object.__setattr__(self, "neurons", tuple(self.neurons))
        at_least("width", self.width, 1)
        at_least("head_width", self.head_width, 1)
        if not self.heads or len(self.heads) != len(self.neurons) or min(*self.heads, *self.neurons) < 0:
            got = f"{len(self.heads)} layers with heads {self.heads}, {len(self.neurons)} with neurons {self.neurons}"
            raise InputError("heads", got, "a number of heads and one of neurons for each of at least one layer")

    @property
    def layers(self) -> int:
        """L."""
        return len(self.heads)

    @property
    def even(self) -> bool:
        """Whether all layers are alike and the heads fill the width, as in an ordinary transformer."""
        return len({*self.heads}) == len({*self.neurons}) == 1 and self.heads[0] * self.head_width == self.width

    @classmethod
    def of(cls, width: int, layers: int, heads: int, neurons: int | None = None) -> TowerShape:
        """An ordinary transformer: heads that fill the width, and by default four times as many neurons.

        Raises:
            InputError: the width is no multiple of the heads.
        """
        if width % at_least("heads", heads, 1):
            raise InputError("width", width, f"a multiple of the number of heads, {heads}")
        neurons = 4 * width if neurons is None else neurons
        return cls(width, width // heads, (heads,) * layers, (neurons,) * layers)


@dataclass(frozen=True)
class ClipShape:
    """The sizes of a CLIP, and what else its weights do not say.

    Args:
        image, text: the towers'.
        embedding: D, length of both embeddings.
        image_size, patch: pixels of the image's sides and of a patch's; with a ResNet 32, of a place of its last map.
        context: tokens of a text at most.
        vocabulary: different tokens.
        end: the id of the end token, at whose first place a text's embedding is taken.
        activation: ``gelu``, or ``quick_gelu`` of the weights that OpenAI released.
        norm_eps: of all layer norms.

    Raises:
        InputError: a number out of its range, or an image that patches do not fill.
    """

    image: TowerShape | ResNetShape
    text: TowerShape
    embedding: int
    image_size: int
    patch: int
    context: int
    vocabulary: int
    end: int
    activation: Activation = "gelu"
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        one_of("activation", self.activation, ACTIVATIONS)
        for name in ("embedding", "image_size", "patch", "context", "vocabulary"):
            at_least(name, getattr(self, name), 1)
        if isinstance(self.image, ResNetShape) and self.patch != CELL:
            raise InputError("patch", self.patch, f"{CELL}, as a ResNet has it")
        if self.image_size % self.patch:
            raise InputError("image_size", self.image_size, f"a multiple of the patches' {self.patch} pixels")
        if not 0 <= self.end < self.vocabulary:
            raise InputError("end", self.end, f"the id of a token, from 0 and below {self.vocabulary}")

    @property
    def transformers(self) -> tuple[TowerShape, TowerShape]:
        """The towers, of image and text, where both are transformers.

        Raises:
            InputError: the image tower is a ResNet.
        """
        if isinstance(self.image, ResNetShape):
            raise InputError("clip", "a ResNet as the image tower", "a transformer")
        return self.image, self.text

    @property
    def ordinary(self) -> bool:
        """Whether it is a CLIP as transformers has them: both towers transformers, all of whose layers are alike."""
        return not isinstance(self.image, ResNetShape) and self.image.even and self.text.even

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ClipShape:
        """The inverse of `to_json`.

        Raises:
            TypeError, KeyError, InputError: of strange entries.
        """
        image = (ResNetShape if "blocks" in content["image"] else TowerShape)(**content["image"])
        return cls(**{**content, "image": image, "text": TowerShape(**content["text"])})


class Masks(NamedTuple):
    """How much of a tower is kept: 1 all, 0 nothing.

    Attributes:
        hidden_D: of each residual channel.
        heads: of each layer's heads, [n_h] each.
        neurons: of each layer's neurons, [f] each.
    """

    hidden_D: Tensor
    heads: Sequence[Tensor]
    neurons: Sequence[Tensor]


class LayerMasks(NamedTuple):
    """`Masks` of one layer: [D], [n_h], [f]."""

    hidden_D: Tensor
    heads_H: Tensor
    neurons_F: Tensor


def masked_norm(x: Tensor, weight_D: Tensor, bias_D: Tensor, hidden_D: Tensor | None, eps: float) -> Tensor:
    """Layer norm whose statistics are over the channels with a mask other than 0; the others come out as 0.

    The mask itself is not multiplied. One channel alone comes out as its bias.

    Args:
        x: [..., D].
        weight_D, bias_D: the norm's.
        hidden_D: the mask; None for all channels.
        eps: added to the variance.
    """
    if hidden_D is None:
        return layer_norm(x, weight_D.shape, weight_D, bias_D, eps)
    kept_D = hidden_D.ne(0).to(x.dtype)
    count = kept_D.sum()
    centred = (x - (x * kept_D).sum(-1, keepdim=True) / count) * kept_D
    variance = centred.square().sum(-1, keepdim=True) / count
    return (centred * (variance + eps).rsqrt() * weight_D + bias_D) * kept_D


class Norm(nn.LayerNorm):
    """A layer norm that takes a mask; see `masked_norm`."""

    def forward(self, x: Tensor, hidden_D: Tensor | None = None) -> Tensor:
        """[..., D] -> [..., D]."""
        return masked_norm(x, self.weight, self.bias, hidden_D, self.eps)


class Projection(nn.Linear):
    """A linear layer whose first values `Transformer` gives it; it may have nothing to read, or nothing to answer."""

    def reset_parameters(self) -> None:
        """Left as they are."""


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values; heads need not fill the width.

    Args:
        width: of what it reads and answers.
        heads: n_h; with 0 it answers with its output's bias.
        head_width: d_h; the scale is d_h^-0.5.
        causal: positions see none behind them.
    """

    def __init__(self, width: int, heads: int, head_width: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.head_width, self.causal = heads, head_width, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * heads * head_width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * heads * head_width))
        self.out_proj = Projection(heads * head_width, width)

    def forward(self, x_BTD: Tensor, masks: LayerMasks | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        batch, places, _ = x_BTD.shape
        if not self.heads:
            answer_BTD = self.out_proj.bias + x_BTD.new_zeros(batch, places, 1)
        else:
            qkv_BTP = linear(x_BTD, self.in_proj_weight, self.in_proj_bias)
            q, k, v = qkv_BTP.view(batch, places, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
            mixed_BHTE = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
            if masks is not None:
                mixed_BHTE = mixed_BHTE * masks.heads_H[:, None, None]
            answer_BTD = self.out_proj(mixed_BHTE.transpose(1, 2).flatten(2))
        return answer_BTD if masks is None else answer_BTD * masks.hidden_D


class MLP(nn.Module):
    """The feed-forward network of a block."""

    def __init__(self, width: int, neurons: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.c_fc = Projection(width, neurons)
        self.c_proj = Projection(neurons, width)

    def forward(self, x_BTD: Tensor, masks: LayerMasks | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        hidden_BTF = self.c_fc(x_BTD)
        hidden_BTF = gelu(hidden_BTF) if self.activation == "gelu" else hidden_BTF * torch.sigmoid(1.702 * hidden_BTF)
        if masks is None:
            answer_BTD: Tensor = self.c_proj(hidden_BTF)
            return answer_BTD
        answer_BTD = self.c_proj(hidden_BTF * masks.neurons_F)
        return answer_BTD * masks.hidden_D


class Block(nn.Module):
    """x + attention(LN(x)), then x + MLP(LN(x)); without `attn` where the released pruning took it away with its bias.

    Its matrices are empty until `Transformer` gives them their first values.
    """

    attn: Attention | None

    def __init__(self, shape: TowerShape, layer: int, *, causal: bool, activation: Activation, eps: float) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = Norm(shape.width, eps=eps), Norm(shape.width, eps=eps)
        self.attn = Attention(shape.width, shape.heads[layer], shape.head_width, causal=causal)
        self.mlp = MLP(shape.width, shape.neurons[layer], activation)

    def forward(self, x_BTD: Tensor, masks: LayerMasks | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        hidden_D = None if masks is None else masks.hidden_D
        if self.attn is not None:
            x_BTD = x_BTD + self.attn(self.ln_1(x_BTD, hidden_D), masks)
        return x_BTD + self.mlp(self.ln_2(x_BTD, hidden_D), masks)


class Transformer(nn.Module):
    """Blocks, one after the other."""

    def __init__(self, shape: TowerShape, *, causal: bool, activation: Activation, eps: float = 1e-5) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(shape, layer, causal=causal, activation=activation, eps=eps) for layer in range(shape.layers))
        into, out = shape.width**-0.5, shape.width**-0.5 * (2 * shape.layers) ** -0.5
        for block in self.blocks:
            assert block.attn is not None
            nn.init.normal_(block.attn.in_proj_weight, std=into)
            nn.init.normal_(block.attn.out_proj.weight, std=out)
            nn.init.normal_(block.mlp.c_fc.weight, std=into * 2**-0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=out)
            for layer in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
                nn.init.zeros_(layer.bias)

    @property
    def blocks(self) -> list[Block]:
        """The blocks in their order."""
        return cast("list[Block]", list(self.resblocks))

    def forward(self, x_BTD: Tensor, masks: Masks | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, None if masks is None else LayerMasks(masks.hidden_D, masks.heads[layer], masks.neurons[layer]))
        return x_BTD


class ImageTower(nn.Module):
    """Images [B, 3, H, W], normalised -> embeddings [B, D], not of unit length."""

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        tower, patches = shape.transformers[0], (shape.image_size // shape.patch) ** 2
        self.shape = tower
        self.class_embedding = nn.Parameter(tower.width**-0.5 * torch.randn(tower.width))
        self.positional_embedding = nn.Parameter(tower.width**-0.5 * torch.randn(patches + 1, tower.width))
        self.proj = nn.Parameter(tower.width**-0.5 * torch.randn(tower.width, shape.embedding))
        self.conv1 = nn.Conv2d(3, tower.width, shape.patch, shape.patch, bias=False)
        self.ln_pre = Norm(tower.width, eps=shape.norm_eps)
        self.transformer = Transformer(tower, causal=False, activation=shape.activation, eps=shape.norm_eps)
        self.ln_post = Norm(tower.width, eps=shape.norm_eps)

    def tokens(self, images_B3HW: Tensor, masks: Masks | None = None) -> Tensor:
        """The last layer's tokens [B, 1 + N, d], not normalised, the class token first."""
        patches_BND = self.conv1(images_B3HW).flatten(2).transpose(1, 2)
        first_B1D = self.class_embedding.to(patches_BND.dtype).expand(patches_BND.shape[0], 1, -1)
        x_BTD = torch.cat((first_B1D, patches_BND), 1) + self.positional_embedding
        if masks is not None:
            x_BTD = x_BTD * masks.hidden_D
        hidden_D = None if masks is None else masks.hidden_D
        tokens_BTD: Tensor = self.transformer(self.ln_pre(x_BTD, hidden_D), masks)
        return tokens_BTD

    def forward(self, images_B3HW: Tensor, masks: Masks | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, D]."""
        hidden_D = None if masks is None else masks.hidden_D
        embedding_BD: Tensor = self.ln_post(self.tokens(images_B3HW, masks)[:, 0], hidden_D) @ self.proj
        return embedding_BD


class TextTower(nn.Module):
    """Tokens [B, T], int64 -> embeddings [B, D], not of unit length: what stands at each text's first end token.

    No token sees those behind it, so what follows the end (padding, whatever its id) changes nothing.
    """

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        tower = shape.text
        self.shape, self.end = tower, shape.end
        self.token_embedding = nn.Embedding(shape.vocabulary, tower.width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(shape.context, tower.width))
        self.text_projection = nn.Parameter(tower.width**-0.5 * torch.randn(tower.width, shape.embedding))
        self.transformer = Transformer(tower, causal=True, activation=shape.activation, eps=shape.norm_eps)
        self.ln_final = Norm(tower.width, eps=shape.norm_eps)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def ends(self, tokens_BT: Tensor) -> Tensor:
        """The place of each text's first end token, [B]; the last place of one that was cut off before it."""
        found_BT = tokens_BT.eq(self.end).int()
        return torch.where(found_BT.any(1), found_BT.argmax(1), tokens_BT.shape[1] - 1)

    def forward(self, tokens_BT: Tensor, masks: Masks | None = None) -> Tensor:
        """[B, T] -> [B, D]."""
        x_BTD = self.token_embedding(tokens_BT) + self.positional_embedding[: tokens_BT.shape[1]]
        hidden_D = None if masks is None else masks.hidden_D
        if masks is not None:
            x_BTD = x_BTD * masks.hidden_D
        x_BTD = self.transformer(x_BTD, masks)
        place_B1D = self.ends(tokens_BT)[:, None, None].expand(-1, 1, x_BTD.shape[2])
        at_end_BD = x_BTD.gather(1, place_B1D)[:, 0]
        embedding_BD: Tensor = self.ln_final(at_end_BD, hidden_D) @ self.text_projection
        return embedding_BD


class Clip(nn.Module):
    """Images and texts -> embeddings of unit length, that of an image near those of its texts.

    Args:
        shape: its sizes.
    """

    def __init__(self, shape: ClipShape) -> None:
        super().__init__()
        self.shape = shape
        self.visual: ImageTower | ResNetTower
        if isinstance(shape.image, ResNetShape):
            self.visual = ResNetTower(shape.image, shape.embedding, shape.image_size)
        else:
            self.visual = ImageTower(shape)
        self.text = TextTower(shape)
        self.logit_scale = nn.Parameter(torch.tensor(FIRST_SCALE))

    @property
    def scale(self) -> Tensor:
        """gamma: what cosines are multiplied with, the exponential of the parameter."""
        return self.logit_scale.exp()

    def forward(
        self, inputs: tuple[Tensor, Tensor], image_masks: Masks | None = None, text_masks: Masks | None = None
    ) -> tuple[Tensor, ...]:
        """(images [B, 3, H, W], tokens [B, T]) -> embeddings of the images and of the texts, [B, D] both, of unit length."""
        images_B3HW, tokens_BT = inputs
        return normalize(self.visual(images_B3HW, image_masks), dim=-1), normalize(self.text(tokens_BT, text_masks), dim=-1)
