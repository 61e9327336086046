"""Plain training on labels, and how every network over clips answers: with the mean of its logits over a clip's views."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Losses
from stillroom.losses.precision import at_least_float32
from stillroom.tasks.video.batches import VideoBatch
from stillroom.tasks.video.scores import over_views


def averaged_logits(network: nn.Module, batch: VideoBatch) -> dict[str, Tensor]:
    """[B, C_a] by head: the network's answers to every view, averaged before any softmax."""
    count = len(batch.ids)
    answers: Mapping[str, Tensor] = network(batch.inputs)
    return {head: over_views(logits.unflatten(0, (count, -1))) for head, logits in answers.items()}


class VideoDistiller(Distiller):
    """A distiller whose student answers with logits by head.

    Args:
        student: network from [B, F, 3, S, S], or what else its modality is, to logits [B, C_a] by head.
    """

    def predict(self, batch: VideoBatch) -> dict[str, Tensor]:
        """Logits [B, C_a] by head, averaged over the views."""
        return averaged_logits(self.student, batch)


class Supervised(VideoDistiller):
    """A network trained on labels, by the mean of the heads' cross-entropies; of a network without some head over those that it has."""

    def losses(self, batch: VideoBatch) -> Losses:
        """The cross-entropy as the only task term."""
        answers: Mapping[str, Tensor] = self.student(batch.inputs)
        terms = [cross_entropy(at_least_float32(logits), batch.labels[head]) for head, logits in answers.items()]
        return Losses(task={"ce": torch.stack(terms).mean()})
