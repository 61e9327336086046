"""What the teacher's views say to the student:

L_ms    = mean_b mean_j mean_d | z_b - v_{b,j} |                                  over all views
L_match = mean_b sum_i min_{j local} mean_d | g_{b,i} - v_{b,j} |                 local: all views but the whole image
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.losses.precision import in_one_type


def first_local(scales: Sequence[int]) -> int:
    """Number of the first local view: 1 where the whole image is the first view, else 0."""
    return 1 if 1 in scales else 0


def multi_scale_loss(global_BD: Tensor, views_BJD: Tensor) -> Tensor:
    """L_ms: the mean over batch, views and channels of the distance of the global feature z to every view.

    Args:
        global_BD: z, the student's.
        views_BJD: the teacher's; no gradient reaches them.

    Returns:
        A scalar, float32 at least.

    Source: the paper's multi-scale feature distillation; mean over views and channels from the specification.
    """
    z, v = in_one_type(global_BD, views_BJD.detach())
    return (z[:, None] - v).abs().mean()


def nearest_views(segments_BMD: Tensor, views_BJD: Tensor, local: int) -> Tensor:
    """Number of each segment's nearest local view, int64 [B, m]; of equally near ones the first.

    Raises:
        InputError: there is no local view.
    """
    if views_BJD.shape[1] <= local:
        raise InputError("view_scales", "the whole image alone", "a scale above 1: segments are matched with parts of the image")
    with torch.no_grad(), torch.autocast(segments_BMD.device.type, enabled=False):
        g, v = in_one_type(segments_BMD, views_BJD[:, local:])
        return torch.cdist(g, v, p=1.0).argmin(-1) + local


def matching_loss(segments_BMD: Tensor, views_BJD: Tensor, local: int = 1) -> Tensor:
    """L_match: the distance of every segment to its nearest local view, summed over the segments, mean over batch and channels.

    The choice is not differentiated. Several segments may choose the same view; none has to be chosen.

    Args:
        segments_BMD: g, the student's.
        views_BJD: the teacher's; no gradient reaches them.
        local: number of the first local view, see `first_local`.

    Returns:
        A scalar, float32 at least.

    Raises:
        InputError: there is no local view.

    Source: the paper's eq. 1; mean over channels from the specification.
    """
    chosen_BM = nearest_views(segments_BMD, views_BJD, local)
    g, v = in_one_type(segments_BMD, views_BJD.detach())
    nearest_BMD = v.gather(1, chosen_BM[:, :, None].expand(-1, -1, v.shape[2]))
    return (g - nearest_BMD).abs().mean(-1).sum(1).mean()
