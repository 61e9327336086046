"""Stage 3: the student learns from labels, and from the teacher's pseudo-labels by their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Losses
from stillroom.errors import InputError
from stillroom.losses.precision import at_least_float32


def weighted_cross_entropy(logits_BC: Tensor, labels_B: Tensor, weights_B: Tensor) -> Tensor:
    """mean_u [ w_u CE(f(u), yhat_u) ]: averaged over the batch, not over the sum of weights; 0 where all weights are, and for no image.

    Args:
        logits_BC: the student's, one row per unlabelled image.
        labels_B: their pseudo-labels.
        weights_B: their weights, constants.

    Returns:
        A scalar, float32 at least.

    Source: the specification's stage 3; half-precision logits are compared in float32.
    """
    return (weights_B.detach() * cross_entropy(at_least_float32(logits_BC), labels_B, reduction="none")).sum() / max(len(labels_B), 1)


class WAD(Distiller):
    """A student that is trained on labelled and pseudo-labelled images, in two forward passes.

        L = mean_i CE(f(x_i), y_i) + mean_u [ w_u CE(f(u), yhat_u) ]

    Labels and weights are looked up by the images' ids; the labels that a batch may carry are not read. Without unlabelled images (a
    batch without them) the second term is left out.

    Args:
        student: network from images [B, 3, H, W] to logits [B, C].
        labels_N: what each image is taken for, int64: its label if it is labelled, else its pseudo-label.
        weights_N: w of each image, float32; 1 for hard pseudo-labels. Those of labelled images are not used.

    Raises:
        InputError: the two differ in length.
    """

    labels_N: Tensor
    weights_N: Tensor

    def __init__(self, student: nn.Module, labels_N: Tensor, weights_N: Tensor) -> None:
        super().__init__(student)
        if labels_N.shape != weights_N.shape:
            raise InputError("weights_N", f"shape {list(weights_N.shape)}", f"one for each of the {len(labels_N)} labels")
        self.register_buffer("labels_N", labels_N)
        self.register_buffer("weights_N", weights_N)

    def losses(self, batch: Mapping[str, Any]) -> Losses:
        """Both cross-entropies, each averaged over its own batch.

        Args:
            batch: of labelled images under "labelled" and, if there are any, of unlabelled ones under "unlabelled".
        """
        labelled = batch["labelled"]
        terms = {"labelled": cross_entropy(at_least_float32(self.student(labelled.inputs)), self.labels_N[labelled.ids])}
        if "unlabelled" not in batch:
            return Losses(task=terms)
        unlabelled = batch["unlabelled"]
        logits_BC = self.student(unlabelled.inputs)
        weighted = weighted_cross_entropy(logits_BC, self.labels_N[unlabelled.ids], self.weights_N[unlabelled.ids])
        return Losses(task=terms, distill={"unlabelled": weighted})
