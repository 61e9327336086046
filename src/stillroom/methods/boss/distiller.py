"""What a trial trains (section 3 of BOSS's specification): labels, and the distance from an earlier trial's raw answers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from stillroom.engine import Distiller, Losses, Teacher
from stillroom.errors import share
from stillroom.losses.precision import at_least_float32, in_one_type
from stillroom.tasks.images.batches import Batch


def consistency(logits_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """Mean over all B * C raw logits of the squared difference between student and teacher; no softmax, no temperature.

    Args:
        logits_BC: the student's.
        teacher_BC: the teacher's. No gradient reaches them.
    """
    return mse_loss(*in_one_type(logits_BC, teacher_BC.detach()))


class BOSS(Distiller):
    """Self-distillation from an earlier trial: L = alpha * CE(z, y) + (1 - alpha) * MSE(z, z_T).

    The teacher has the same architecture, and sees the same changed batch in eval mode.

    Args:
        student: network from images [B, 3, H, W] to logits [B, C].
        teacher: the earlier trial.
        alpha: balance of labels and teacher, from 0 to 1; 1 is labels alone, and the teacher is not asked.

    Raises:
        InputError: alpha is not from 0 to 1.
    """

    teacher: Teacher

    def __init__(self, student: nn.Module, teacher: Teacher | nn.Module, *, alpha: float = 0.5) -> None:
        super().__init__(student, teacher)
        self.alpha = share("alpha", alpha)

    def losses(self, batch: Batch) -> Losses:
        """The cross-entropy, averaged over the batch, and the consistency with the teacher."""
        logits_BC = self.student(batch.images)
        task = {"ce": self.alpha * cross_entropy(at_least_float32(logits_BC), batch.labels)}
        if self.alpha == 1:
            return Losses(task=task)
        return Losses(task=task, distill={"consistency": (1 - self.alpha) * consistency(logits_BC, self.teacher(batch))})
