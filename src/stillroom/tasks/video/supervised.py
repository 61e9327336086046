"""Plain training on labels, and how every network over clips answers: with the mean of its logits over a clip's views."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Losses
from stillroom.errors import InputError
from stillroom.losses.precision import at_least_float32
from stillroom.tasks.video.batches import VideoBatch
from stillroom.tasks.video.scores import over_views


def averaged_logits(network: nn.Module, batch: VideoBatch) -> dict[str, Tensor]:
    """[B, C_a] by head: the network's answers to every view, averaged before any softmax."""
    count = len(batch.ids)
    answers: Mapping[str, Tensor] = network(batch.inputs)
    return {head: over_views(logits.unflatten(0, (count, -1))) for head, logits in answers.items()}


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


class VideoDistiller(Distiller):
    """A distiller whose student answers with logits by head.

    Args:
        student: network from [B, F, 3, S, S], or what else its modality is, to logits [B, C_a] by head.
    """

    def predict(self, batch: VideoBatch) -> dict[str, Tensor]:
        """Logits [B, C_a] by head, averaged over the views."""
        return averaged_logits(self.student, batch)


class Supervised(VideoDistiller):
    """A network trained on labels, by `label_term`; of a network without some head over those that it has.

    Args:
        student: the network.
        head_weights: by head; by default 1.
    """

    def __init__(self, student: nn.Module, head_weights: Mapping[str, float] | None = None) -> None:
        super().__init__(student)
        self.head_weights = None if head_weights is None else dict(head_weights)

    def losses(self, batch: VideoBatch) -> Losses:
        """The cross-entropy as the only task term."""
        answers: Mapping[str, Tensor] = self.student(batch.inputs)
        return Losses(task={"ce": label_term(answers, batch.labels, self.head_weights or dict.fromkeys(answers, 1.0))})
