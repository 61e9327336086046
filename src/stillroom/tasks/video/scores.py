"""How good answers to clips are: accuracy by head and of all heads at once, and calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15


class Accuracy(NamedTuple):
    """In %, with standard errors sqrt(p (100 - p) / N).

    Args:
        top1, top5: of the first answer, and of the first min(5, C).
        top1_error, top5_error: their standard errors.
    """

    top1: float
    top5: float
    top1_error: float
    top5_error: float


def over_views(logits_NVC: Tensor) -> Tensor:
    """The answer [N, C] to several views [N, V, C] of each video: the mean of the logits, before any softmax."""
    return logits_NVC.float().mean(1)


def hits(logits_NC: Tensor, labels_N: Tensor, first: int = 1) -> Tensor:
    """Whether the label is among the `first` answers (all, where there are fewer): bool [N]."""
    best_NK = logits_NC.topk(min(first, logits_NC.shape[1])).indices
    return (best_NK == labels_N[:, None]).any(1)


def accuracy(logits_NC: Tensor, labels_N: Tensor) -> Accuracy:
    """Top-1 and top-5 of answers [N, C]."""
    top1, top5 = (100 * float(hits(logits_NC, labels_N, first).float().mean()) for first in (1, 5))
    top1_error, top5_error = (math.sqrt(share * (100 - share) / len(labels_N)) for share in (top1, top5))
    return Accuracy(top1, top5, top1_error, top5_error)


def all_right(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """Whether every head's first answer is right, bool [N]: an action is its verb and its noun."""
    return torch.stack([hits(logits[head], labels[head]) for head in logits]).all(0)


def calibration_error(logits_NC: Tensor, labels_N: Tensor, bins: int = BINS) -> float:
    """Expected calibration error in [0, 1] of answers [N, C].

        sum over bins of n_bin / N * | accuracy - mean confidence |

    over equal bins (k / bins, (k + 1) / bins] of the largest probability; one of exactly 0 is in none.
    """
    confidence_N, answer_N = logits_NC.float().softmax(1).max(1)
    right_N = (answer_N == labels_N).float()
    edges = torch.linspace(0, 1, bins + 1)
    bin_N = torch.bucketize(confidence_N, edges) - 1  # right ends belong to their bin
    inside = bin_N >= 0
    gaps = torch.zeros(bins).index_add_(0, bin_N[inside], (right_N - confidence_N)[inside])
    return float(gaps.abs().sum() / len(labels_N))


def with_temperature(logits_NC: Tensor, labels_N: Tensor) -> tuple[Tensor, float]:
    """The logits divided by the temperature of the least cross-entropy, and that temperature: in two halves, each by the other's.

    So that nothing is measured on what it was fitted to: even samples are scaled by the odd ones' temperature and the other way round.
    """
    scaled, found = torch.empty_like(logits_NC, dtype=torch.float32), []
    halves = (slice(0, None, 2), slice(1, None, 2))
    candidates = torch.logspace(-1.5, 1.5, 121)
    for fitted, used in (halves, halves[::-1]):
        log_probabilities = (logits_NC[fitted].float() / candidates[:, None, None]).log_softmax(-1)
        losses = -log_probabilities.gather(2, labels_N[fitted][None, :, None].expand(len(candidates), -1, 1)).mean((1, 2))
        temperature = float(candidates[losses.argmin()])
        scaled[used] = logits_NC[used].float() / temperature
        found.append(temperature)
    return scaled, sum(found) / 2
