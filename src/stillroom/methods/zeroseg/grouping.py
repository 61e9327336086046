"""Grouping blocks and the segmentation head: patches are handed to a few segments, each patch to one.

Assignment of token l to segment s, of logits a_{s,l} = (W_q Q_s) . (W_k X_l) / sqrt(C):

    y = softmax over s of (a + Gumbel noise) / tau,   A = one-hot(arg-max over s of y), with the gradient of y
    w_{s,l} = A_{s,l} / (sum_l A_{s,l} + 1),   O_s = W_o sum_l w_{s,l} W_v X_l,   N_s = O_s + Q_s

The blocks are GroupViT's, whose code ZeroSeg builds on; their parameters bear its names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, one_hot, scaled_dot_product_attention

from stillroom.losses.precision import at_least_float32

_NORM_EPS = 1e-5
_DEVIATION, _PAPER_WIDTH = 0.02, 768  # of initial weights, and of the network that these are for
_ASSIGN_EPS = 1.0  # added to the number of a segment's tokens


def gumbel_noise(like: Tensor) -> Tensor:
    """Gumbel(0, 1) noise of that shape, float32 at least, from torch's own generator."""
    return -torch.empty_like(at_least_float32(like)).exponential_().log()


def assign(logits: Tensor, noise: Tensor | None = None, tau: float = 1.0) -> Tensor:
    """Each token to one segment: 0 or 1, with the gradient of the softmax.

    Computed in float32 at least. Of equal logits the lowest segment wins; logits that are no numbers give assignments that are none.

    Args:
        logits: [..., S, L], segments by tokens.
        noise: added before; None in evaluation.
        tau: temperature of the softmax.

    Source: GroupViT's code (hard assignment, straight through).
    """
    wide = at_least_float32(logits)
    soft = ((wide if noise is None else wide + noise) / tau).softmax(-2)
    hard = one_hot(soft.argmax(-2), soft.shape[-2]).movedim(-1, -2).to(soft.dtype)
    return hard + (soft - soft.detach())


class MLP(nn.Module):
    """Linear, exact GELU, linear; [..., in] to [..., out]."""

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        """Of the last axis."""
        found: Tensor = self.fc2(gelu(self.fc1(x)))
        return found


class TokenMLP(MLP):
    """The same along the token axis, shared by the channels: [B, in, C] to [B, out, C]."""

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Of the last axis but one."""
        return super().forward(x_BLC.mT).mT


class Attention(nn.Module):
    """Multi-head self-attention [B, L, C] with bias in its maps."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """The shape stays."""
        q, k, v = (_split(part, self.heads) for part in self.qkv(x_BLC).chunk(3, -1))
        return _joined(scaled_dot_product_attention(q, k, v), self.proj)


class CrossAttention(nn.Module):
    """Multi-head attention of queries [B, S, C] over tokens [B, L, C]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries_BSC: Tensor, tokens_BLC: Tensor) -> Tensor:
        """[B, S, C]."""
        q, k, v = (_split(part, self.heads) for part in (self.q_proj(queries_BSC), self.k_proj(tokens_BLC), self.v_proj(tokens_BLC)))
        return _joined(scaled_dot_product_attention(q, k, v), self.proj)


def _split(x_BLC: Tensor, heads: int) -> Tensor:
    """[B, H, L, C / H]."""
    return x_BLC.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(x_BHLD: Tensor, proj: nn.Linear) -> Tensor:
    found: Tensor = proj(x_BHLD.transpose(1, 2).flatten(2))
    return found


class Block(nn.Module):
    """A pre-norm transformer block of an MLP of four times the width.

    Args:
        drop_path: share of the samples of which a branch is left out in training (stochastic depth).
        eps: of its norms.
    """

    def __init__(self, width: int, heads: int, *, drop_path: float = 0.0, eps: float = _NORM_EPS) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps), MLP(width, 4 * width)
        self.drop_path = drop_path

    def forward(self, x_BLC: Tensor) -> Tensor:
        """The shape stays."""
        x = x_BLC + self._dropped(self.attn(self.norm1(x_BLC)))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, branch_BLC: Tensor) -> Tensor:
        if not self.training or not self.drop_path:
            return branch_BLC
        kept_B11 = branch_BLC.new_empty(branch_BLC.shape[0], 1, 1).bernoulli_(1 - self.drop_path)
        return branch_BLC * kept_B11 / (1 - self.drop_path)


