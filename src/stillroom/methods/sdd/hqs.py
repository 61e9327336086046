"""HQS, the Hybrid Quality Score: which time steps give a gradient that is about the wanted edit, found before any training.

Of each image and each time step t of a grid, with d_t the teacher's gradient at the image's pixels:

    H_t = - sum_i p_i log p_i,   p = softmax over all pixels of mean_c |d_t|        low: the gradient is gathered on some region
    N_t = sum |d_t|                                                                 low: there is next to no gradient
    HQS(t) = mean over images of (N'_t - H'_t)                                      ' : min-max over the grid, for each image

The paper joins both; the released code takes the least mean entropy alone.
"""

from __future__ import annotations

import logging
from typing import Literal, get_args

import torch
from torch import Tensor

from stillroom.errors import InputError, one_of

logger = logging.getLogger(__name__)

Indicator = Literal["hqs", "entropy", "l1"]
Rule = Literal["max", "min", "above", "below"]


def gradient_entropy(gradients: Tensor) -> Tensor:
    """H, in nats, of the gradients' spatial distribution; computed in float64, for softmax of small numbers is nearly uniform.

    Args:
        gradients: d, or |d|, [..., C, H, W].

    Returns:
        [...], float64; log(H W) where there is no gradient.
    """
    logits = gradients.double().abs().mean(-3).flatten(-2)
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def gradient_l1(gradients: Tensor) -> Tensor:
    """N = sum |d| of gradients [..., C, H, W]: [...], float64."""
    return gradients.double().abs().sum((-3, -2, -1))


def normalised(values_NT: Tensor) -> Tensor:
    """Min-max over the time steps of each image; 0 where they are all equal."""
    low, high = values_NT.aminmax(dim=-1, keepdim=True)
    span = high - low
    return torch.where(span > 0, (values_NT - low) / torch.where(span > 0, span, 1), 0.0)


def hybrid_quality(entropy_NT: Tensor, l1_NT: Tensor) -> Tensor:
    """HQS, float64 [T] in [-1, 1]; high is good.

    Args:
        entropy_NT, l1_NT: H and N of each image and time step.
    """
    return (normalised(l1_NT.double()) - normalised(entropy_NT.double())).mean(0)


def indicator_values(indicator: str, entropy_NT: Tensor, l1_NT: Tensor) -> Tensor:
    """What time steps are chosen by, float64 [T]: HQS, or the mean over images of the entropy or of the L1 norm as they are."""
    one_of("indicator", indicator, get_args(Indicator))
    if indicator == "hqs":
        return hybrid_quality(entropy_NT, l1_NT)
    return (entropy_NT if indicator == "entropy" else l1_NT).double().mean(0)


def selected(values_T: Tensor, timesteps_T: Tensor, rule: str, threshold: float | None = None) -> Tensor:
    """The time steps that a rule selects, ascending.

    Args:
        values_T: the indicator's.
        timesteps_T: the grid, int64.
        rule: "max" or "min", the first one on ties; "above" or "below" a threshold, maybe none.
        threshold: xi.

    Raises:
        InputError: an unknown rule, or one that wants a threshold and has none.
    """
    one_of("rule", rule, get_args(Rule))
    if rule in ("max", "min"):
        best = values_T.amax() if rule == "max" else values_T.amin()
        return timesteps_T[values_T == best][:1]
    if threshold is None:
        raise InputError("threshold", threshold, f"a number, for the rule {rule}")
    return timesteps_T[values_T > threshold if rule == "above" else values_T < threshold].sort().values


def chosen(entropy_NT: Tensor, l1_NT: Tensor, timesteps_T: Tensor, *, indicator: str, rule: str, threshold: float | None) -> list[int]:
    """The time steps to train at: those selected; where there are none, or nothing to select by, what is next best, with a warning.

    Args:
        entropy_NT, l1_NT, timesteps_T: what the search found.
        indicator, rule, threshold: see `indicator_values` and `selected`.
    """
    values_T = indicator_values(indicator, entropy_NT, l1_NT)
    if not l1_NT.any():
        middle = int(timesteps_T[len(timesteps_T) // 2])
        logger.warning(f"the teacher's gradient is zero at every time step of the search: t = {middle}, its middle, is taken")
        return [middle]
    found = selected(values_T, timesteps_T, rule, threshold)
    if len(found):
        return [int(t) for t in found]
    best = selected(values_T, timesteps_T, "max" if rule == "above" else "min")
    logger.warning(f"no time step has {indicator} {rule} {threshold}: t = {int(best)}, which comes nearest, is taken")
    return [int(best)]
