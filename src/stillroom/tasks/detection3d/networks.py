"""Detectors that look from above: what makes a map of a frame, a neck, and a head of centres or of anchors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.tasks.points.anchor_head import AnchorHead
from stillroom.tasks.points.backbones import SecondBackbone, SecondFPN, VoxelBackbone, scaled
from stillroom.tasks.points.center_head import CenterHead, Detections, Prediction
from stillroom.tasks.points.frames import FrameBatch, FrameInputs
from stillroom.tasks.points.grid import BevGrid, ClassList
from stillroom.tasks.points.voxels import MeanVoxelEncoder, PillarEncoder, VoxelGrid, Voxels, scatter_to_bev, voxelize

Reach = tuple[float, float, float, float, float, float]


class MapOutputs(NamedTuple):
    """What a detector answers to B frames.

    Attributes:
        stages: maps of the two-dimensional backbone, finest first, [B, C, H, W] each.
        neck: [B, C, ny, nx], on the detector's `grid`.
        predictions: of the head, one of each group of classes.
        extra: what else its losses need, by name.
    """

    stages: list[Tensor]
    neck: Tensor
    predictions: list[Prediction]
    extra: dict[str, Tensor]


class MapDetector(nn.Module, ABC):
    """Base of detectors from above. A network of another sensor defines `maps`, and where it has losses of its own, `extra_losses`.

    Args:
        head: reads the neck.

    Attributes:
        grid: of the neck and the head.
        classes: with their groups.
        naming: a module that names boxes by words (`Naming`), put there by whoever trains one; None for a detector of known classes.
    """

    naming: Any
    velocity_weight = 0.2  # of the loss; camera students of the papers have 1

    def __init__(self, head: CenterHead | AnchorHead) -> None:
        super().__init__()
        self.head, self.naming = head, None

    @property
    def grid(self) -> BevGrid:
        """Of the neck's map."""
        return self.head.grid

    @property
    def classes(self) -> ClassList:
        """With their groups."""
        return self.head.classes

    @abstractmethod
    def maps(self, inputs: FrameInputs, previous: FrameInputs | None = None) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        """Stages, neck and extras of `MapOutputs`.

        Args:
            inputs: of the frames.
            previous: of the frames before them, for networks that look back.
        """

    def raw(self, inputs: FrameInputs, previous: FrameInputs | None = None) -> MapOutputs:
        """All that it answers."""
        stages, neck, extra = self.maps(inputs, previous)
        return MapOutputs(stages, neck, self.head(neck), extra)

    def task_losses(self, outputs: MapOutputs, batch: FrameBatch) -> dict[str, Tensor]:
        """What plain training minimises: the head's ``heatmap`` and ``box`` (and ``direction`` of anchors), and the network's own."""
        losses = self.head.losses(outputs.predictions, batch.boxes, batch.labels, velocity_weight=self.velocity_weight)
        return {**losses, **self.extra_losses(outputs, batch)}

    def extra_losses(self, outputs: MapOutputs, batch: FrameBatch) -> dict[str, Tensor]:
        """Terms beside the head's, scalars by name."""
        return {}

    @torch.no_grad()
    def detect(self, inputs: FrameInputs, previous: FrameInputs | None = None) -> list[Detections]:
        """The boxes of each frame, best first; in eval mode."""
        return self.head.detect(self.raw(inputs, previous).predictions)

    def forward(self, inputs: FrameInputs) -> dict[str, Tensor]:
        """``neck``, ``heatmap`` (logits) and ``codes``, as the head's `dense` has them."""
        outputs = self.raw(inputs)
        heatmap, codes = self.head.dense(outputs.predictions)
        return {"neck": outputs.neck, "heatmap": heatmap, "codes": codes}


