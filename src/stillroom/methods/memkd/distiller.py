"""MemKD: a student that reproduces a teacher on normal pictures, with memories that recall what is normal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.engine import Distiller, Losses, Teacher
from stillroom.errors import at_least, at_least_zero
from stillroom.methods.memkd.data import EXEMPLARS, NORMAL, Shown
from stillroom.methods.memkd.loss import Distillation, Orthogonality, Reduction, distances, orthogonal_loss, over_memories, reduced
from stillroom.methods.memkd.memory import embedding_distances
from stillroom.methods.memkd.networks import Student


class MemKD(Distiller):
    """L = L_KD + lambda1 L_NM + lambda2 L_ORTH; of a student without memories L_KD alone.

    Gradients reach the keys from L_KD (through the softmax) and L_ORTH, the values from all three, everything else of the student from
    L_KD.

    Args:
        student: of either variant.
        teacher: images to feature maps, of which the first are the student's targets.
        kd, reduction: see `distillation_loss`.
        nm_weight: lambda1.
        orth_weight: lambda2.
        orth: see `orthogonal_loss`.
        exemplars: N, normal pictures whose features the memories must hold, of all processes together.
        fixed: draw them once, instead of anew in every step.
        iterations: steps of an epoch, at most; by default as many as there are batches.

    Raises:
        InputError: a weight below 0.

    Source: the paper's sections on the NR memory and normality embedding learning, in the form of the specification.
    """

    student: Student
    teacher: Teacher

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        *,
        kd: Distillation = "positions",
        reduction: Reduction = "mean",
        nm_weight: float = 0.1,
        orth_weight: float = 0.1,
        orth: Orthogonality = "squared",
        exemplars: int = 16,
        fixed: bool = False,
        iterations: int | None = None,
    ) -> None:
        super().__init__(student, teacher)
        self.kd, self.reduction, self.orth = kd, reduction, orth
        self.nm_weight, self.orth_weight = at_least_zero("nm_weight", nm_weight), at_least_zero("orth_weight", orth_weight)
        self.exemplars, self.fixed, self.iterations = at_least("exemplars", exemplars, 1), fixed, iterations

    @property
    def memorises(self) -> bool:
        """Whether exemplars are shown to the teacher."""
        return self.nm_weight > 0 and bool(self.student.memories())

    def training_data(self, data: Any) -> Any:
        """Beside each batch of normal pictures one of exemplars, if there are memories that learn from them."""
        return Shown(data, self.iterations, self.exemplars if self.memorises else 0, fixed=self.fixed)

    def losses(self, batch: Any) -> Losses:
        """The three terms, weighted.

        Args:
            batch: a batch of normal pictures under "normal" and, for memories that learn from them, one of exemplars under "exemplars".
        """
        terms = {"kd": reduced(self._distances(batch[NORMAL]), self.kd, self.reduction)}
        memories = self.student.memories()
        if memories and EXEMPLARS in batch:
            features: Any = self.teacher(batch[EXEMPLARS])
            forgotten = [embedding_distances(features[level], memory.values, memory.temperature) for memory, level in memories]
            terms["nm"] = self.nm_weight * over_memories(forgotten, self.reduction)
        if memories and self.orth_weight:
            keys, values = zip(*((memory.keys, memory.values) for memory, _ in memories), strict=True)
            terms["orth"] = self.orth_weight * orthogonal_loss(keys, values, self.orth)
        return Losses(task={}, distill=terms)

    def _distances(self, batch: Any) -> Tensor:
        """Of each level and picture, [K, B]."""
        features: Any = self.teacher(batch)
        maps = self.student.levels(batch.images, features)
        return distances(maps, features[: len(maps)], self.kd)

    def predict(self, batch: Any) -> Tensor:
        """How far the student is from its teacher on each picture, [B]: what L_KD is the mean of."""
        distances_KB = self._distances(batch)
        return distances_KB.mean(0) if self.kd == "positions" else distances_KB.sum(0)

    @torch.no_grad()
    def recall(self, batch: Any) -> Tensor:
        """How well the memories' values hold a batch's features: the cosine of a position and what is read of it, [memories, B, positions]
        averaged over positions: [memories, B]."""
        features: Any = self.teacher(batch)
        found = [
            torch.cosine_similarity(memory.embed(features[level]), features[level], dim=1) for memory, level in self.student.memories()
        ]
        return torch.stack([one.flatten(1).mean(1) for one in found])
