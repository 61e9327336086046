"""Plain training on labels, and what all multi-label training has in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillroom.engine import Distiller, Losses
from stillroom.engine.distributed import world_size
from stillroom.losses.labels import summed_bce

if TYPE_CHECKING:
    from stillroom.tasks.images.batches import Batch


class MultiLabelDistiller(Distiller):
    """A distiller whose weight decay is for matrices and filters alone: biases and norms have none."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters of more than one dimension with the plan's decay, all others without."""
        learning = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in learning if p.ndim > 1]},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]


class Supervised(MultiLabelDistiller):
    """A student trained on labels alone: binary cross-entropy, summed over the labels and the whole batch of all processes.

    Args:
        student: network from images [B, 3, H, W] to logits [B, K].
    """

    def losses(self, batch: Batch) -> Losses:
        """The cross-entropy as the only task term."""
        # DDP takes the mean of the processes' gradients; the sum over the batch is that times their number.
        return Losses(task={"bce": world_size() * summed_bce(self.student(batch.images), batch.labels)})
