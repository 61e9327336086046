"""The Normality Recall (NR) memory: keys and values that read a feature map position by position."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stillroom.errors import InputError, at_least, positive
from stillroom.losses.precision import in_one_type

EPS = 1e-12  # of a vector's length, where it is brought to 1


def read(query_BCHW: Tensor, addresses_LC: Tensor, values_LC: Tensor, temperature: float = 1.0) -> Tensor:
    """What a memory recalls at every position p of a feature map.

        s_lp = < n(a_l), n(F_p) >      R_p = sum_l softmax_l(s_lp / temperature) v_l

    n(.) is L2 normalisation over channels, of which a zero vector stays zero: it reads the mean of the values. Those are not normalised.

    Args:
        query_BCHW: F.
        addresses_LC: a, the keys where something is recalled; the values themselves where they are to learn what normal is.
        values_LC: v.
        temperature: of the softmax over the slots, above 0; with cosines between -1 and 1 it is close to uniform at 1.

    Returns:
        R [B, C, H, W], in float32 at least.

    Raises:
        InputError: the query has other channels than the memory.

    Source: the paper's NR memory, in the form of the specification's "NR Memory".
    """
    if query_BCHW.shape[1] != values_LC.shape[1]:
        raise InputError("query", f"{query_BCHW.shape[1]} channels", f"those of the memory, {values_LC.shape[1]}")
    with torch.autocast(query_BCHW.device.type, enabled=False):
        query_BCHW, values_LC = in_one_type(query_BCHW, values_LC)
        query_BPC = normalize(query_BCHW, dim=1, eps=EPS).flatten(2).transpose(1, 2)
        similarity_BPL = query_BPC @ normalize(addresses_LC.to(values_LC.dtype), dim=1, eps=EPS).T
        recalled_BPC = (similarity_BPL / temperature).softmax(-1) @ values_LC
    return recalled_BPC.transpose(1, 2).unflatten(2, query_BCHW.shape[2:])


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

    def embed(self, query_BCHW: Tensor) -> Tensor:
        """The path of normality embedding learning, [B, C, H, W] in float32; its gradient reaches the values only."""
        return read(query_BCHW, self.values, self.values, self.temperature)

    def extra_repr(self) -> str:
        """For people, and for the fingerprint of a stage."""
        return f"slots={len(self.keys)}, channels={self.keys.shape[1]}, temperature={self.temperature:g}"
