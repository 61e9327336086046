"""How far a student's projected features are from a teacher's: by direction, by value, and by what they resemble in a queue."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, normalize, smooth_l1_loss

from stillroom.errors import at_least, positive
from stillroom.losses.precision import in_one_type

_BETA = 2.0  # Wei et al. 2022, section 3.3: where the loss turns from a square into a straight line


def smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 (beta = 2) to the teacher's features, whitened by a layer norm over channels without scale and shift; a mean over elements.

    Args:
        student: projected features [B, D] or maps [B, D, H, W].
        teacher: the same shape. No gradient reaches it.

    Source: Wei et al. 2022, section 3.
    """
    student, teacher = in_one_type(student, teacher.detach())
    whitened = layer_norm(teacher.movedim(1, -1), teacher.shape[1:2]).movedim(-1, 1)
    return smooth_l1_loss(student, whitened, beta=_BETA)


class Queue(nn.Module):
    """The latest embeddings of a teacher, and the cross-entropy of two softmaxes over them.

    With z_T, z_S of unit length, and D the queue and z_T itself behind it,

        p_T = softmax( z_T D / tau_T ),   p_S = softmax( z_S D / tau_S ),   loss = mean_b( - p_T . log p_S )

    The rows of the queue that were not filled yet take no part.

    Args:
        size: K, rows of the queue.
        width: D, of the embeddings.
        student_temperature, teacher_temperature: tau_S and tau_T.

    Raises:
        InputError: a size below 1, or a temperature that is not above 0.

    Source: Fang et al. 2021 (SEED), eqs. 1 to 5; K = 65 536, tau_S = 0.2, tau_T = 0.01 there.
    """

    rows: Tensor
    filled: Tensor
    place: Tensor

    def __init__(self, size: int, width: int, *, student_temperature: float = 0.2, teacher_temperature: float = 0.01) -> None:
        super().__init__()
        self.student_temperature = positive("queue_temperatures", student_temperature)
        self.teacher_temperature = positive("queue_temperatures", teacher_temperature)
        self.register_buffer("rows", torch.zeros(at_least("queue_size", size, 1), width))
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
        """The loss of projected embeddings against the queue as it is; float32 at least. No gradient reaches the teacher."""
        with torch.autocast(student_BD.device.type, enabled=False):
            student_BD, teacher_BD = in_one_type(student_BD, teacher_BD.detach())
            student_BD, teacher_BD = normalize(student_BD, dim=1), normalize(teacher_BD, dim=1)
            return -(self._among(teacher_BD, teacher_BD, self.teacher_temperature).exp() * self._logs(student_BD, teacher_BD)).sum(1).mean()

    def _logs(self, student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
        """log p_S, 0 at rows that take no part, where p_T is 0 as well."""
        logs_BK = self._among(student_BD, teacher_BD, self.student_temperature)
        return torch.where(logs_BK.isinf(), 0.0, logs_BK)

    def _among(self, rows_BD: Tensor, own_BD: Tensor, temperature: float) -> Tensor:
        """Log-softmax over the queue and, last, the sample's own teacher embedding; [B, K + 1]."""
        # of a copy: the rows change before the backward pass
        to_queue_BK = (rows_BD @ self.rows.to(rows_BD.dtype, copy=True).T).masked_fill(~self.filled, -torch.inf)
        to_own_B1 = (rows_BD * own_BD).sum(1, keepdim=True)
        return (torch.cat((to_queue_BK, to_own_B1), 1) / temperature).log_softmax(1)

    @torch.no_grad()
    def push(self, teacher_BD: Tensor) -> None:
        """Puts a batch's embeddings (those of all processes, in one order) in the place of the oldest."""
        size = len(self.rows)
        newest_BD = normalize(teacher_BD.float(), dim=1)[-size:]
        places_B = (self.place + torch.arange(len(newest_BD), device=self.rows.device)) % size
        self.rows[places_B] = newest_BD.to(self.rows.dtype)
        self.filled[places_B] = True
        self.place.copy_((self.place + len(newest_BD)) % size)
