"""MDCS's training step (section "Method" 6): both views through the network at once, and the experts' two terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from stillroom.engine import Distiller, Losses
from stillroom.errors import InputError, at_least_zero, positive
from stillroom.methods.mdcs.loss import mdcs_terms, prior_shift
from stillroom.tasks.classification import ImageData, ViewBatch
from stillroom.tasks.images.weak_strong import Style, weak_and_strong


@runtime_checkable
class Experts(Protocol):
    """A network of several experts, such as `stillroom/resnet32_experts`; its own answer is the mean of their logits."""

    def experts(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, E, C]."""


class MDCS(Distiller):
    """A network of experts trained on labels and, expert by expert, on its own answer to a weaker view of the same image.

        L = L_DL + w * min(epoch / ramp, 1) * L_CS          (section "Method" 3; see `mdcs_terms`)

    There is no teacher network. With ``lambdas=(0, 0, 0)`` and ``consistency_weight=0`` this is plain cross-entropy on both views, with
    ``(1, 1, 1)`` balanced softmax.

    Args:
        student: network from images [B, 3, H, W] to logits [B, C] with a method ``experts(images)`` that answers [B, E, C].
        class_counts: n, [C] training images of each class, of all processes together.
        lambdas: prior exponent of each expert.
        consistency_weight: w, of the consistency term; 0 leaves it out.
        ramp_epochs: epochs over which it grows to its weight; 0 for none.
        confident_only: images that an expert gets wrong in the weak view do not teach it.
        temperature: temperature of softened class probabilities, T > 0; in the consistency term; 1 in the paper.
        backbone_lr: learning rate of everything but the experts' classifiers, when other than the plan's; for a backbone that was trained
            before.
        view_style: how the views of an image are made: ``small``, ``cifar`` or ``imagenet`` (`two_views`); by default ``imagenet`` for
            photographs and else ``small``. They take the place of the data's `augment`.

    Raises:
        InputError: a number is out of its range, a class has no image, or the student has no experts.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        class_counts: Tensor | Sequence[int],
        lambdas: Sequence[float] = (-0.5, 1.0, 2.5),
        consistency_weight: float = 0.6,
        ramp_epochs: float = 20,
        confident_only: bool = True,
        temperature: float = 1.0,
        backbone_lr: float | None = None,
        view_style: Style | None = None,
    ) -> None:
        super().__init__(student)
        if not isinstance(student, Experts):
            raise InputError(
                "student", type(student).__name__, "a network of experts: stillroom/resnet32_experts, or one with a method experts(images)"
            )
        self.lambdas = tuple(lambdas)
        self.consistency_weight = at_least_zero("consistency_weight", consistency_weight)
        self.ramp_epochs = at_least_zero("ramp_epochs", ramp_epochs)
        self.confident_only, self.temperature = confident_only, positive("temperature", temperature)
        self.backbone_lr = None if backbone_lr is None else at_least_zero("backbone_lr", backbone_lr)
        self.view_style = view_style
        self.shift_EC: Tensor
        self.register_buffer("shift_EC", prior_shift(class_counts, self.lambdas))

    def training_data(self, data: ImageData) -> ImageData:
        """Every training image in a weak and a strong view."""
        views, said = weak_and_strong(data, self.view_style)
        return data.in_views(*views, said=f"mdcs {said}")

    def losses(self, batch: ViewBatch) -> Losses:
        """L_DL over both views, the sum over experts of means over the batch; and the weighted L_CS.

        Raises:
            InputError: the batch does not have two views.
        """
        if not isinstance(batch, ViewBatch) or len(batch.views) != 2:
            raise InputError(
                "batch", type(batch).__name__, "a ViewBatch of a weak and a strong view, as the data of MDCS.training_data(data) give"
            )
        weak_BCHW, strong_BCHW = batch.views
        both_NCHW = torch.cat([weak_BCHW, strong_BCHW])  # one forward: batch norms see both views together
        logits_NEC: Tensor = self.student.experts(both_NCHW)  # type: ignore[operator]
        terms = mdcs_terms(logits_NEC, batch.labels, self.shift_EC, confident_only=self.confident_only, temperature=self.temperature)
        if self.consistency_weight == 0:
            return Losses(task={"diversity": terms.diversity})
        weight = self.consistency_weight * self.ramp(self.ramp_epochs)
        return Losses(task={"diversity": terms.diversity}, distill={"consistency": weight * terms.consistency})

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group, or with `backbone_lr` the classifiers and all else."""
        if self.backbone_lr is None:
            return super().parameter_groups()
        named = getattr(self.student, "classifier_parameters", None)
        if named is None:
            raise InputError("backbone_lr", self.backbone_lr, "a student with a method classifier_parameters(), or no rate of its own")
        classifiers = list(named())
        of_classifier = {id(p) for p in classifiers}
        others = [p for p in self.parameters() if id(p) not in of_classifier]
        return [
            {"params": [p for p in classifiers if p.requires_grad]},
            {"params": [p for p in others if p.requires_grad], "lr": self.backbone_lr},
        ]
