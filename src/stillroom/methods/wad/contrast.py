"""Stage 1: the teacher learns without labels, from labelled and unlabelled images alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.engine import Distiller, Losses, Progress
from stillroom.errors import positive
from stillroom.losses.contrast import nt_xent
from stillroom.methods.wad.knowledge import class_scores
from stillroom.methods.wad.networks import Encoder

EPSILON = 1e-8


class Contrast(Distiller):
    """An encoder trained by NT-Xent on two random views of each image.

    Its answer, for evaluation, is how similar an image is to each class's labelled ones (`class_scores`), over the temperature: the
    accuracy of a stage is that of the labels that the teacher will give. No label enters training.

    Args:
        encoder: the teacher.
        views: pixels -> pixels, a random view of each row.
        memory: gives the labelled images in batches, each once; asked for once in each evaluation.
        num_classes: C.
        contrast_temperature: tau.
        released_schedule: the paper's learning rate (`released_rate`) in the plan's place.
    """

    def __init__(
        self,
        encoder: Encoder,
        views: nn.Module,
        memory: Callable[[], Iterable[Any]],
        num_classes: int,
        *,
        contrast_temperature: float = 0.5,
        released_schedule: bool = True,
    ) -> None:
        super().__init__(encoder)
        self.views = views
        self.num_classes = num_classes
        self.contrast_temperature = positive("contrast_temperature", contrast_temperature)
        self.released_schedule = released_schedule
        self._memory = memory
        self._known: tuple[int, Tensor, Tensor] | None = None  # step, features and labels

    @property
    def encoder(self) -> Encoder:
        """The network in training."""
        assert isinstance(self.student, Encoder)
        return self.student

    def losses(self, batch: Any) -> Losses:
        """NT-Xent of two views, averaged over the 2B rows."""
        pixels = self.encoder.pixels(batch.inputs)
        projections_ND = self.encoder.project(self.views(torch.cat((pixels, pixels))))
        first_BD, second_BD = projections_ND.chunk(2)
        return Losses(task={"ntxent": nt_xent(first_BD, second_BD, self.contrast_temperature, epsilon=EPSILON)})

    def predict(self, batch: Any) -> Tensor:
        """S / tau, [B, C], of images as they are."""
        features_MD, labels_M = self._remembered(batch.inputs.device)
        return class_scores(self.student(batch.inputs), features_MD, labels_M, self.num_classes) / self.contrast_temperature

    def rate(self, base_lr: float) -> float:
        """The plan's learning rate, or the released code's."""
        return released_rate(base_lr, self.progress) if self.released_schedule else super().rate(base_lr)

    def _remembered(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._known is None or self._known[0] != self.progress.step:
            batches = [(self.student(batch.inputs.to(device)).float(), batch.labels.to(device)) for batch in self._memory()]
            features, labels = zip(*batches, strict=True)
            self._known = self.progress.step, torch.cat(features), torch.cat(labels)
        return self._known[1].to(device), self._known[2].to(device)


def released_rate(lr: float, progress: Progress) -> float:
    """The learning rate of the released code: ten times as much over the first ten epochs, then a cosine.

        e <= 10: lr (1 + 9 e / 10)      e > 10: 10 lr (1 + cos(pi (e - 10) / T)) / 2

    with e the epochs, in fractions, before the step before this one, and T epochs in all: the released code sets the rate behind each step,
    so that the first one and the second have the rate lr. The cosine does not reach zero.
    """
    epoch = max(progress.step - 1, 0) / progress.steps_per_epoch
    if epoch <= 10:
        return lr * (1 + 9 * epoch / 10)
    return 10 * lr * (1 + math.cos(math.pi * (epoch - 10) / progress.epochs)) / 2
