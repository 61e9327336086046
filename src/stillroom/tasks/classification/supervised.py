"""Plain training on labels."""

from __future__ import annotations

from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Losses
from stillroom.losses.precision import at_least_float32
from stillroom.tasks.images.batches import Batch


class Supervised(Distiller):
    """A student trained on labels alone: cross-entropy, averaged over the batch.

    Args:
        student: network from images [B, 3, H, W] to logits [B, C].
    """

    def losses(self, batch: Batch) -> Losses:
        """The cross-entropy as the only task term."""
        return Losses(task={"ce": cross_entropy(at_least_float32(self.student(batch.images)), batch.labels)})
