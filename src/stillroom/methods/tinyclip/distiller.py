"""Training a CLIP on another's similarities: as it is, under learnable masks, and on another's embeddings for comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillroom.engine import Losses, Teacher
from stillroom.errors import InputError, at_least, at_least_zero, positive
from stillroom.methods.tinyclip.affinity import affinity_loss
from stillroom.methods.tinyclip.masks import TowerMasks, sparsity_loss, target_sparsity
from stillroom.modules.clip import Clip
from stillroom.tasks.imagetext import Supervised, contrastive_loss

if TYPE_CHECKING:
    from stillroom.tasks.imagetext import Batch

SCALE = 50.0  # gamma and gamma' of the released recipes


class TinyCLIP(Supervised):
    """A CLIP that mimics a teacher's affinities, and no labels.

        L = alpha L_distill + (1 - alpha) L_clip

    Args:
        student: of whatever towers.
        teacher: a frozen CLIP; its embeddings may have another length.
        scale: gamma and gamma', fixed; None to learn the student's, clamped to [1, 100], and leave the teacher its own.
        affinity_share: alpha, of the affinity mimicking; the rest is the contrastive loss.

    Raises:
        InputError: a number out of its range, or a teacher that is no CLIP.
    """

    teacher: Teacher

    def __init__(self, student: Clip, teacher: Teacher | nn.Module, *, scale: float | None = SCALE, affinity_share: float = 1.0) -> None:
        super().__init__(student, teacher, scale=scale)
        if not 0 <= affinity_share <= 1:
            raise InputError("affinity_share", affinity_share, "a share from 0 to 1")
        self.affinity_share = affinity_share
        network = self.teacher.networks[0]
        if not isinstance(network, Clip):
            raise InputError("teacher", type(network).__name__, "a CLIP")
        self.teacher_scale = float(network.scale.detach()) if scale is None else scale

    def losses(self, batch: Batch) -> Losses:
        """The affinities' cross-entropy, and what is left for the contrastive loss."""
        image_BD, text_BD = self.embeddings(batch)
        teacher_BE = self.teacher(batch)
        mimicked = affinity_loss(image_BD, text_BD, teacher_BE[0], teacher_BE[1], self.scale, self.teacher_scale)
        rest = 1 - self.affinity_share
        contrast = {"contrast": rest * contrastive_loss(image_BD, text_BD, self.scale)} if rest else {}
        return Losses(task=contrast, distill={"affinity": self.affinity_share * mimicked})

    def embeddings(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The student's, of unit length."""
        found: tuple[Tensor, Tensor] = self.student(batch.inputs)
        return found


class Masking(TinyCLIP):
    """The mask phase of automatic inheritance: a model of the teacher's size that learns which of its parts to drop.

        L = L_distill + L_sparsity

    Weights' rates rise linearly to their peak over the whole phase. The masks' parameters have a rate of their own, and so have the
    multipliers, upwards. What is scored is the model under its decided masks.

    Args:
        student: that starts as the teacher, or as what an earlier stage left in the leading slices.
        teacher: as `TinyCLIP`.
        masks: of the image tower and of the text tower.
        start, target: expected sparsity q from the first step on, and at the ramp's end.
        ramp: steps of it.
        mask_lr: of the masks and of the multipliers.
        two_sided, joint: see `sparsity_loss`; not joint, each tower has its own term.
        options: of `TinyCLIP`.

    Raises:
        InputError: a number out of its range, or a target below the start.
    """

    def __init__(
        self,
        student: Clip,
        teacher: Teacher | nn.Module,
        masks: tuple[TowerMasks, TowerMasks],
        *,
        start: float,
        target: float,
        ramp: int,
        mask_lr: float,
        two_sided: bool = False,
        joint: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(student, teacher, **options)
        if not 0 <= start <= target < 1:
            raise InputError("target", target, f"a share from {start:g}, where it starts, and below 1")
        self.start, self.target, self.sparsity_ramp = start, target, at_least("sparsity_ramp", ramp, 0)
        self.mask_lr, self.two_sided, self.joint = positive("mask_lr", mask_lr), two_sided, joint
        self.image_masks, self.text_masks = masks
        self._sparsity = torch.zeros(())

    def losses(self, batch: Batch) -> Losses:
        """The affinities' cross-entropy under drawn masks, and what sparsity is still wanting."""
        found = super().losses(batch)
        towers = [self.image_masks, self.text_masks]
        wanted = target_sparsity(self.progress.step, self.start, self.target, self.sparsity_ramp)
        groups = [towers] if self.joint else [[tower] for tower in towers]
        terms, _ = zip(*(sparsity_loss(group, wanted, two_sided=self.two_sided) for group in groups), strict=True)
        self._sparsity = sparsity_loss(towers, wanted)[1].detach()
        return Losses(task=found.task, distill={**found.distill, "sparsity": torch.stack(terms).sum()})

    def embeddings(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Under masks that are drawn, in each process others."""
        found: tuple[Tensor, Tensor] = self.student(batch.inputs, self.image_masks.sample(), self.text_masks.sample())
        return found

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Under the decided masks."""
        found: tuple[Tensor, Tensor] = self.student(batch.inputs, self.image_masks.decide(), self.text_masks.decide())
        return found

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """With the expected sparsity for the record."""
        return {**super().training_step(batch, batch_idx), "figures": {"sparsity/expected": self._sparsity}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The weights', and the masks' and the multipliers', which ascend."""
        own = {"lr": self.mask_lr, "weight_decay": 0.0, "betas": (0.9, 0.999), "eps": 1e-8, "own_rate": True}
        towers = (self.image_masks, self.text_masks)
        masks = {"params": [a for tower in towers for a in tower.parameters_of_masks], **own}
        multipliers = {"params": [m for tower in towers for m in tower.multipliers], **own, "maximize": True}
        return [*super().parameter_groups(), masks, multipliers]

    def rate(self, base_lr: float) -> float:
        """Rises over the whole phase."""
        return base_lr * (self.progress.step + 1) / self.progress.steps

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The masks' rate stays what it is."""
        super().on_train_batch_start(batch, batch_idx)
        optimizers = self.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                if group.get("own_rate"):
                    group["lr"] = self.mask_lr

    def clamp(self) -> None:
        """The masks' parameters, too."""
        super().clamp()
        for tower in (self.image_masks, self.text_masks):
            tower.clamp_()

    def companions(self) -> dict[str, nn.Module]:
        """The masks, which the cut is made by."""
        return {"image_masks": self.image_masks, "text_masks": self.text_masks}


class Features(Supervised):
    """For comparison: each tower's embeddings are to be the teacher's, by themselves.

        L = mean_B ( ||I - I'||^2 + ||T - T'||^2 )

    Raises:
        InputError: embeddings of another length.
    """

    teacher: Teacher

    def __init__(self, student: Clip, teacher: Teacher | nn.Module, *, scale: float | None = SCALE) -> None:
        super().__init__(student, teacher, scale=SCALE if scale is None else at_least_zero("scale", scale))
        network = self.teacher.networks[0]
        if not isinstance(network, Clip) or network.shape.embedding != student.shape.embedding:
            raise InputError("student", f"embeddings of length {student.shape.embedding}", "the teacher's, to be compared number by number")

    def losses(self, batch: Batch) -> Losses:
        """The squared distance of both embeddings."""
        own, wanted = self.student(batch.inputs), self.teacher(batch)
        distances = [(mine.float() - theirs.float()).square().sum(1).mean() for mine, theirs in zip(own, wanted, strict=True)]
        return Losses(task={}, distill={"features": torch.stack(distances).sum()})
