"""What a pyramid's maps hold inside boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align


def region_levels(boxes_R4: Tensor, levels: int, finest_scale: float = 56) -> Tensor:
    """Which level a box is read from, int64 [R]: clamp(floor(log2(sqrt(w h) / finest_scale + 1e-6)), 0, levels - 1).

    Args:
        boxes_R4: absolute.
        levels: how many there are, from the finest.
        finest_scale: pixels; the side from which on the second level is read is twice this.

    Source: Lin et al. 2017 (Feature Pyramid Networks), eq. 1, counted from the finest level.
    """
    sides_R2 = (boxes_R4[:, 2:] - boxes_R4[:, :2]).float().clamp_min(0)
    return (sides_R2.prod(1).sqrt() / finest_scale + 1e-6).log2().floor().long().clamp(0, levels - 1)


def region_features(
    features: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], size: int = 7, *, finest_scale: float = 56
) -> Tensor:
    """The maps inside boxes, each from the level that suits its size; float32 [R, D, size, size], image after image.

    RoIAlign with half-pixel correction and as many samples as the box has cells. Unlike torchvision's pooler (`MultiScaleRoIAlign`),
    which shifts boxes by half a cell, and knows sizes relative to 224 pixels only.

    Args:
        features: per level [B, D, h, w], the finest first; gradients reach them, not the boxes.
        strides: of the levels.
        boxes: of each image [R_b, 4], absolute; R_b may be 0. They may reach over the image's border.
        size: bins on each side.
        finest_scale: see `region_levels`.

    Source: He et al. 2017 (Mask R-CNN), section 3.
    """
    boxes_R4 = torch.cat(list(boxes)).detach()
    images_R = torch.cat([boxes_R4.new_full((len(part),), image) for image, part in enumerate(boxes)])
    rows_R5 = torch.cat((images_R[:, None], boxes_R4), 1).float()
    levels_R = region_levels(boxes_R4, len(features), finest_scale)
    found, places = [], []
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        at = (levels_R == level).nonzero().flatten()
        places.append(at)
        found.append(roi_align(feature.float(), rows_R5[at], size, spatial_scale=1 / stride, aligned=True))
    return torch.cat(found)[torch.cat(places).argsort()]