class _QueryBlock(nn.Module):
    """Queries look at the tokens, without a norm before, with one behind."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn, self.norm2, self.mlp = CrossAttention(width, heads), nn.LayerNorm(width, _NORM_EPS), MLP(width, 4 * width)
        self.norm_post = nn.LayerNorm(width, _NORM_EPS)

    def forward(self, queries_BSC: Tensor, tokens_BLC: Tensor) -> Tensor:
        queries = queries_BSC + self.attn(queries_BSC, tokens_BLC)
        found: Tensor = self.norm_post(queries + self.mlp(self.norm2(queries)))
        return found


class _Assign(nn.Module):
    """Tokens to segments, and what each segment collects."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, queries_BSC: Tensor, tokens_BLC: Tensor, noise_BSL: Tensor | None, tau: float) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.q_proj(queries_BSC), self.k_proj(tokens_BLC), self.v_proj(tokens_BLC)
        with torch.autocast(q.device.type, enabled=False):
            logits_BSL = at_least_float32(q) @ at_least_float32(k).mT * q.shape[-1] ** -0.5
            if noise_BSL is None and self.training:
                noise_BSL = gumbel_noise(logits_BSL)
            hard_BSL = assign(logits_BSL, noise_BSL, tau)
            share_BSL = hard_BSL / (hard_BSL.sum(-1, keepdim=True) + _ASSIGN_EPS)
        return self.proj(share_BSL.to(v.dtype) @ v), hard_BSL, logits_BSL.softmax(-2)


@dataclass(frozen=True)
class Grouped:
    """What a grouping block answers.

    Attributes:
        segments: [B, S, C].
        hard: which segment each token belongs to, [B, S, L], 0 or 1; in training with noise.
        soft: softmax over the segments of the same logits without noise, [B, S, L].
    """

    segments: Tensor
    hard: Tensor
    soft: Tensor


