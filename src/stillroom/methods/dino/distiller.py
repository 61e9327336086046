"""DINO's training iteration: the student learns from its own average, which is what is kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stillroom.engine import Distiller, Losses
from stillroom.engine.run.stage import CHECKPOINT_FILES
from stillroom.engine.schedule import cosine_between
from stillroom.errors import InputError, at_least, at_least_zero
from stillroom.methods.dino.backbone import for_any_size, with_stochastic_depth
from stillroom.methods.dino.gradients import clip_each, decay_groups
from stillroom.methods.dino.head import ProjectionHead, through
from stillroom.methods.dino.loss import DINOLoss
from stillroom.methods.dino.views import Crops
from stillroom.tasks.representation import Embedded, RepresentationData

GLOBAL = 2  # views that the teacher sees


class Neighbours(Protocol):
    """What may choose the image that the second view comes from: an `nn.Module`, whose buffers are in the checkpoint."""

    def others(self, epoch: int, ids: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Which image stands in each one's place; see `tasks.images.views.Others`."""

    def take_in(self, batch: Any, features: Tensor) -> dict[str, Tensor]:
        """Notes the teacher's features [2 B, D] of a batch; answers with figures for the record."""

    def keep_in(self, folder: Path) -> None:
        """Where files may be kept that a checkpoint refers to; said before the training begins or goes on."""

    def checkpoint(self) -> dict[str, Any]:
        """What a checkpoint keeps besides the buffers."""

    def restore(self, state: dict[str, Any]) -> None:
        """Takes it up again."""

    def companions(self) -> dict[str, nn.Module]:
        """What is kept beside the student when the training has ended."""


