"""Batches of recordings, of what was seen, and of the truth."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from stillroom.tasks.sound.recordings import Target


class Batch(NamedTuple):
    """Recordings and the truth.

    Attributes:
        inputs: by name: ``sound`` float32 [B, E, n]; ``sight`` float32 [B, 3, H, W], normalised, or coarse voxels [B, 1, 16, 16, 16]; and
            with voxels ``points`` [B, Q, 3] in the unit cube that are asked about. A network takes its own part.
        truth: metres float32 [B, H, W] (0: unknown), classes int64 [B, H, W] (0: unknown), or float32 [B, Q], 1 where it is solid.
        ids: int64 [B], each sample's index in its data set.
        views: int64 [B], which recorded view of its training sample each is; None for others. There is one view.
    """

    inputs: dict[str, Tensor]
    truth: Tensor
    ids: Tensor
    views: Tensor | None = None

    @property
    def target(self) -> Target:
        """What the truth is of, by its form."""
        if self.truth.ndim == 2:
            return "occupancy"
        return "depth" if self.truth.is_floating_point() else "segmentation"
