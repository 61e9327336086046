"""How far training images are changed, as one number from 0 to 1 that a search proposes; for medical images, which are not mirrored.

[inferred]: the specification has "augmentation strength 0..1" and no more. At 1 an image is shifted by up to an eighth of its side, turned
by up to 20 degrees, and its brightness changed by up to two fifths; at 0 it is shown as evaluation shows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from stillroom.engine.loading import uniforms
from stillroom.errors import share
from stillroom.tasks.classification import ImageData
from stillroom.tasks.images.transforms import Parameters

_SHIFT, _DEGREES, _BRIGHTNESS = 1 / 8, 20.0, 0.4


def strengthened(data: ImageData, strength: float) -> ImageData:
    """The same data, whose training images are changed so much.

    Raises:
        InputError: a strength that is not from 0 to 1.
    """
    return data.changed_by(Moved(share("augment_strength", strength)), f"strength {strength!r}")


class Moved:
    """Shift, rotation and brightness: a `transforms.BatchChange`. What comes in from outside is the border's colour.

    Draws ``shift`` float32 [B, 2], down and right in half sides, ``angle`` float32 [B], degrees, and ``brightness`` float32 [B], a factor.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def draw(self, seeds: np.ndarray, size: Sequence[int]) -> Parameters:
        """One row for each seed."""
        draws = self.strength * (2 * uniforms(seeds, 4) - 1).astype(np.float32)
        return {"shift": 2 * _SHIFT * draws[:, :2], "angle": _DEGREES * draws[:, 2], "brightness": 1 + _BRIGHTNESS * draws[:, 3]}

    def apply(self, images_BCHW: Tensor, drawn: Parameters) -> Tensor:
        """uint8 [B, 3, S, S] -> float32 in [0, 1]."""
        angle_B = torch.from_numpy(drawn["angle"]) * math.pi / 180
        cos_B, sin_B = angle_B.cos(), angle_B.sin()
        down_B, right_B = torch.from_numpy(drawn["shift"]).unbind(1)
        matrix_B23 = torch.stack([torch.stack([cos_B, -sin_B, -right_B], 1), torch.stack([sin_B, cos_B, -down_B], 1)], 1)
        grid_BHW2 = affine_grid(matrix_B23, list(images_BCHW.shape), align_corners=False)
        moved_BCHW = grid_sample(images_BCHW.float() / 255, grid_BHW2, padding_mode="border", align_corners=False)
        return (moved_BCHW * torch.from_numpy(drawn["brightness"])[:, None, None, None]).clamp(0, 1)