@dataclass(frozen=True)
class LidarSpec:
    """What a lidar detector is made of.

    Args:
        voxels: sparse convolutions in three dimensions; else pillars.
        cell: metres of a pillar's or a voxel's side.
        height: metres of a voxel's height.
        encoder: width of the pillars' network.
        widths: of the two-dimensional stages.
        layers: convolutions behind the first of each.
        strides: of each.
        neck: width of each stage in the neck.
        upsample: of each stage in the neck.
        sparse: widths of the sparse backbone: of its first convolution and its four stages.
        anchors: a head of anchors, as SECOND and PointPillars have it; else of centres.
        head: width of the shared convolution and the branches of a head of centres.
        momentum: of the batch norms: a small one, as in the papers, needs thousands of steps before evaluation is worth anything.
        factors: of the encoder's (or the sparse backbone's) widths, those of stages and neck, and the head's.
    """

    voxels: bool = False
    cell: float = 0.2
    height: float = 0.2
    encoder: int = 64
    widths: tuple[int, ...] = (64, 128, 256)
    layers: tuple[int, ...] = (3, 5, 5)
    strides: tuple[int, ...] = (2, 2, 2)
    neck: int = 128
    upsample: tuple[float, ...] = (0.5, 1, 2)
    sparse: tuple[int, int, int, int, int] = (16, 16, 32, 64, 128)
    anchors: bool = False
    head: int = 64
    momentum: float = 0.01
    factors: tuple[float, float, float] = field(default=(1.0, 1.0, 1.0))


PILLARS = LidarSpec()
VOXELS = LidarSpec(voxels=True, cell=0.1, widths=(128, 256), layers=(5, 5), strides=(1, 2), neck=256, upsample=(1, 2))
# For made-up streets and a CPU: from pillars of 0.4 m to a map at half their resolution.
SMALL = LidarSpec(cell=0.4, encoder=32, widths=(32, 64), layers=(2, 2), strides=(2, 2), neck=32, upsample=(1, 2), head=32, momentum=0.1)
SMALL_VOXELS = LidarSpec(
    voxels=True, cell=0.2, height=0.25, widths=(32, 64), layers=(2, 2), strides=(1, 2), neck=32, upsample=(1, 2), head=32, momentum=0.1
)
# KITTI's; SECOND's sparse backbone is the residual one here, narrower in its last stage.
POINTPILLARS = LidarSpec(cell=0.16, upsample=(1, 2, 4), anchors=True)
SECOND = LidarSpec(
    voxels=True,
    cell=0.05,
    height=0.1,
    widths=(128, 256),
    layers=(5, 5),
    strides=(1, 2),
    neck=256,
    upsample=(1, 2),
    sparse=(16, 16, 32, 64, 64),
    anchors=True,
)
LIDAR = {
    "pointpillars": POINTPILLARS,
    "second": SECOND,
    "centerpoint-pillar": PILLARS,
    "centerpoint-voxel": VOXELS,
    "pillar-small": SMALL,
    "voxel-small": SMALL_VOXELS,
}


