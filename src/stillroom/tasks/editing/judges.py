"""What says whether a picture was edited as asked, and what else was changed: none of it is any diffusion model's own loss."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Losses
from stillroom.losses.precision import at_least_float32
from stillroom.tasks.editing.shapes import PROTOTYPES, Drawn

_SEEN = 0.6  # distance of a colour, in [-1, 1], from the ground behind it at which a shape is seen


class Judge(Protocol):
    """Looks at a batch of edited pictures."""

    def to(self, device: torch.device) -> Any:
        """Moves what it knows to where the pictures are."""

    def __call__(self, edited: Tensor, source: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Figures of each picture [B] by name; ``edited`` is 1 where the edit was made, else 0.

        Args:
            edited, source: [B, 3, H, W] in [-1, 1].
            ids: of the validation pictures.
        """


class DrawnJudge:
    """Knows what was drawn.

    `edited`: the mean colour inside the shape is nearest to the wanted colour's prototype. `background`: mean squared error outside the
    shape. `iou`: of the shape as it was and as it is seen after the edit, where a pixel is 0.6 or more from the ground behind it.
    """

    def __init__(self, target: int, drawn: Drawn) -> None:
        self.target = target
        self.masks = drawn.masks_NHW
        self.grounds = drawn.grounds_NCHW.float() / 127.5 - 1
        self.prototypes = PROTOTYPES

    def to(self, device: torch.device) -> DrawnJudge:
        """Masks, grounds and prototypes."""
        self.masks, self.grounds, self.prototypes = self.masks.to(device), self.grounds.to(device), self.prototypes.to(device)
        return self

    def __call__(self, edited: Tensor, source: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """See `Judge`."""
        masks, ground = self.masks[ids], self.grounds[ids]
        inside = masks[:, None].float()
        colour_B3 = (edited * inside).sum((2, 3)) / inside.sum((2, 3))
        nearest_B = torch.cdist(colour_B3, self.prototypes).argmin(1)
        outside = 1 - inside
        background_B = ((edited - source).square() * outside).sum((1, 2, 3)) / (3 * outside.sum((1, 2, 3)))
        seen = (edited - ground).square().sum(1).sqrt() >= _SEEN
        iou_B = (seen & masks).sum((1, 2)) / (seen | masks).sum((1, 2))
        return {"edited": (nearest_B == self.target).float(), "background": background_B, "iou": iou_B}


class ClassJudge:
    """A classifier of its own, which no edit was trained on: `edited` where it takes a picture for the wanted class."""

    def __init__(self, target: int, classifier: nn.Module) -> None:
        self.target, self.classifier = target, classifier.eval()

    def to(self, device: torch.device) -> ClassJudge:
        """The classifier."""
        self.classifier.to(device)
        return self

    def __call__(self, edited: Tensor, source: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """See `Judge`."""
        return {"edited": (self.classifier(edited).argmax(1) == self.target).float()}


class Classifying(Distiller):
    """Trains the classifier of a `ClassJudge`."""

    def losses(self, batch: Any) -> Losses:
        """Cross-entropy, averaged over the batch."""
        return Losses(task={"ce": cross_entropy(at_least_float32(self.student(batch.images)), batch.labels)})

    def predict(self, batch: Any) -> Tensor:
        """Whether each picture is taken for what it is, [B]."""
        return (self.student(batch.images).argmax(1) == batch.labels).float()
