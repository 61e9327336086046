"""Plain training on masks, and how every segmentation network answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.functional import interpolate

from stillroom.engine import Distiller, Losses
from stillroom.errors import InputError
from stillroom.tasks.images.pixel_classes import pixel_cross_entropy
from stillroom.tasks.images.sliding import over_windows

if TYPE_CHECKING:
    from stillroom.tasks.segmentation.masked import SegmentationBatch, WholeBatch


def predicted_classes(
    network: Callable[[Tensor], Tensor], images: Sequence[Tensor], sizes: Sequence[Sequence[int]], window: int, stride: int
) -> list[Tensor]:
    """The class of each pixel, by sliding windows: int64 [H', W'] of each picture.

    Args:
        network: from [B, 3, h, w] to scores [B, C, h, w].
        images: [3, H, W] each, normalised.
        sizes: height and width of each answer; scores are brought to it before the largest is taken.
        window, stride: see `over_windows`.

    Raises:
        InputError: scores that are no numbers.
    """
    found = []
    for scores_CHW, size in zip(over_windows(network, images, window, stride), sizes, strict=True):
        if bool(scores_CHW.isnan().any()):
            raise InputError("student", "a network whose scores are no numbers", "finite weights")
        wanted = int(size[0]), int(size[1])
        if scores_CHW.shape[1:] != wanted:
            scores_CHW = interpolate(scores_CHW[None].float(), wanted, mode="bilinear", align_corners=False)[0]
        found.append(scores_CHW.argmax(0))
    return found


class SegmentationDistiller(Distiller):
    """A distiller whose student is measured on whole pictures.

    Args:
        student: network from images [B, 3, H, W] to scores [B, C, H, W].
    """

    def predict(self, batch: WholeBatch) -> list[Tensor]:
        """The class of each pixel of each picture, int64 [H', W'], in the mask's size."""
        sizes = [mask.shape for mask in batch.masks]
        return predicted_classes(self.student, batch.images, sizes, batch.window, batch.stride)


class Supervised(SegmentationDistiller):
    """A network trained on masks, by cross-entropy."""

    def training_data(self, data: Any) -> Any:
        """As they are.

        Raises:
            InputError: pictures without masks.
        """
        if not data.masked:
            raise InputError("data", f"{data.data}, whose training pictures have no masks", "masks to train on")
        return data

    def losses(self, batch: SegmentationBatch) -> Losses:
        """The cross-entropy as the only task term."""
        return Losses(task={"ce": pixel_cross_entropy(self.student(batch.inputs), batch.masks)})
