"""Detectors that look from above through cameras: features of pictures are lifted along their rays, or asked for by queries of the map.

Sources: BEVDet and BEVDepth (with the frame before, "4D") as the specification of DistillBEV has them; BEVFormer's spatial cross-attention,
without its temporal one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, relu

from stillroom.errors import InputError
from stillroom.modules.convolutions import conv_unit
from stillroom.tasks.detection3d.networks import MapDetector, MapOutputs, Reach
from stillroom.tasks.points.backbones import BevBlock, BevResNet, LssFPN, scaled
from stillroom.tasks.points.cameras import Cameras
from stillroom.tasks.points.center_head import CenterHead
from stillroom.tasks.points.frames import FrameBatch, FrameInputs
from stillroom.tasks.points.grid import BevGrid, ClassList
from stillroom.tasks.points.lift_splat import DepthBins, DepthNet, LiftSplat, depth_grid, depth_loss, warp_bev

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in which pictures are read
_LAYERS, _HEIGHTS, _POINTS = 2, 4, 2  # of queries: layers, heights above each cell, positions around each


@dataclass(frozen=True)
class CameraSpec:
    """What a camera detector is made of.

    Args:
        backbone: ``small``, four convolutions at stride 8, or a network of timm whose last two stages are joined at stride 16.
        features: channels of a picture's map.
        depths: metres: from, to (0 for as far as the map reaches) and step of the bins.
        context: channels that are lifted.
        gated: BEVDepth's branch of depth, gated by the camera's parameters, and taught by the lidar's depths.
        deformable: a deformable convolution in it.
        look_back: the frame before is looked at, too.
        queries: the map asks for features instead; `depths`, `gated` and `look_back` are not used.
        cell: metres of the map's cells.
        widths, layers: of the map's stages.
        neck: width of the neck.
        head: width of the head.
        momentum: of the batch norms: small ones need thousands of steps before evaluation is worth anything.
    """

    backbone: str = "resnet50"
    features: int = 512
    depths: tuple[float, float, float] = (1.0, 60.0, 1.0)
    context: int = 64
    gated: bool = False
    deformable: bool = False
    look_back: bool = False
    queries: bool = False
    cell: float = 0.8
    widths: tuple[int, int, int] = (128, 256, 512)
    layers: tuple[int, int, int] = (2, 2, 2)
    neck: int = 256
    head: int = 64
    momentum: float = 0.1


_SMALL = {"backbone": "small", "features": 48, "depths": (1.0, 0.0, 1.0), "context": 32, "widths": (48, 64, 96), "layers": (1, 1, 1)}
_SMALL |= {"neck": 48, "head": 32}
CAMERA = {
    "bevdet": CameraSpec(),
    "bevdepth": CameraSpec(gated=True, deformable=True, look_back=True),
    "bevformer": CameraSpec(queries=True, features=256, neck=256, cell=0.512),
    "bevdet-small": CameraSpec(**_SMALL),  # type: ignore[arg-type]
    "bevdepth-small": CameraSpec(**_SMALL, gated=True, look_back=True),  # type: ignore[arg-type]
    "bevformer-small": CameraSpec(**_SMALL, queries=True),  # type: ignore[arg-type]
}


class CameraDetector(MapDetector):
    """A detector of pictures; what lidar points there are only teach it depth.

    Args:
        spec: what it is made of.
        classes: with their groups.
        reach: metres: least x, y, z, then most.
        velocity: boxes have one.
        factor: of every width behind the pictures' maps.

    Raises:
        InputError: the range is no whole number of cells, or not a multiple of 8 of them.
    """

    mean: Tensor
    std: Tensor
    velocity_weight = 1.0

    def __init__(self, spec: CameraSpec, classes: ClassList, reach: Reach, *, velocity: bool, factor: float = 1.0) -> None:
        grid = BevGrid((reach[0], reach[3]), (reach[1], reach[4]), spec.cell)
        if not spec.queries and (grid.nx % 8 or grid.ny % 8):
            got = f"{grid.ny} x {grid.nx} cells of {spec.cell:g} m"
            raise InputError("reach", got, "numbers of cells that are multiples of 8; --reach or the network's cell= changes them")
        neck = scaled(spec.neck, factor)
        super().__init__(CenterHead(neck, classes, grid, velocity=velocity, width=scaled(spec.head, factor)))
        self.spec, self.heights = spec, (reach[2], reach[5])
        self.encoder: nn.Module = SmallEncoder(spec.features) if spec.backbone == "small" else TimmEncoder(spec.backbone, spec.features)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        if spec.queries:
            self.queries = BevQueries(spec.features, neck, grid, self.heights)
        else:
            low, high, step = spec.depths
            farthest = high or max(map(abs, (*reach[:2], *reach[3:5]))) + low
            self.bins = DepthBins(low, farthest, step)
            wide = spec.features if spec.backbone == "small" else 256
            self.depth: nn.Module = (
                DepthNet(
                    spec.features, spec.context, len(self.bins), width=wide, blocks=3 if wide == 256 else 1, deformable=spec.deformable
                )
                if spec.gated
                else nn.Conv2d(spec.features, len(self.bins) + spec.context, 1)
            )
            self.lift = LiftSplat(grid, self.bins, (0, 0), 8 if spec.backbone == "small" else 16)
            self.before = nn.Sequential(*(BevBlock(spec.context, spec.context) for _ in range(2 if spec.look_back else 0)))
            widths = [scaled(width, factor) for width in spec.widths]
            self.backbone = BevResNet(spec.context * (1 + spec.look_back), widths, spec.layers)
            self.neck = LssFPN(widths[0], widths[2], neck, final_relu=True)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = spec.momentum

    def maps(self, inputs: FrameInputs, previous: FrameInputs | None = None) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        """See `MapDetector.maps`; the depth's logits are among the extras.

        Raises:
            InputError: frames without pictures.
        """
        features_BNCHW, cameras = self.seen(inputs)
        if self.spec.queries:
            return [], self.queries(features_BNCHW, cameras, self._size(inputs)), {}
        lifted, depth = self.lifted(inputs, features_BNCHW, cameras)
        if self.spec.look_back:
            with torch.no_grad():
                earlier = lifted if previous is None else self.lifted(previous, *self.seen(previous))[0]
                earlier = self._where_it_is_now(earlier, inputs, previous)
            lifted = torch.cat((lifted, earlier.detach()), 1)
        stages = self.backbone(lifted)
        return stages, self.neck(stages), {"depth": depth}

    def seen(self, inputs: FrameInputs) -> tuple[Tensor, Cameras]:
        """The pictures' maps [B, V, C, h, w] and the cameras."""
        if inputs.images is None or inputs.cameras is None:
            raise InputError("data", "frames without pictures", "frames with cameras, such as streets:cameras=4, for a camera detector")
        images = (inputs.images - self.mean) / self.std
        return self.encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2]), inputs.cameras

    def lifted(self, inputs: FrameInputs, features_BNCHW: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
        """A frame's map from above [B, C, ny, nx], and the logits of its pictures' depths [B, V, D, h, w]."""
        if self.spec.gated:
            depth, context = self.depth(features_BNCHW, cameras)
        else:
            both = self.depth(features_BNCHW.flatten(0, 1)).unflatten(0, features_BNCHW.shape[:2])
            depth, context = both.split((len(self.bins), self.spec.context), 2)
        self.lift.input_size = self._size(inputs)
        found: Tensor = self.before(self.lift(depth, context, cameras))
        return found, depth

    def extra_losses(self, outputs: MapOutputs, batch: FrameBatch) -> dict[str, Tensor]:
        """``depth``, where the spec has BEVDepth's branch: the lidar's nearest points in each cell of the pictures' maps."""
        if not self.spec.gated or "depth" not in outputs.extra:
            return {}
        logits, cameras = outputs.extra["depth"], batch.inputs.cameras
        assert cameras is not None
        maps = []
        for sample in range(batch.inputs.batch_size):
            points = batch.inputs.points[batch.inputs.batch_index == sample, :3]
            uv, depth = cameras[sample : sample + 1].project(points[None])
            size = (logits.shape[-2], logits.shape[-1])
            maps.append(depth_grid(uv[0], depth[0], size, self.lift.stride, least=self.bins.low, most=self.bins.high))
        return {"depth": depth_loss(logits, torch.stack(maps), self.bins)}

    def _where_it_is_now(self, earlier: Tensor, inputs: FrameInputs, previous: FrameInputs | None) -> Tensor:
        """The map of the frame before, in the present frame's coordinates."""
        if previous is None or inputs.ego2global is None or previous.ego2global is None:
            return earlier
        motion = torch.linalg.inv(previous.ego2global) @ inputs.ego2global
        return warp_bev(earlier, motion.float(), self.grid)

    @staticmethod
    def _size(inputs: FrameInputs) -> tuple[int, int]:
        assert inputs.images is not None
        return inputs.images.shape[-2], inputs.images.shape[-1]


class SmallEncoder(nn.Sequential):
    """Four convolutions: pictures [B, 3, H, W] to maps [B, channels, H / 8, W / 8]."""

    def __init__(self, channels: int) -> None:
        half = max(channels // 2, 1)
        units = [(3, half, 2), (half, channels, 2), (channels, channels, 2), (channels, channels, 1)]
        super().__init__(*(conv_unit(wide, out, 3, stride) for wide, out, stride in units))


class TimmEncoder(nn.Module):
    """The last two stages of a network of timm, the coarser added to the finer: [B, 3, H, W] to [B, channels, H / 16, W / 16].

    Args:
        name: of the network; it starts from random numbers.
        channels: of the map.
    """

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        import timm

        network: Any = timm.create_model(name, pretrained=False, features_only=True, out_indices=(-2, -1))
        self.network: nn.Module = network
        fine, coarse = network.feature_info.channels()
        self.fine, self.coarse = nn.Conv2d(fine, channels, 1), nn.Conv2d(coarse, channels, 1)
        self.join = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        fine, coarse = self.network(images)
        top = nn.functional.interpolate(self.coarse(coarse), size=fine.shape[-2:], mode="bilinear", align_corners=False)
        found: Tensor = self.join(self.fine(fine) + top)
        return found


class BevQueries(nn.Module):
    """A map whose cells ask the cameras: each query reads the pictures at and around where its cell, at several heights, is seen.

    A layer's answer is the mean, over the cameras that see the cell, of what was read there, weighted by a softmax over heights and
    positions; then a feed-forward network.

    Args:
        features: channels of the pictures' maps.
        channels: of the map.
        grid: of the map.
        heights: metres, least and most.
    """

    points: Tensor

    def __init__(self, features: int, channels: int, grid: BevGrid, heights: tuple[float, float]) -> None:
        super().__init__()
        self.grid = grid
        self.start = nn.Parameter(0.02 * torch.randn(grid.ny * grid.nx, channels))
        self.value = nn.Conv2d(features, channels, 1)
        count = _HEIGHTS * _POINTS
        self.offset = nn.ModuleList(nn.Linear(channels, 2 * count) for _ in range(_LAYERS))
        self.weight = nn.ModuleList(nn.Linear(channels, count) for _ in range(_LAYERS))
        self.out = nn.ModuleList(nn.Linear(channels, channels) for _ in range(_LAYERS))
        self.forward_net = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels))
            for _ in range(_LAYERS)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(channels) for _ in range(_LAYERS))
        for layer in self.offset:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.uniform_(layer.bias, -2.0, 2.0)  # type: ignore[arg-type]  # cells of the pictures' maps
        xy = grid.positions().flatten(0, 1)
        z = torch.linspace(*heights, _HEIGHTS + 2)[1:-1]
        points = torch.cat((xy[:, None].expand(-1, _HEIGHTS, 2), z[None, :, None].expand(len(xy), -1, 1)), -1)
        self.register_buffer("points", points.flatten(0, 1), persistent=False)

    def forward(self, features_BNCHW: Tensor, cameras: Cameras, size: tuple[int, int]) -> Tensor:
        """Maps [B, V, C, h, w] of pictures of that size -> [B, channels, ny, nx]; not negative, as a lidar teacher's is not."""
        batch, views = features_BNCHW.shape[:2]
        value = self.value(features_BNCHW.flatten(0, 1))
        rows, columns = value.shape[-2:]
        stride = size[1] / columns
        uv, depth = cameras.project(self.points[None].expand(batch, -1, -1))
        at = (uv + 0.5) / stride
        visible = (depth > 0.1) & (at >= 0).all(-1) & (at[..., 0] < columns) & (at[..., 1] < rows)
        at = at.unflatten(2, (-1, _HEIGHTS, 1)).nan_to_num(0.0)
        seen = visible.unflatten(2, (-1, _HEIGHTS))
        counted = seen.any(3).sum(1).clamp(min=1)[..., None]  # [B, Q, 1] cameras that see a cell
        limit = at.new_tensor((columns, rows))
        queries = self.start.expand(batch, -1, -1)
        for layer, (offset, weight, out) in enumerate(zip(self.offset, self.weight, self.out, strict=True)):
            normed = self.norm[layer](queries)
            around = offset(normed).unflatten(-1, (_HEIGHTS, _POINTS, 2))[:, None]
            grid = ((at + around) / limit * 2 - 1).clamp(-4, 4).flatten(0, 1).flatten(2, 3)
            read = grid_sample(value.float(), grid.float(), align_corners=False).unflatten(0, (batch, views))
            share = weight(normed).softmax(-1).unflatten(-1, (_HEIGHTS, _POINTS))[:, None] * seen[..., None]
            mixed = (read * share.flatten(3)[:, :, None]).sum((1, -1)).transpose(1, 2) / counted
            queries = queries + out(mixed)
            queries = queries + self.forward_net[layer](queries)
        return relu(queries).transpose(1, 2).unflatten(2, (self.grid.ny, self.grid.nx))
