"""Plain training: images and their texts are to find each other among all others of the batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillroom.engine import Distiller, Losses
from stillroom.errors import positive
from stillroom.modules.clip import MOST_SCALE, Clip
from stillroom.modules.clip_resnet import ResNetShape
from stillroom.tasks.imagetext.contrast import contrastive_loss

if TYPE_CHECKING:
    from stillroom.tasks.imagetext.batches import Batch

# beta_2 and epsilon of AdamW, as CLIPs are trained: with transformers alone, and with a ResNet for images
_OF_TRANSFORMERS, _OF_RESNETS = (0.98, 1e-6), (0.999, 1e-8)


class Supervised(Distiller):
    """A CLIP trained on pairs by the contrastive loss.

    Weight decay is for tensors of two dimensions and more: norms, biases and the scale have none. A learned log-scale is clamped to
    [0, ln 100] after each step.

    Args:
        student: whose embeddings are compared.
        scale: gamma, if it is to stay as it is; None to learn it.

    Raises:
        InputError: the scale is not above 0.
    """

    student: Clip

    def __init__(self, student: Clip, teacher: Any = None, *, scale: float | None = None) -> None:
        super().__init__(student, teacher)
        self.fixed_scale = None if scale is None else positive("scale", scale)
        student.logit_scale.requires_grad_(scale is None)
        if scale is not None:
            with torch.no_grad():
                student.logit_scale.fill_(math.log(scale))

    def losses(self, batch: Batch) -> Losses:
        """The contrastive loss as the only task term."""
        image_BD, text_BD = self.student(batch.inputs)
        return Losses(task={"contrast": contrastive_loss(image_BD, text_BD, self.scale)})

    @property
    def scale(self) -> Tensor | float:
        """gamma."""
        return self.student.scale if self.fixed_scale is None else self.fixed_scale

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Two: matrices, with the plan's decay; all else, without."""
        beta_2, epsilon = _OF_RESNETS if isinstance(self.student.shape.image, ResNetShape) else _OF_TRANSFORMERS
        betas = {"betas": (self.plan.momentum, beta_2), "eps": epsilon}
        learning = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        matrices, others = ([p for p in learning if (p.ndim >= 2) == wanted] for wanted in (True, False))
        return [{"params": matrices, **betas}, {"params": others, "weight_decay": 0.0, **betas}]

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """The step, and what is clamped after it, before anything is written to a checkpoint."""
        super().optimizer_step(*arguments, **options)
        self.clamp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Brings a learned scale back to where it may be; to be called after each step of a loop of one's own."""
        if self.fixed_scale is None:
            self.student.logit_scale.clamp_(0, MOST_SCALE)
