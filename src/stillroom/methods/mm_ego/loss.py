"""What the student minimises: the ensemble's softened answers to every head, and its labels where they are asked for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stillroom.errors import InputError
from stillroom.losses.logits import kd_loss
from stillroom.losses.precision import at_least_float32


def heads_of(weights: Mapping[str, float]) -> tuple[str, ...]:
    """A: the heads whose weight is not zero.

    Raises:
        InputError: a weight below zero, or none above it.
    """
    if any(not 0 <= weight < float("inf") for weight in weights.values()):
        raise InputError("head_weights", dict(weights), "finite numbers of at least 0")
    chosen = tuple(head for head, weight in weights.items() if weight)
    if not chosen:
        raise InputError("head_weights", dict(weights), "at least one head with a weight above 0")
    return chosen


def distillation_term(
    student: Mapping[str, Tensor], ensemble: Mapping[str, Tensor], weights: Mapping[str, float], temperature: float
) -> Tensor:
    """L_KD = 1/|A| sum_a tau^2 KL( softmax(T_a / tau) || softmax(s_a / tau) ), each divergence a mean over the batch.

    The heads' weights say which of them count (A), and scale nothing here.

    Args:
        student: s_a, logits [B, C_a] by head.
        ensemble: T_a, likewise. No gradient reaches it.
        weights: of the heads.
        temperature: tau > 0.

    Returns:
        A scalar, float32 or wider.

    Raises:
        InputError: no head counts, or the temperature is not above 0.

    Source: section "Student training" of the specification; from the released code.
    """
    chosen = heads_of(weights)
    return torch.stack([kd_loss(student[head], ensemble[head], temperature) for head in chosen]).mean()


def label_term(student: Mapping[str, Tensor], labels: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """L_GT = 1/|A| sum_a weight_a CE(s_a, y_a), each cross-entropy a mean over the batch; float32 or wider.

    Args:
        student: s_a, logits [B, C_a] by head.
        labels: y_a, int64 [B] by head.
        weights: of the heads.

    Raises:
        InputError: no head counts.
    """
    chosen = heads_of(weights)
    terms = [weights[head] * cross_entropy(at_least_float32(student[head]), labels[head]) for head in chosen]
    return torch.stack(terms).mean()
