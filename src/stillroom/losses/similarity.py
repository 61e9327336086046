"""How similar two networks' features of the same samples are, whatever their channels and sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.losses.precision import in_one_type

_CHUNK = 256  # samples that are compared with each other


def linear_cka(first_N: Tensor, second_N: Tensor) -> Tensor:
    """Centred kernel alignment with a linear kernel, a scalar in [0, 1]: 1 where one is the other rotated and scaled.

    With K = X X^T and L = Y Y^T, both doubly centred: CKA = <K, L>_F / (||K||_F ||L||_F). The mean over chunks of equal size, of at most
    256 samples.

    Args:
        first_N, second_N: features of the same N samples, of any shapes.

    Returns:
        Float32 at least; 0 for fewer than two samples, and where the features of all samples are equal.

    Raises:
        InputError: different numbers of samples.

    Source: Kornblith et al. 2019, eq. 3 and 4.
    """
    if len(first_N) != len(second_N):
        raise InputError("features", f"{len(first_N)} and {len(second_N)} samples", "the same samples")
    with torch.autocast(first_N.device.type, enabled=False):
        first_N, second_N = in_one_type(first_N, second_N)
        parts = len(chunk_sizes(len(first_N)))
        chunks = zip(first_N.flatten(1).tensor_split(parts), second_N.flatten(1).tensor_split(parts), strict=True)
        return torch.stack([alignment(centred_gram(first), centred_gram(second)) for first, second in chunks]).mean()


def chunk_sizes(samples: int) -> list[int]:
    """How many samples each chunk has, at most 256 and as equal as can be; the first ones have one more."""
    parts = max(math.ceil(samples / _CHUNK), 1)
    return [samples // parts + (i < samples % parts) for i in range(parts)]


def centred_gram(features_N: Tensor) -> Tensor:
    """The doubly centred Gram matrix [N, N] of N samples' features: centring the rows once is the same, and keeps more digits."""
    rows_ND = features_N.flatten(1)
    rows_ND = rows_ND - rows_ND.mean(0)
    return rows_ND @ rows_ND.T


def alignment(first_NN: Tensor, second_NN: Tensor) -> Tensor:
    """The cosine of two centred Gram matrices, a scalar; 0 where one of them is 0."""
    return (first_NN * second_NN).sum() / (first_NN.norm() * second_NN.norm()).clamp_min(1e-12)