class DINO(Distiller):
    """A student that predicts, from one view of an image, the output of its own exponential moving average on another view.

        theta_t <- m theta_t + (1 - m) theta_s    after every optimiser step; parameters only

    The average is what DINO delivers. The house calls `student` what a training delivers and scores: here the average's backbone (the
    paper's teacher f_t), which never gets a gradient, and `learner` is what learns (the paper's student f_s and g_s).

    Args:
        student: backbone, images [B, 3, H, W] to features [B, D]; learner and average both start from it.
        width: D.
        prototypes: K, outputs of the heads.
        hidden: hidden width; of the heads.
        bottleneck: width of the rows that the prototypes are compared with.
        head_layers: linear layers of the heads before the prototypes.
        head_batch_norm: batch norms between these layers.
        freeze_gain: the prototypes keep length 1.
        student_temperature: tau_s of the learner's softmax.
        teacher_temperature: tau_t of the average's softmax, after its warm-up.
        warmup_teacher_temperature: tau_t in the first epoch.
        warmup_teacher_epochs: epochs in which tau_t goes from the one to the other.
        center_momentum: m_c, share of the old centre in the new one.
        ema_momentum: m, share of the old average in the new one, in the first step; it rises to 1 in half a cosine.
        final_weight_decay: what the weight decay rises to in half a cosine.
        clip_each_norm: largest norm of each parameter's gradient; larger ones are scaled down, each by itself. 0 for no clipping.
        freeze_last_layer: epochs in which the prototypes stay as they are.
        drop_path: rate at which the learner's last residual branches are dropped, those before it less; of timm's transformers.
        crops: which views are shown.

    Attributes:
        neighbours: what chooses the image that the second view comes from; None: it is the image itself.

    Raises:
        InputError: a number out of its range.

    Source: specification, "Baseline: the self-distillation machinery"; Caron et al. 2021.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        width: int,
        prototypes: int = 65536,
        hidden: int = 2048,
        bottleneck: int = 256,
        head_layers: int = 3,
        head_batch_norm: bool = False,
        freeze_gain: bool = True,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_teacher_temperature: float = 0.04,
        warmup_teacher_epochs: int = 0,
        center_momentum: float = 0.9,
        ema_momentum: float = 0.996,
        final_weight_decay: float = 0.4,
        clip_each_norm: float = 3.0,
        freeze_last_layer: int = 1,
        drop_path: float = 0.1,
        crops: Crops | None = None,
    ) -> None:
        super().__init__(student)
        self.crops = crops or Crops()
        shape: dict[str, Any] = {"hidden": hidden, "bottleneck": bottleneck, "layers": head_layers}
        head = ProjectionHead(width, prototypes, **shape, batch_norm=head_batch_norm, freeze_gain=freeze_gain)
        backbone = with_stochastic_depth(copy.deepcopy(student), drop_path)
        self.learner = nn.ModuleDict({"backbone": for_any_size(backbone) if self.crops.local_crops else backbone, "head": head})
        self.averaged_head = copy.deepcopy(head)
        self.loss = DINOLoss(
            prototypes,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            warmup_teacher_temperature=warmup_teacher_temperature,
            warmup_teacher_epochs=warmup_teacher_epochs,
            center_momentum=center_momentum,
        )
        for parameter in (*self.student.parameters(), *self.averaged_head.parameters()):
            parameter.requires_grad_(False)
        if not 0 <= ema_momentum <= 1:
            raise InputError("ema_momentum", ema_momentum, "a number from 0 to 1")
        self.ema_momentum = ema_momentum
        self.final_weight_decay = at_least_zero("final_weight_decay", final_weight_decay)
        self.clip_each_norm = at_least_zero("clip_each_norm", clip_each_norm)
        self.freeze_last_layer = at_least("freeze_last_layer", freeze_last_layer, 0)
        self.neighbours: Any = None

    def training_data(self, data: RepresentationData) -> RepresentationData:
        """In the views of `crops`, of which the second is of the image that the neighbours choose."""
        return self.crops.of(data, None if self.neighbours is None else self.neighbours.others)

    def answers(self, views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """The learner's logits of all views [U B, K]; the average's logits [2 B, K] and features [2 B, D] of the global ones."""
        with torch.no_grad():
            features = through(self.student, views[:GLOBAL])
            taught = self.averaged_head(features)
        return self.learner["head"](through(self.learner["backbone"], views)), taught, features

    def losses(self, batch: Any) -> Losses:
        """The cross-entropy over pairs of views. In train mode the centre follows.

        Args:
            batch: its ``views`` are crops [B, 3, S, S], the two global ones first, and its ``ids`` [B].
        """
        return self._losses(batch)[0]

    def _losses(self, batch: Any) -> tuple[Losses, Tensor, Tensor]:
        logits, taught, features = self.answers(batch.views)
        loss = self.loss(logits, taught, views=len(batch.views), epoch=self.progress.epoch - 1)
        return Losses(task={}, distill={"dino": loss}), taught, features

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The loss, and figures that tell of a collapse: the entropy of the mean answer (1 where all prototypes are used alike), and the
        spread of unit features (1 where they point everywhere)."""
        losses, taught, features = self._losses(batch)
        self.guard.watch(losses.terms, batch.ids, self.progress.step)
        self.check_learns(losses)
        figures = {} if self.neighbours is None else self.neighbours.take_in(batch, features)
        figures |= collapse_figures(taught, features, self.loss.center, self.loss.last_temperature)
        return {"loss": losses.total, "terms": {name: term.detach() for name, term in losses.terms.items()}, "figures": figures}

    def predict(self, batch: Any) -> Any:
        """Features of the average, and its centred and sharpened answer, whose entropy is looked at."""
        features = self.student(batch.inputs)
        return Embedded(features, (self.averaged_head(features) - self.loss.center) / self.loss.last_temperature)

    def companions(self) -> dict[str, nn.Module]:
        """What the neighbours keep."""
        return {} if self.neighbours is None else self.neighbours.companions()

    def setup(self, stage: str) -> None:
        """Tells the neighbours where the stage's files are."""
        if self.neighbours is not None:
            self.neighbours.keep_in(Path(self.trainer.default_root_dir) / CHECKPOINT_FILES)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The neighbours' state besides buffers."""
        if self.neighbours is not None:
            checkpoint["neighbours"] = self.neighbours.checkpoint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Gives it back to them."""
        if self.neighbours is not None:
            self.neighbours.restore(checkpoint["neighbours"])

    def configure_optimizers(self) -> Optimizer:
        """The plan's optimiser over what learns, in two groups: biases and vectors never decay."""
        return self.plan.build_optimizer(self.parameter_groups())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See `decay_groups`."""
        return decay_groups(self.learner)

    def rate(self, base_lr: float) -> float:
        """The cosine's with a warm-up from 0, both ends of it reached; of other schedules the plan's."""
        if self.plan.schedule != "cosine":
            return super().rate(base_lr)
        place = self.progress
        warmup = round(self.plan.warmup_epochs * place.steps_per_epoch)
        return cosine_between(base_lr, min(self.plan.lr_floor or 0.0, base_lr), step=place.step, steps=place.steps, warmup=warmup)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets learning rate and weight decay of this step."""
        super().on_train_batch_start(batch, batch_idx)
        place = self.progress
        decay = cosine_between(self.plan.weight_decay, self.final_weight_decay, step=place.step, steps=place.steps)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            if group["decays"]:
                group["weight_decay"] = decay

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clips each parameter's gradient; drops those of the prototypes in the first epochs."""
        clip_each(self.learner.parameters(), self.clip_each_norm)
        if self.progress.epoch <= self.freeze_last_layer:
            head: Any = self.learner["head"]
            for parameter in head.last_layer.parameters():
                parameter.grad = None

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None) -> None:
        """The optimiser's step, after which the average follows."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.follow()

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the average towards the learner; to be called after each step of a loop of one's own."""
        place = self.progress
        share = 1 - cosine_between(self.ema_momentum, 1.0, step=place.step, steps=place.steps)
        pairs: tuple[tuple[nn.Module, nn.Module], ...] = (
            (self.student, self.learner["backbone"]),
            (self.averaged_head, self.learner["head"]),
        )
        for average, learner in pairs:
            for old, new in zip(average.parameters(), learner.parameters(), strict=True):
                old.lerp_(new, share)


@torch.no_grad()
def collapse_figures(logits: Tensor, features: Tensor, center: Tensor, temperature: float) -> dict[str, Tensor]:
    """Entropy of the mean answer of a batch as a share of ln K, and standard deviation of unit features times sqrt(D), scalars both."""
    mean_K = ((logits.float() - center) / temperature).softmax(-1).mean(0)
    rows = nn.functional.normalize(features.float(), dim=1, eps=1e-12)
    spread = rows.std(0, correction=0).mean() * math.sqrt(rows.shape[1])
    return {"collapse/entropy": torch.special.entr(mean_K).sum() / math.log(len(mean_K)), "collapse/spread": spread}
