"""DINO's loss: the student predicts, from one view, what the centred and sharpened teacher says of another view of the same image."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from stillroom.engine.distributed import world_size
from stillroom.errors import InputError, at_least, positive
from stillroom.losses.precision import in_one_type


def self_distillation_loss(
    student: Tensor, teacher: Tensor, center: Tensor, *, views: int, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """The cross-entropy between the teacher's answer to each global view v and the student's to each other view u.

        q_vb = softmax( (t_vb - c) / tau_t )    p_ub = softmax( s_ub / tau_s )
        L = mean over pairs u != v, mean over b of  - q_vb . log p_ub

    With two views and no others this is 1/2 [ CE(q_2, p_1) + CE(q_1, p_2) ].

    Args:
        student: s, logits [U B, K]; first view 1 of all B images, then view 2 of all, ...; the global views come first.
        teacher: t, logits [V B, K] of the global views; no gradient reaches them.
        center: c, [1, K] or [K].
        views: U, of which V >= 1 are global.
        student_temperature, teacher_temperature: tau_s and tau_t, above 0.

    Returns:
        A scalar, float32 at least: the mean over pairs and images of a sum over prototypes.

    Raises:
        InputError: the shapes do not fit, or no two views differ.

    Source: specification, "Loss".
    """
    images = len(student) // at_least("views", views, 2)
    if student.shape[-1] != teacher.shape[-1] or images * views != len(student) or not images or len(teacher) % images:
        raise InputError("teacher", f"{list(teacher.shape)} beside a student's {list(student.shape)}", f"[V B, K] beside [{views} B, K]")
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = in_one_type(student, teacher.detach())
        log_p_UBK = (student / student_temperature).log_softmax(-1).unflatten(0, (views, images))
        q_VBK = ((teacher - center) / teacher_temperature).softmax(-1).unflatten(0, (-1, images))
        cross_VU = -torch.einsum("vbk,ubk->vu", q_VBK, log_p_UBK) / images
        return cross_VU[~torch.eye(*cross_VU.shape, dtype=torch.bool, device=cross_VU.device)].mean()


class DINOLoss(nn.Module):
    """`self_distillation_loss`, with the centre that it keeps.

    In train mode the centre follows after the loss was computed with the old one:

        c <- m_c c + (1 - m_c) mean of t over both views, all images and all processes

    Args:
        prototypes: K.
        student_temperature: tau_s.
        teacher_temperature: tau_t after its warm-up.
        warmup_teacher_temperature: tau_t in the first epoch.
        warmup_teacher_epochs: E_w, epochs in which it goes from the one to the other, both included.
        center_momentum: m_c.

    Raises:
        InputError: a number out of its range.

    Source: specification, "Loss", "Centre", "Teacher temperature".
    """

    center: Tensor

    def __init__(
        self,
        prototypes: int,
        *,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_epochs: int = 0,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.student_temperature = positive("student_temperature", student_temperature)
        self.last_temperature = positive("teacher_temperature", teacher_temperature)
        self.first_temperature = positive("warmup_teacher_temperature", warmup_teacher_temperature)
        self.warmup = at_least("warmup_teacher_epochs", warmup_teacher_epochs, 0)
        if not 0 <= center_momentum < 1:
            raise InputError("center_momentum", center_momentum, "a number from 0 and below 1")
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(1, at_least("prototypes", prototypes, 2)))

    def teacher_temperature(self, epoch: int) -> float:
        """tau_t in an epoch, counted from 0."""
        if epoch >= self.warmup:
            return self.last_temperature
        return self.first_temperature + (self.last_temperature - self.first_temperature) * epoch / max(self.warmup - 1, 1)

    def forward(self, student: Tensor, teacher: Tensor, *, views: int = 2, epoch: int = 0) -> Tensor:
        """The loss of logits as `self_distillation_loss` takes them, in an epoch counted from 0."""
        temperatures = {"student_temperature": self.student_temperature, "teacher_temperature": self.teacher_temperature(epoch)}
        loss = self_distillation_loss(student, teacher, self.center, views=views, **temperatures)
        if self.training:
            self.follow(teacher)
        return loss

    @torch.no_grad()
    def follow(self, teacher: Tensor) -> None:
        """Moves the centre towards the mean of the logits [R, K], R equal in all processes."""
        with torch.autocast(teacher.device.type, enabled=False):
            total = teacher.detach().to(self.center.dtype).sum(0, keepdim=True)
            if world_size() > 1:
                distributed.all_reduce(total)
            mean = total / (len(teacher) * world_size())
            # not in place: the loss's graph may still hold the old one
            self.center = self.center * self.center_momentum + mean * (1 - self.center_momentum)

    def extra_repr(self) -> str:
        """For people, and for the fingerprint of a stage."""
        temperatures = f"{self.student_temperature:g}, {self.first_temperature:g} to {self.last_temperature:g} in {self.warmup} epochs"
        return f"{self.center.shape[1]} prototypes, temperatures {temperatures}, center_momentum={self.center_momentum:g}"