class GroupingBlock(nn.Module):
    """Tokens [B, L, C] and group tokens [B, S_1, C] to segments [B, S_2, C'].

    An empty segment is defined: of what it collects, the bias of W_o is left.

    Args:
        width: C, of tokens and group tokens.
        heads: of the cross-attention; the assignment has one.
        group_tokens: S_1.
        segments: S_2.
        out_width: C'; by default C.
        tau: temperature of the assignment in training.
    """

    def __init__(self, width: int, heads: int, group_tokens: int, segments: int, *, out_width: int | None = None, tau: float = 1.0) -> None:
        super().__init__()
        out_width, self.tau = width if out_width is None else out_width, tau
        self.norm_tokens, self.norm_x = nn.LayerNorm(width, _NORM_EPS), nn.LayerNorm(width, _NORM_EPS)
        self.mlp_inter, self.norm_post_tokens = TokenMLP(group_tokens, width // 2, segments), nn.LayerNorm(width, _NORM_EPS)
        self.pre_assign_attn, self.assign = _QueryBlock(width, heads), _Assign(width)
        self.norm_new_x, self.mlp_channels = nn.LayerNorm(width, _NORM_EPS), MLP(width, 4 * width, out_width)
        narrowing = [nn.LayerNorm(width, _NORM_EPS), nn.Linear(width, out_width, bias=False)]
        self.reduction = nn.Sequential(*(narrowing if out_width != width else []))

    def forward(self, tokens_BLC: Tensor, group_tokens_BSC: Tensor, noise_BSL: Tensor | None = None) -> Grouped:
        """The segments; `noise_BSL` in the place of the Gumbel noise that is drawn in training."""
        tokens = self.norm_x(tokens_BLC)
        queries = self.norm_post_tokens(self.mlp_inter(self.norm_tokens(group_tokens_BSC)))
        queries = self.pre_assign_attn(queries, tokens)
        collected, hard, soft = self.assign(queries, tokens, noise_BSL, self.tau)
        new = collected + queries
        return Grouped(self.reduction(new) + self.mlp_channels(self.norm_new_x(new)), hard, soft)


class Stage(nn.Module):
    """Blocks over tokens and group tokens together, and a grouping block, where there are group tokens.

    Args:
        before: group tokens of the stage before, which are mixed into this one's; 0 for none.
        drop_paths: of each block.
    """

    def __init__(
        self, width: int, heads: int, drop_paths: Sequence[float], group_tokens: int, segments: int, before: int, tau: float
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, drop_path=share) for share in drop_paths)
        self.group_token: nn.Parameter | None = None
        self.group_projector: nn.Sequential | None = None
        self.downsample: GroupingBlock | None = None
        if group_tokens:
            self.group_token = nn.Parameter(torch.zeros(1, group_tokens, width))
            self.downsample = GroupingBlock(width, heads, group_tokens, segments, tau=tau)
            if before:
                self.group_projector = nn.Sequential(nn.LayerNorm(width, _NORM_EPS), TokenMLP(before, width // 2, group_tokens))

    def forward(self, tokens_BLC: Tensor, before_BSC: Tensor | None) -> tuple[Tensor, Tensor | None, Grouped | None]:
        """Its tokens or segments, its own group tokens as the blocks left them, and what the grouping found."""
        length = tokens_BLC.shape[1]
        if self.group_token is not None:
            groups_BSC = self.group_token.expand(tokens_BLC.shape[0], -1, -1)
            if self.group_projector is not None and before_BSC is not None:
                groups_BSC = groups_BSC + self.group_projector(before_BSC)
            tokens_BLC = torch.cat((tokens_BLC, groups_BSC), 1)
        for block in self.blocks:
            tokens_BLC = block(tokens_BLC)
        if self.downsample is None:
            return tokens_BLC, None, None
        groups_BSC = tokens_BLC[:, length:]
        grouped = self.downsample(tokens_BLC[:, :length], groups_BSC)
        return grouped.segments, groups_BSC, grouped


class SegmentationHead(nn.Module):
    """Patch tokens [B, L, C] to segment tokens [B, m, C] in stages, all but the last of which group.

    Args:
        width: C.
        heads: of every attention.
        depths: blocks of each stage.
        group_tokens: G_1 .. of each stage that groups.
        segments: that each of these hands on; by default as many as it has group tokens.
        drop_path: stochastic depth of the last block; it grows linearly from 0.
        tau: temperature of the assignments in training.

    Source: GroupViT's code; layers and numbers of tokens from the paper.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depths: Sequence[int],
        group_tokens: Sequence[int],
        *,
        segments: Sequence[int] | None = None,
        drop_path: float = 0.1,
        tau: float = 1.0,
    ) -> None:
        super().__init__()
        shares, stages, start = torch.linspace(0, drop_path, sum(depths)).tolist(), [], 0
        for number, depth in enumerate(depths):
            tokens, found = (of[number] if number < len(of) else 0 for of in (group_tokens, segments or group_tokens))
            before = group_tokens[number - 1] if number else 0
            stages.append(Stage(width, heads, shares[start : start + depth], tokens, found, before, tau))
            start += depth
        self.stages = nn.ModuleList(stages)
        initialise(self, width)
        if stages[0].group_token is not None:
            nn.init.trunc_normal_(stages[0].group_token, std=_DEVIATION)

    def forward(self, tokens_BLC: Tensor) -> tuple[Tensor, list[Grouped]]:
        """The last stage's tokens, before any norm, and what each grouping found."""
        found: list[Grouped] = []
        before: Tensor | None = None
        for stage in self.stages:
            tokens_BLC, before, grouped = stage(tokens_BLC, before)
            found += [] if grouped is None else [grouped]
        return tokens_BLC, found


def composed(soft: Sequence[Tensor]) -> Tensor:
    """From each token to each final segment, [B, L, m]: the product of the groupings' soft maps [B, G_1, L], [B, G_2, G_1], ..."""
    found_BLS = soft[0].mT
    for following in soft[1:]:
        found_BLS = found_BLS @ following.mT
    return found_BLS


def initialise(network: nn.Module, width: int) -> None:
    """Linear maps from a truncated normal of deviation 0.02 at the paper's width, and as strong at any other; biases 0.

    Args:
        network: whose maps these are.
        width: C; with C channels the deviation is 0.02 sqrt(768 / C), or a narrow network would hand on next to nothing.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=_DEVIATION * math.sqrt(_PAPER_WIDTH / width))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
