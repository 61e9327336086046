"""The Normality Recall (NR) memory: keys and values that read a feature map position by position."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stillroom.errors import InputError, at_least, positive
from stillroom.losses.precision import in_one_type

EPS = 1e-12  # of a vector's length, where it is brought to 1


def similarities(query_BCHW: Tensor, addresses_LC: Tensor) -> Tensor:
    """How like each slot's address every position p of a feature map is: s_lp = < n(a_l), n(F_p) >.

    n(.) is L2 normalisation over channels, of which a zero vector stays zero.

    Args:
        query_BCHW: F.
        addresses_LC: a, the keys where something is recalled; the values themselves where they are to learn what normal is.

    Returns:
        [B, H, W, L] in [-1, 1], in float32 at least.

    Raises:
        InputError: the query has other channels than the memory.

    Source: the paper's NR memory, in the form of the specification's "NR Memory".
    """
    if query_BCHW.shape[1] != addresses_LC.shape[1]:
        raise InputError("query", f"{query_BCHW.shape[1]} channels", f"those of the memory, {addresses_LC.shape[1]}")
    with torch.autocast(query_BCHW.device.type, enabled=False):
        query_BCHW, addresses_LC = in_one_type(query_BCHW, addresses_LC)
        query_BHWC = query_BCHW.permute(0, 2, 3, 1)
        # The lengths divide the products, L numbers a position, rather than the query with its C.
        length_BHW1 = torch.linalg.vector_norm(query_BHWC, dim=-1, keepdim=True).clamp_min(EPS)
        return query_BHWC @ normalize(addresses_LC, dim=1, eps=EPS).T / length_BHW1


def read(query_BCHW: Tensor, addresses_LC: Tensor, values_LC: Tensor, temperature: float = 1.0) -> Tensor:
    """What a memory recalls at every position p of a feature map: R_p = sum_l softmax_l(s_lp / temperature) v_l.

    Args:
        query_BCHW, addresses_LC: see `similarities`; a zero vector reads the mean of the values.
        values_LC: v; they are not normalised.
        temperature: of the softmax over the slots, above 0; with cosines between -1 and 1 it is close to uniform at 1.

    Returns:
        R [B, C, H, W], in float32 at least.

    Raises:
        InputError: the query has other channels than the memory.
    """
    shares_BHWL = (similarities(query_BCHW, addresses_LC) / temperature).softmax(-1)
    with torch.autocast(query_BCHW.device.type, enabled=False):
        return (shares_BHWL @ values_LC.to(shares_BHWL.dtype)).permute(0, 3, 1, 2)


def embedding_distances(features_BCHW: Tensor, values_LC: Tensor, temperature: float = 1.0) -> Tensor:
    """How far what the values read of features is from these: 1/2 || n(G_p) - n(R_p) ||^2 with R = `read`(G, v, v), without making R.

    With w the shares, < G_p, R_p > = |G_p| sum_l w_l s_lp |v_l| and |R_p|^2 = w^T (v v^T) w: numbers of slots, not of channels.

    Args:
        features_BCHW: G; no gradient reaches them.
        values_LC, temperature: see `read`.

    Returns:
        [B, H, W] in [0, 2], in float32 at least.

    Raises:
        InputError: the features have other channels than the memory.
    """
    features_BCHW = features_BCHW.detach()
    similarity_BHWL = similarities(features_BCHW, values_LC)
    with torch.autocast(features_BCHW.device.type, enabled=False):
        values_LC = values_LC.to(similarity_BHWL.dtype)
        shares_BHWL = (similarity_BHWL / temperature).softmax(-1)
        product_BHW = (shares_BHWL * similarity_BHWL) @ torch.linalg.vector_norm(values_LC, dim=1)
        squared_BHW = (shares_BHWL @ (values_LC @ values_LC.T) * shares_BHWL).sum(-1)
        least_BHW = squared_BHW.clamp_min(EPS**2)
        there_BHW = torch.linalg.vector_norm(features_BCHW, dim=1) > 0  # a zero vector has length 0 after normalisation, too
        return (there_BHW + squared_BHW / least_BHW) / 2 - product_BHW / least_BHW.sqrt()


def folded(weight: Tensor, values_LC: Tensor, *, transposed: bool) -> Tensor:
    """A convolution's weight for [F, shares] in place of [F, R]: R_p is linear in its L shares, so that the values go into the weight,
    which takes L channels of them instead of C, and R is never made.

    Args:
        weight: [O, 2 C, k, k], or [2 C, O, k, k] of a transposed convolution.
        values_LC: v.
        transposed: which of the two it is.

    Returns:
        [O, C + L, k, k] or [C + L, O, k, k], channels last.
    """
    dim = 0 if transposed else 3
    own, recalled = weight.permute(0, 2, 3, 1).chunk(2, dim)
    with torch.autocast(weight.device.type, enabled=False):
        slots = (values_LC @ recalled.flatten(1)).unflatten(1, recalled.shape[1:]) if transposed else recalled @ values_LC.T
    return torch.cat([own, slots], dim).permute(0, 3, 1, 2)


class NRMemory(nn.Module):
    """L learnable keys and values of C channels each, drawn from N(0, 1).

    Called, it answers with what the keys recall (`read`); `embed` reads with the values in their place, so that these alone learn.

    Args:
        channels: C.
        slots: L.
        temperature: see `read`.

    Raises:
        InputError: a number that cannot be used.
    """

    def __init__(self, channels: int, slots: int = 50, temperature: float = 1.0) -> None:
        super().__init__()
        at_least("slots", slots, 1)
        self.temperature = positive("memory_temperature", temperature)
        self.keys = nn.Parameter(torch.randn(slots, channels))
        self.values = nn.Parameter(torch.randn(slots, channels))

    def forward(self, query_BCHW: Tensor) -> Tensor:
        """The recall path: [B, C, H, W] to the same shape and type."""
        return read(query_BCHW, self.keys, self.values, self.temperature).to(query_BCHW.dtype)

    def shares(self, query_BCHW: Tensor) -> Tensor:
        """Of each slot at each position, [B, C, H, W] to [B, L, H, W] of the same type: `forward` is the values weighted by them."""
        shares_BHWL = (similarities(query_BCHW, self.keys) / self.temperature).softmax(-1)
        return shares_BHWL.permute(0, 3, 1, 2).to(query_BCHW.dtype)

    def embed(self, query_BCHW: Tensor) -> Tensor:
        """The path of normality embedding learning, [B, C, H, W] in float32; its gradient reaches the values only."""
        return read(query_BCHW, self.values, self.values, self.temperature)

    def extra_repr(self) -> str:
        """For people, and for the fingerprint of a stage."""
        return f"slots={len(self.keys)}, channels={self.keys.shape[1]}, temperature={self.temperature:g}"
