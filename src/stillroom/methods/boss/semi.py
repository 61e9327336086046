"""BOSS where most images have no label: FixMatch's loss in the place of the cross-entropy (section 3 of its specification).

[inferred]: the paper's code for this setting was not released. The specification keeps the base method's loss on labels and on images
without any, and takes the consistency with the teacher on the weak views of both.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Losses, Teacher
from stillroom.errors import InputError, at_least_zero, share
from stillroom.losses.precision import at_least_float32
from stillroom.methods.boss.distiller import consistency
from stillroom.tasks.classification import ImageData, ViewBatch
from stillroom.tasks.images.weak_strong import weak_and_strong

UNLABELLED_WEIGHT, THRESHOLD = 1.0, 0.95  # FixMatch's own, where they are not searched
_SHARE = 7  # images without a label for each with one, in a batch (FixMatch's mu)


def pseudo_labels(weak_BC: Tensor, strong_BC: Tensor, threshold: float) -> Tensor:
    """What a network is sure of in an image's weak view, as the label of its strong view: the mean over all B images, of which those below
    the threshold give 0.

        mean_b [ max_c p_bc >= threshold ] CE(strong_b, argmax_c p_bc),   p = softmax(weak)

    Args:
        weak_BC: logits of the weak views; no gradient reaches them.
        strong_BC: of the strong views.
        threshold: of the largest probability.

    Source: Sohn et al. 2020 (FixMatch), equation 4.
    """
    sure_B, label_B = at_least_float32(weak_BC.detach()).softmax(1).max(1)
    return (cross_entropy(at_least_float32(strong_BC), label_B, reduction="none") * (sure_B >= threshold)).mean()


class SemiSupervised(Distiller):
    """FixMatch, and with a teacher BOSS on top of it:

        L = alpha * (CE(weak, y) + unlabelled_weight * pseudo) + (1 - alpha) * MSE(weak, teacher(weak))

    CE is the mean over a batch's images with labels, `pseudo_labels` that over those without, whose label is -1; the consistency is over
    both. A batch without either leaves that term out. One forward pass of all views, so that batch norms see them together.

    Args:
        student: network from images [B, 3, H, W] to logits [B, C].
        teacher: an earlier trial; None for FixMatch alone.
        alpha: balance of the base method and the teacher; 1 is the base method alone.
        unlabelled_weight: of the pseudo-labels.
        threshold: probability from which a pseudo-label counts.

    Raises:
        InputError: alpha or the threshold is not from 0 to 1, or the weight is negative.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | nn.Module | None = None,
        *,
        alpha: float = 1.0,
        unlabelled_weight: float = UNLABELLED_WEIGHT,
        threshold: float = THRESHOLD,
    ) -> None:
        super().__init__(student, teacher)
        self.alpha, self.threshold = share("alpha", alpha), share("threshold", threshold)
        self.unlabelled_weight = at_least_zero("unlabelled_weight", unlabelled_weight)

    def training_data(self, data: ImageData) -> ImageData:
        """Images with and without labels in a weak and a strong view; those with labels so often that they are an eighth, or once."""
        count = max(data.train_size, round(data.unlabelled / _SHARE))
        shown = data.restricted(train=np.arange(count) % data.train_size).with_unlabelled()
        views, said = weak_and_strong(data)
        return shown.in_views(*views, said=f"semi-supervised {said}")

    def losses(self, batch: ViewBatch) -> Losses:
        """The terms of this batch.

        Raises:
            InputError: the batch does not have two views.
        """
        if not isinstance(batch, ViewBatch) or len(batch.views) != 2:
            raise InputError("batch", type(batch).__name__, "a ViewBatch of a weak and a strong view, as training_data(data) gives")
        labelled_B = batch.labels >= 0
        strong_BCHW = batch.views[1][~labelled_B]
        weak_BC, strong_BC = self.student(torch.cat([batch.views[0], strong_BCHW])).split([len(labelled_B), len(strong_BCHW)])
        task = {}
        if labelled_B.any():
            task["ce"] = self.alpha * cross_entropy(at_least_float32(weak_BC[labelled_B]), batch.labels[labelled_B])
        if len(strong_BC):
            pseudo = pseudo_labels(weak_BC[~labelled_B], strong_BC, self.threshold)
            task["pseudo"] = self.alpha * self.unlabelled_weight * pseudo
        if self.teacher is None or self.alpha == 1:
            return Losses(task=task)
        return Losses(task=task, distill={"consistency": (1 - self.alpha) * consistency(weak_BC, self.teacher(batch))})
