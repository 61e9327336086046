"""Plain training: the picture is to be the real photo, and its foreground counts most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from stillroom.engine import Distiller, Losses
from stillroom.errors import positive
from stillroom.losses.precision import in_one_type

if TYPE_CHECKING:
    from stillroom.tasks.harmonization.batches import Batch

MIN_FOREGROUND = 1000 / 256**2


def foreground_mse(predicted_BCHW: Tensor, truth_BCHW: Tensor, mask_B1HW: Tensor, min_area: float) -> Tensor:
    """The squared error of each picture over the size of its foreground, [B]: sum (out - I_r)^2 / (C max(sum M, A_min)).

    Args:
        predicted_BCHW, truth_BCHW: in normalised values.
        mask_B1HW: of the foreground, from 0 to 1.
        min_area: A_min, in pixels; a smaller foreground counts as one of this size.

    Source: iSSAM/iDIH release (foreground-normalised MSE).
    """
    predicted, truth = in_one_type(predicted_BCHW, truth_BCHW)
    area_B = mask_B1HW.to(predicted.dtype).sum((1, 2, 3)).clamp_min(min_area)
    return (predicted - truth).square().sum((1, 2, 3)) / (predicted.shape[1] * area_B)


class Supervised(Distiller):
    """A network trained on composites and the photos that they were made from; the mean over the batch.

    Args:
        student: network from a composite and its mask [B, 4, H, W] to a picture [B, 3, H, W], normalised values.
        min_foreground: A_min, as a share of the picture's pixels; by default iSSAM's 1000 pixels of 256 x 256.

    Raises:
        InputError: it is not above 0.
    """

    def __init__(self, student: nn.Module, *, min_foreground: float = MIN_FOREGROUND) -> None:
        super().__init__(student)
        self.min_foreground = positive("min_foreground", min_foreground)

    def losses(self, batch: Batch) -> Losses:
        """The foreground's error as the only task term."""
        return Losses(task={"fn_mse": self.error(self.student(batch.inputs), batch)})

    def error(self, predicted_B3HW: Tensor, batch: Batch) -> Tensor:
        """L_har: the mean over the batch of `foreground_mse`."""
        min_area = self.min_foreground * batch.masks[0].numel()
        return foreground_mse(predicted_B3HW, batch.reals, batch.masks, min_area).mean()
