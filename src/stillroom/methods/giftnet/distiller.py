"""Training with GIFT and relation distillation, and the teacher that learns to paint real photos anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from stillroom.engine import Losses, Teacher
from stillroom.errors import InputError, at_least, at_least_zero
from stillroom.losses.precision import in_one_type
from stillroom.methods.giftnet.network import Gifted, GiftSpec
from stillroom.methods.giftnet.relation import relation_losses
from stillroom.modules.batch_norms import kept_statistics
from stillroom.tasks.harmonization import Supervised
from stillroom.tasks.harmonization.supervised import MIN_FOREGROUND
from stillroom.tasks.images.padding import padded

if TYPE_CHECKING:
    from stillroom.tasks.harmonization import Batch


class GiftNet(Supervised):
    """A network with GIFT, trained on composites and on what the real photos say of foreground and background.

        L = L_har + lambda_rel * L_rel

    The teacher's features are of the real photo with the same mask: without a teacher the student's own, which are computed in every step
    without gradient and without moving the batch norms' statistics; else those of a frozen network of the same kind.

    Args:
        student: with GIFT.
        teacher: with as many levels.
        relation_weight: lambda_rel; at 0 nothing but GIFT is left.
        grid: g: features of larger maps are compared on so many cells in each direction.
        min_foreground: see `Supervised`.

    Raises:
        InputError: a number that cannot be used, or a teacher without features of as many levels.
    """

    student: Gifted

    def __init__(
        self,
        student: Gifted,
        teacher: Teacher | nn.Module | None = None,
        *,
        relation_weight: float = 0.1,
        grid: int = 16,
        min_foreground: float = MIN_FOREGROUND,
    ) -> None:
        super().__init__(student, min_foreground=min_foreground)
        self.teacher = Teacher(teacher) if isinstance(teacher, nn.Module) else teacher
        self.relation_weight, self.grid = at_least_zero("relation_weight", relation_weight), at_least("grid", grid, 1)
        if self.teacher is not None:
            network = self.teacher.networks[0]
            if not isinstance(network, Gifted) or len(network.taps) != len(student.taps):
                raise InputError("teacher", type(network).__name__, f"a network with GIFT of {len(student.taps)} levels, as the student's")
            self._teacher_paths, self._tapped = network.taps, self.teacher.tap(*network.taps)

    def losses(self, batch: Batch) -> Losses:
        """The foreground's error, and the difference of the relations."""
        if not self.relation_weight:
            return super().losses(batch)
        wanted = self.real_features(batch)
        picture, features = self.student.answer(batch.inputs)
        relation = self.relation(features, wanted, batch.masks)
        return Losses(task={"fn_mse": self.error(picture, batch)}, distill={"relation": self.relation_weight * relation})

    def relation(self, student: list[Tensor], teacher: list[Tensor], masks_B1HW: Tensor) -> Tensor:
        """L_rel: the mean over the levels."""
        return relation_losses(student, teacher, padded(masks_B1HW, self.student.multiple), grid=self.grid).mean()

    @torch.no_grad()
    def real_features(self, batch: Batch) -> list[Tensor]:
        """G_l: the teacher's features of the real photos."""
        if self.teacher is not None:
            _, found = self._tapped(batch.real_inputs)
            return [found[path] for path in self._teacher_paths]
        with kept_statistics(self.student):
            return self.student.answer(batch.real_inputs)[1]

    def specification(self, student: str) -> str:
        """With the baseline's in it."""
        return str(GiftSpec.of_network(self.student, student))


class Reconstruction(Supervised):
    """A teacher that paints real photos anew: its picture of I_r and the mask is to be I_r, by the mean squared error of normalised values.

    Without the blending of the output (``stillroom/harmony..._paint``), or it could copy what it reads. It is scored by how near it comes.
    """

    def losses(self, batch: Batch) -> Losses:
        """The error as the only task term."""
        return Losses(task={"mse": mse_loss(*in_one_type(self.student(batch.real_inputs), batch.reals))})

    def predict(self, batch: Batch) -> Tensor:
        """Its picture of the real photo."""
        picture: Tensor = self.student(batch.real_inputs)
        return picture
