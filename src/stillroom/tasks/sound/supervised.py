"""Plain training on the truth, and the distance that a student has to a teacher's answers: the same for all networks of a target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from stillroom.engine import Distiller, Losses
from stillroom.tasks.sound.losses import class_distance, inverse_huber, occupancy_loss
from stillroom.tasks.sound.networks import Answers, DenseNetwork
from stillroom.tasks.sound.recordings import Target

if TYPE_CHECKING:
    from stillroom.tasks.sound.batches import Batch

AUXILIARY = 0.2  # weight of the auxiliary head of classes


def distance(answers: Answers, wanted: Tensor, target: Target, *, known: Tensor | None = None) -> Tensor:
    """L_p: how far answers are from what is wanted, a scalar.

    Args:
        answers: of a network.
        wanted: metres [B, H, W], classes [B, H, W] or probabilities [B, Q]; 0 metres and class 0 count nowhere.
        target: which of them.
        known: of depth: where it counts; by default where it is above 0.
    """
    if target == "depth":
        return inverse_huber(answers.main[:, 0], wanted, wanted > 0 if known is None else known)
    if target == "occupancy":
        return occupancy_loss(answers.main, wanted)
    found = class_distance(answers.main, wanted)
    return found if answers.auxiliary is None else found + AUXILIARY * class_distance(answers.auxiliary, wanted)


def as_wanted(answer: Tensor, target: Target) -> Tensor:
    """A teacher's answer as a student is to have it: metres, the most probable class, or probabilities."""
    if target == "segmentation":
        return answer.argmax(1) + 1
    return answer[:, 0] if target == "depth" else answer.sigmoid()


def answers_of(network: nn.Module, batch: Batch) -> Answers:
    """The network's answers; of somebody's own network, its only one."""
    return network.answers(batch.inputs)[0] if isinstance(network, DenseNetwork) else Answers(network(batch.inputs), None)


class Supervised(Distiller):
    """A network that sees or hears, trained on the truth; it reads a batch's inputs."""

    def losses(self, batch: Batch) -> Losses:
        """The distance as the only task term."""
        return Losses(task={batch.target: distance(answers_of(self.student, batch), batch.truth, batch.target)})
