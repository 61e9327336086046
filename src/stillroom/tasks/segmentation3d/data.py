"""The data of a run of segmentation of scans: voxels, and the super-voxels that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillroom.engine.run.recorder import Evaluator
from stillroom.errors import InputError, one_of, positive
from stillroom.tasks.points.augment import RoomAugment
from stillroom.tasks.points.data import PointSetData
from stillroom.tasks.points.frames import Frame, FrameInputs, collate
from stillroom.tasks.points.supervoxels import SupervoxelSpec, supervoxels
from stillroom.tasks.segmentation3d.metrics import SceneEvaluator
from stillroom.tasks.segmentation3d.sources import VOXEL, open_source

AUGMENTATIONS = ("turn", "none")
_SHIFT = 50  # voxels by which a scan is shifted at most


class SceneBatch(NamedTuple):
    """Scans as voxels, one point each. M voxels in all.

    Attributes:
        inputs: what networks read: points [M, 6] of x, y, z in metres and red, green, blue in [0, 1].
        rows: int64 [M], each voxel's place among those of its whole scan.
        regions: int64 [M], its super-voxel, 0 .. R-1 in each scan; -1 for none.
        labels: int64 [M], the true class; -1 for none. No training reads it.
        ids: int64 [B].
        inverse: of each scan int64 [N], the voxel of each of its points; empty for a cropped one.
        truth: of each scan int64 [N], the class of each of its points; -1 for none.
    """

    inputs: FrameInputs
    rows: Tensor
    regions: Tensor
    labels: Tensor
    ids: Tensor
    inverse: list[Tensor]
    truth: list[Tensor]

    def scene(self, number: int) -> Tensor:
        """Which voxels are those of one scan, bool [M]."""
        return self.inputs.batch_index == number


class Segmentation3dData(PointSetData):
    """A training and a validation set of scans.

    Args:
        data: where the images are (scans, with posed pictures or without): ``rooms`` (made up from a seed), ``scannet:ROOT``,
            ``s3dis:ROOT`` or ``rgbd:FOLDER``; options follow after commas, see `sources.open_source`.
        batch_size: images in a batch (scans here), of all processes together.
        voxel_size: metres of a voxel's side; by default what suits the data.
        supervoxel_size: metres between the seeds of super-voxels, of scans that bring no segments.
        augment: random changes of training images (scans here): ``turn`` (the default) tilts, turns, scales and shifts them; or ``none``.
        crop: metres to every side of a scan's middle that training keeps; by default all.
        options: those of all data of points, see `PointSetData`.

    Raises:
        InputError: an argument that cannot be used; it is named.
    """

    def __init__(
        self,
        data: str = "rooms",
        *,
        batch_size: int = 4,
        voxel_size: float | None = None,
        supervoxel_size: float = 0.5,
        augment: str | None = None,
        crop: float | None = None,
        **options: Any,
    ) -> None:
        one_of("augment", augment or "turn", AUGMENTATIONS)
        source = open_source(data)
        self.voxel = positive("voxel_size", VOXEL[source.name] if voxel_size is None else voxel_size)
        self.pieces = SupervoxelSpec(max(self.voxel, 0.05), positive("supervoxel_size", supervoxel_size), colour=2.0, angle=5.0)
        super().__init__(data, source, batch_size=batch_size, **options)
        self.turned = RoomAugment() if (augment or "turn") == "turn" else None
        self.crop = None if crop is None else positive("crop", crop)
        self._identify(self.voxel, supervoxel_size, self.turned is not None, crop)

    def prepared(self, frame: Frame) -> Frame:
        """A scan as voxels: of each the first point; its super-voxels, its points' voxels and their classes in `meta`."""
        cells = np.floor(frame.points[:, :3] / self.voxel).astype(np.int64)
        _, first, inverse = np.unique(cells, axis=0, return_index=True, return_inverse=True)
        points = frame.points[first]
        given = frame.meta.get("segments")
        regions = (
            supervoxels(points[:, :3], points[:, 3:6], self.pieces) if given is None else np.unique(given[first], return_inverse=True)[1]
        )
        labels = frame.point_labels
        if labels is not None and len(labels) and not -1 <= labels.min() <= labels.max() < self.num_classes:
            raise InputError("data", f"{frame.name} with labels from {labels.min()} to {labels.max()}", f"-1 to {self.num_classes - 1}")
        truth = np.full(len(frame.points), -1, np.int64) if labels is None else labels
        meta = {**frame.meta, "regions": regions.reshape(-1), "inverse": inverse.reshape(-1), "truth": truth, "rows": np.arange(len(first))}
        thin = frame.take_points(first)
        return replace(thin, point_labels=truth[first], meta=meta)

    def changed(self, frame: Frame, random: np.random.Generator) -> Frame:
        """A scan turned, shifted and cropped."""
        points, kept = frame.points.copy(), np.ones(len(frame.points), bool)
        if self.crop is not None:
            middle = (points[:, :3].min(0) + points[:, :3].max(0)) / 2
            kept = (np.abs(points[:, :3] - middle) <= self.crop).all(1)
        if self.turned is not None:
            points[:, :3] = points[:, :3] @ self.turned.draw(random).T + _SHIFT * self.voxel * random.random(3)
        part = {name: frame.meta[name][kept] for name in ("regions", "rows")}
        empty = {"inverse": np.zeros(0, np.int64), "truth": np.zeros(0, np.int64)} if not kept.all() else {}
        return replace(replace(frame, points=points).take_points(kept), meta={**frame.meta, **part, **empty})

    def gathered(self, frames: Sequence[Frame], ids: Sequence[int], previous: Sequence[Frame]) -> Any:
        """The batch of scans, without their pictures."""
        batch = collate([replace(frame, views=()) for frame in frames], ids)
        columns = {name: [torch.from_numpy(np.asarray(frame.meta[name], np.int64)) for frame in frames]
                   for name in ("rows", "regions", "inverse", "truth")}  # fmt: skip
        labels = batch.point_labels if batch.point_labels is not None else torch.full((len(batch.points),), -1)
        rows, regions = (torch.cat(columns[name]) for name in ("rows", "regions"))
        return SceneBatch(batch.inputs, rows, regions, labels, batch.ids, columns["inverse"], columns["truth"])

    def evaluator(self) -> Evaluator:
        """Scores by Hungarian matching of clusters with classes."""
        return SceneEvaluator(self.num_classes)

    def _described(self) -> dict[str, Any]:
        return {"voxel_size": self.voxel, "supervoxel_size": self.pieces.seed}
