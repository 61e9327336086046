"""Contrastive losses between embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from stillroom.errors import InputError, at_least_zero, positive
from stillroom.losses.precision import at_least_float32


def crd_loss(scores_BK1: Tensor, num_samples: int) -> Tensor:
    """Noise-contrastive loss that tells one positive from K negatives.

    With the critic h = P / (P + K/M), where P is a pair's score and M the number of training samples:

        loss = - 1/B sum_b [ log h(positive) + sum_k log(1 - h(negative_k)) ]

    This is the negative of section 3.1's objective, with its expectation K * E[log(1 - h)] taken over the K negatives that were drawn.
    Published code adds 1e-7 to both denominators; here both logarithms are taken of P M / K, which needs no such constant.

    Args:
        scores_BK1: P >= 0, one row per anchor; the positive pair's score in the first column, those of the K negatives in the rest. Already
            normalised (`exp(dot / temperature) / Z`, see `stillroom.modules.contrast_memory`).
        num_samples: M, the size of the training set from which negatives are drawn.

    Returns:
        A scalar, float32 at least: a sum over the pairs of an anchor, averaged over anchors.

    Raises:
        InputError: there is no negative, or `num_samples` is not above 0.

    Source: Tian et al. 2020 (CRD), section 3.1; Wu et al. 2018 for the normalised score.
    """
    if scores_BK1.ndim != 2 or scores_BK1.shape[1] < 2:
        raise InputError("scores_BK1", f"a tensor of shape {tuple(scores_BK1.shape)}", "[B, 1 + K], one positive and K >= 1 negatives")
    if num_samples < 1:
        raise InputError("num_samples", num_samples, "the size of the training set, above 0")
    negatives = scores_BK1.shape[1] - 1
    scores = at_least_float32(scores_BK1).clamp_min(torch.finfo(torch.float32).tiny)  # a score that underflowed keeps a finite logarithm
    log_odds_BK1 = scores.log() - math.log(negatives / num_samples)  # log h / (1 - h)
    return (softplus(-log_odds_BK1[:, 0]) + softplus(log_odds_BK1[:, 1:]).sum(1)).mean()


def nt_xent(first_BD: Tensor, second_BD: Tensor, temperature: float, *, epsilon: float = 0.0) -> Tensor:
    """Normalised-temperature cross-entropy: of all other rows, each of the 2B is to find the other view of its own sample.

    With u the L2-normalised rows of both views stacked, and i' the other view of row i:

        loss = 1/(2B) sum_i -log( exp(u_i . u_i' / t) / sum_{j != i} exp(u_i . u_j / t) )

    Args:
        first_BD, second_BD: embeddings of two views of the same B samples, of any length; a row of zeros stays zero. Gradients reach both.
        temperature: t > 0.
        epsilon: added to each row's length, to the sum over j and to the probability whose logarithm is taken, as some published code
            does (WAD: 1e-8). It bounds the loss by -log(epsilon), which is felt at temperatures of about 0.1 and below.

    Returns:
        A scalar, float32 at least, the mean over rows; exactly 0 for one sample, whose only other row is its positive.

    Raises:
        InputError: the shapes differ or are not [B, D]; the temperature is not above 0; epsilon is below 0.

    Source: Chen et al. 2020 (SimCLR), eq. 1.
    """
    if first_BD.ndim != 2 or first_BD.shape != second_BD.shape:
        raise InputError("second_BD", f"a tensor of shape {tuple(second_BD.shape)}", f"[B, D], as first_BD {tuple(first_BD.shape)}")
    positive("temperature", temperature)
    at_least_zero("epsilon", epsilon)
    count = len(first_BD)
    with torch.autocast(first_BD.device.type, enabled=False):
        rows_ND = at_least_float32(torch.cat((first_BD, second_BD)))
        rows_ND = rows_ND / (rows_ND.norm(dim=1, keepdim=True) + epsilon).clamp_min(1e-12)
        similarity_NN = rows_ND @ rows_ND.T / temperature
    itself_NN = torch.eye(2 * count, dtype=torch.bool, device=rows_ND.device)
    other_N = torch.arange(2 * count, device=rows_ND.device).roll(count)
    log_epsilon = rows_ND.new_full((), epsilon).log()  # -inf, which adds nothing, for 0
    log_sums_N = similarity_NN.masked_fill(itself_NN, -torch.inf).logsumexp(1).logaddexp(log_epsilon)
    log_found_N = similarity_NN.gather(1, other_N[:, None])[:, 0] - log_sums_N
    return -log_found_N.logaddexp(log_epsilon).mean()