class Naming(Protocol):
    """What a detector of one class may have beside its head, as a module of its own: it names boxes by any words."""

    def card(self) -> dict[str, Any]:
        """What `student.json` is to say of it besides."""

    def texts(self, queries: Sequence[str], card: Mapping[str, Any]) -> Tensor:
        """Texts as it compares points with them, [Q, C].

        Args:
            queries: of which one is to be each box's.
            card: what `student.json` says.

        Raises:
            InputError: (query) one that it cannot read.
        """

    def named(self, outputs: MapOutputs, inputs: FrameInputs, found: Sequence[Detections], texts: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each frame's boxes which query each is, int64 [M], and how probable that is, [M]."""


class LidarDetector(MapDetector):
    """CenterPoint, PointPillars or SECOND.

    Args:
        spec: what it is made of.
        columns: of the points that it reads; those beyond the range of the data have no effect.
        classes: with their groups.
        reach: metres: least x, y, z, then most.
        velocity: boxes have one.

    With a `naming`, `MapOutputs.extra` has ``kept`` and ``voxel`` (of `Voxels`), ``pillars`` [M, C], and ``told`` [P, D + 5].

    Raises:
        InputError: the range is no whole number of cells, or of a stride.
    """

    def __init__(self, spec: LidarSpec, columns: tuple[str, ...], classes: ClassList, reach: Reach, *, velocity: bool) -> None:
        low, high = reach[:3], reach[3:]
        encoder, bev, wide = spec.factors
        size = (spec.cell, spec.cell, spec.height if spec.voxels else high[2] - low[2])
        voxel_grid = VoxelGrid(low, high, size)
        flat = voxel_grid.bev
        stride = (8 if spec.voxels else 1) * spec.strides[0] / spec.upsample[0]
        coarsest = 8 if spec.voxels else 1
        for factor in spec.strides:
            coarsest *= factor
        if flat.nx % coarsest or flat.ny % coarsest:
            got = f"{flat.ny} x {flat.nx} cells of {spec.cell:g} m"
            raise InputError(
                "reach", got, f"numbers of cells that are multiples of {coarsest}; --reach or the network's cell= changes them"
            )
        reader: nn.Module
        if spec.voxels:
            reader, backbone_3d = MeanVoxelEncoder(), VoxelBackbone(len(columns), voxel_grid.shape, spec.sparse, factor=encoder)
            width = backbone_3d.out_channels
        else:
            reader, backbone_3d = PillarEncoder(len(columns), voxel_grid, (scaled(spec.encoder, encoder),)), None
            width = scaled(spec.encoder, encoder)
        stages = SecondBackbone(width, spec.widths, spec.layers, spec.strides, factor=bev)
        neck = SecondFPN(stages.out_channels, [spec.neck] * len(spec.widths), spec.upsample, factor=bev)
        grid = flat.coarser(stride)
        head: CenterHead | AnchorHead
        if spec.anchors:
            head = AnchorHead(neck.out_channels, classes, grid)
        else:
            head = CenterHead(neck.out_channels, classes, grid, velocity=velocity, width=scaled(spec.head, wide))
        super().__init__(head)
        self.spec, self.columns, self.voxel_grid = spec, columns, voxel_grid
        self.encoder, self.backbone_3d, self.backbone, self.neck = reader, backbone_3d, stages, neck
        self.input_channels = width
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = spec.momentum

    def encoded(self, inputs: FrameInputs) -> tuple[Tensor, Voxels]:
        """Features of the voxels or pillars [M, C], and which these are."""
        voxels = voxelize(inputs.points, inputs.batch_index, inputs.batch_size, self.voxel_grid)
        return self.encoder(inputs.points, voxels), voxels

    def canvas(self, features: Tensor, voxels: Voxels) -> Tensor:
        """What the two-dimensional part reads, [B, C, ny, nx]."""
        if self.backbone_3d is not None:
            found: Tensor = self.backbone_3d(features, voxels)
            return found
        return scatter_to_bev(features, voxels.coords, voxels.batch_size, *voxels.shape[1:])

    def maps(self, inputs: FrameInputs, previous: FrameInputs | None = None) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        """See `MapDetector.maps`; it looks at the present alone."""
        features, voxels = self.encoded(inputs)
        stages = self.backbone(self.canvas(features, voxels))
        extra = {}
        if self.naming is not None and isinstance(self.encoder, PillarEncoder):
            told = self.encoder.told(inputs.points, voxels)
            extra = {"kept": voxels.kept, "voxel": voxels.voxel, "pillars": features, "told": told}
        return stages, self.neck(stages), extra


class DensePart(nn.Module):
    """What stands behind a lidar detector's encoder, from a map to the head's maps: the part that other runtimes take.

    Args:
        detector: whose it is.
    """

    def __init__(self, detector: LidarDetector) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = detector.backbone, detector.neck, detector.head

    def forward(self, canvas_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and codes, maps [B, ., ny, nx], as the head's `dense` has them."""
        return self.head.dense(self.head(self.neck(self.backbone(canvas_BCHW))))
