"""Training: the student's pictures are pulled to where the diffusion model, at the chosen time steps, sees the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from stillroom.engine import Distiller, Losses
from stillroom.engine.distributed import world_size
from stillroom.errors import InputError, at_least, at_least_zero, one_of
from stillroom.methods.sdd.gradient import Distilled, resized, score_distillation
from stillroom.methods.sdd.mapper import LatentEditor, code_l2
from stillroom.methods.sdd.regularisers import identity_loss, image_l2, unit_embedding
from stillroom.tasks.editing.diffusion import DiffusionTeacher, check_step

Noise = Literal["normal", "zeros"]
_RANDOM = 0.02, 0.98  # share of T between which steps are drawn where none was chosen


class SDD(Distiller):
    """A feed-forward student trained for one prompt by a frozen diffusion model's gradient.

        L = L_sds + L_2 + L_id

    One call of the teacher a step. L_sds is a sum over the batch of all processes and over all elements, L_2 and L_id are means: as in the
    released code, what they weigh beside each other depends on the batch.

    Args:
        student: from pictures [B, 3, H, W] in [-1, 1] to edited ones, as `Editor`; or a `LatentEditor`, whose inputs are codes.
        teacher: the diffusion model.
        condition: of the prompt, `teacher.condition(prompt)`.
        timesteps: one of them is drawn for each batch; None draws evenly from 2 to 98 % of T, the ends included.
        guidance: s, of classifier-free guidance.
        loss_weight: of L_sds.
        l2_weight: of the mean squared difference between edited and unedited pictures, or codes; 0 for none.
        top_k: keep so many of the batch's largest gradients at the latents; None keeps all.
        teacher_size: height and width that pictures are resized to for the teacher; None leaves them.
        embedding: frozen, from pictures to what is to stay the same, such as a face's identity; None for no identity loss.
        identity_weight: of the identity loss, where there is an embedding.
        noise: what is added: ``normal``, or ``zeros``.
        through_teacher: the whole objective with the network's Jacobian; for small teachers.

    Raises:
        InputError: a number out of its range, or options that exclude each other.
    """

    teacher: Any  # a DiffusionTeacher: no network, and known by its protocol alone

    def __init__(
        self,
        student: nn.Module,
        teacher: DiffusionTeacher,
        condition: Tensor,
        *,
        timesteps: Sequence[int] | None = None,
        guidance: float = 100.0,
        loss_weight: float = 1.0,
        l2_weight: float = 10.0,
        top_k: int | None = None,
        teacher_size: int | None = None,
        embedding: nn.Module | None = None,
        identity_weight: float = 1.0,
        noise: Noise = "normal",
        through_teacher: bool = False,
    ) -> None:
        super().__init__(student)
        self.teacher = teacher
        self.condition = condition
        total = len(teacher.alphas_cumprod)
        if timesteps is not None and not len(timesteps):
            raise InputError("timesteps", [], "at least one time step, or none for random ones")
        self.timesteps = None if timesteps is None else [check_step(int(t), total, "timesteps") for t in timesteps]
        self.guidance, self.loss_weight = at_least_zero("guidance", guidance), at_least_zero("loss_weight", loss_weight)
        self.l2_weight, self.identity_weight = at_least_zero("l2_weight", l2_weight), at_least_zero("identity_weight", identity_weight)
        self.top_k = None if top_k is None else at_least("top_k", top_k, 1)
        self.teacher_size = None if teacher_size is None else at_least("teacher_size", teacher_size, 1)
        one_of("noise", noise, get_args(Noise))
        self.noise: Noise = noise
        if through_teacher and top_k is not None:
            raise InputError("top_k", top_k, "none beside through_teacher: there is no gradient at the latents to thin out")
        self.through_teacher = through_teacher
        # Behind a function: no weights of the student's checkpoint, and none that learns.
        self._embedding: Callable[[Tensor], Tensor] | None = None if embedding is None else _frozen(embedding)

    def losses(self, batch: Any) -> Losses:
        """L_sds as the distillation term, the regularisers as task terms."""
        return self._asked(batch)[0]

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """As every distiller's; besides it records mean((eps_hat - eps)^2), which is no loss and no measure of the edit."""
        losses, distilled = self._asked(batch)
        self.guard.watch(losses.terms, batch.ids, self.progress.step)
        self.check_learns(losses)
        terms = {name: term.detach() for name, term in losses.terms.items()}
        return {"loss": losses.total, "terms": terms, "figures": {"noise/error": distilled.value}}

    def draw_step(self) -> int:
        """The time step of the next batch; from the CPU's generator, so that no device is waited for."""
        if self.timesteps is not None:
            return self.timesteps[int(torch.randint(len(self.timesteps), ()))] if len(self.timesteps) > 1 else self.timesteps[0]
        total = len(self.teacher.alphas_cumprod)
        low, high = (min(int(share * total), total - 1) for share in _RANDOM)
        return int(torch.randint(low, high + 1, ()))

    def _asked(self, batch: Any) -> tuple[Losses, Distilled]:
        inputs = batch.inputs
        if isinstance(self.student, LatentEditor):
            before, after = self.student.both_codes(inputs)
            images: Tensor = self.student.generator(after)
            task = {"l2": code_l2(before, after, self.l2_weight)}
        else:
            images = self.student(inputs)
            task = {"l2": image_l2(images, inputs, self.l2_weight)}
        if not self.l2_weight:
            task = {}
        if self._embedding is not None:
            unedited = self.student.unedited(inputs) if isinstance(self.student, LatentEditor) else inputs
            with torch.no_grad():
                source = unit_embedding(self._embedding(unedited))
            task["identity"] = identity_loss(unit_embedding(self._embedding(images)), source, self.identity_weight)
        distilled = score_distillation(
            self.teacher,
            resized(images.float(), self.teacher_size),
            self.noise,
            self.draw_step(),
            self.condition,
            guidance=self.guidance,
            loss_weight=self.loss_weight,
            top_k=self.top_k,
            through_teacher=self.through_teacher,
        )
        # DDP takes the mean of the processes' gradients; the sum over the batch is that times their number.
        return Losses(task=task, distill={"sds": world_size() * distilled.loss}), distilled


def _frozen(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network in eval mode, which learns nothing and follows its inputs' device."""
    network.eval().requires_grad_(False)

    def answer(images: Tensor) -> Tensor:
        found: Tensor = network.to(images.device)(images)
        return found

    return answer
