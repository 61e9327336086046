"""Stage 3: a student that sees frames alone learns what the ensemble of all modalities answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from stillroom.engine import Losses
from stillroom.engine.cache import CachedTeacher
from stillroom.errors import InputError, at_least_zero, positive
from stillroom.methods.mm_ego.loss import distillation_term
from stillroom.methods.mm_ego.teacher import MultimodalTeacher
from stillroom.tasks.video import VideoBatch, VideoData, VideoDistiller
from stillroom.tasks.video.supervised import heads_of, label_term


class MultimodalDistiller(VideoDistiller):
    """Student trained on a multimodal ensemble's answers, and on labels where they are asked for.

    L = lambda_KD L_KD + lambda_GT L_GT

    Args:
        student: network from clips of one modality, [B, F, 3, S, S], to logits [B, C_a] by head.
        teacher: the ensemble.
        head_weights: by head; one of weight 0 is not learnt, and the others' scale L_GT alone.
        temperature: tau > 0, of L_KD.
        kd_weight: lambda_KD, weight of the distillation loss.
        task_weight: lambda_GT, weight of the cross-entropy.

    Raises:
        InputError: a number is out of its range, both weights are 0, or all heads' are.
    """

    teacher: MultimodalTeacher

    def __init__(
        self,
        student: nn.Module,
        teacher: MultimodalTeacher,
        *,
        head_weights: Mapping[str, float],
        temperature: float = 10.0,
        kd_weight: float = 1.0,
        task_weight: float = 0.0,
    ) -> None:
        super().__init__(student, teacher)
        self.temperature = positive("temperature", temperature)
        self.kd_weight, self.task_weight = at_least_zero("kd_weight", kd_weight), at_least_zero("task_weight", task_weight)
        if not self.kd_weight and not self.task_weight:
            raise InputError("kd_weight", kd_weight, "a weight above 0, or a task_weight above 0")
        self.head_weights = dict(head_weights)
        heads_of(self.head_weights)

    def training_data(self, data: VideoData) -> VideoData:
        """The same clips with the modalities beside them that teachers are asked about; in the recorded views of those that are caches."""
        members = self.teacher.teachers
        asked = [name for name, one in members.items() if not isinstance(one, CachedTeacher)]
        views = {one.views for one in members.values() if isinstance(one, CachedTeacher)}
        if len(views) > 1:
            raise InputError("teachers", f"caches of different views ({', '.join(map(str, views))})", "caches of the same views and seed")
        shown: Any = data.of(data.reads[0], *asked)
        return shown.replaying(views.pop()) if views else shown

    def losses(self, batch: VideoBatch) -> Losses:
        """``kd`` and, with a weight above 0, the labels' ``ce``; both means over the heads that count and over the batch."""
        answers = self.student(batch.inputs)
        task = {"ce": self.task_weight * label_term(answers, batch.labels, self.head_weights)} if self.task_weight else {}
        if not self.kd_weight:
            return Losses(task=task)
        kd = distillation_term(answers, self.teacher(batch), self.head_weights, self.temperature)
        return Losses(task=task, distill={"kd": self.kd_weight * kd})
