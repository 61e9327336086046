"""The 2D teacher: any frozen backbone with weights, or a small stand-in that learns without labels from the scans' own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from stillroom.errors import InputError
from stillroom.methods.pointdc.lifting import lifted, region_targets, sampled, seen
from stillroom.tasks.images.classifiers import build_classifier
from stillroom.tasks.images.feature_maps import feature_maps
from stillroom.tasks.images.sources import IMAGENET_STATISTICS
from stillroom.tasks.points.frames import Frame
from stillroom.tasks.points.segments import segment_mean

OWN = "own"  # the specification of the stand-in
_WIDTH = 32
_BATCH, _PIXELS = 8, 512  # pictures of a step, and pixels that are compared


@dataclass(frozen=True)
class Encoder:
    """A frozen dense encoder of pictures.

    Args:
        network: normalised [B, 3, H, W] to features [B, C, h, w].
        channels: C.
        mean, std: of pixels in [0, 1] that it reads.
        cell: pixels that height and width are multiples of.
        short: pixels that the shorter side of a picture is brought to; None for as it is.
        name: for reports.
    """

    network: nn.Module
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cell: int
    short: int | None
    name: str

    @torch.no_grad()
    def features(self, image: np.ndarray, device: torch.device) -> Tensor:
        """Of a picture uint8 [H, W, 3]: float32 [C, h, w], on the CPU."""
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float().to(device) / 255
        height, width = pixels.shape[2:]
        factor = 1.0 if self.short is None else self.short / min(height, width)
        size = [max(self.cell, round(side * factor / self.cell) * self.cell) for side in (height, width)]
        if size != [height, width]:
            pixels = interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
        normal = [pixels.new_tensor(values)[None, :, None, None] for values in (self.mean, self.std)]
        found: Tensor = self.network((pixels - normal[0]) / normal[1])[0].float().cpu()
        return found


class Tokens(nn.Module):
    """A network of timm's before its head, as maps [B, C, h, w]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, h, w]."""
        found: Tensor = self.network.forward_features(images)
        if found.dim() == 3:
            rows, columns = self.network.patch_embed.dynamic_feat_size(images.shape[2:])
            patches = found[:, getattr(self.network, "num_prefix_tokens", 0) :]
            return patches.transpose(1, 2).reshape(len(images), -1, rows, columns)
        return found if found.shape[1] == self.network.num_features else found.permute(0, 3, 1, 2)


def open_encoder(spec: str, short: int, *, trust_pickle: bool) -> Encoder:
    """The encoder of ``timm/NAME@WEIGHTS``, or of any classifier with weights, of which what is behind its last map is taken off.

    Args:
        spec: what the user typed.
        short: pixels of the shorter side of the pictures that it is shown.
        trust_pickle: read weights that can run code as they are read.

    Raises:
        InputError: it has no weights, or is no such network.
    """
    source, _, weights = spec.partition("@")
    if not weights:
        raise InputError("teacher", spec, f"a network with weights (timm/vit_small_patch16_224.dino@FILE), or {OWN} for the small stand-in")
    if source.startswith("timm/"):
        import timm

        own = timm.get_pretrained_cfg(source.removeprefix("timm/"))
        side = (getattr(own, "input_size", None) or (3, 224, 224))[1]
        network: Any = build_classifier(spec, num_classes=2, image_size=side, trust_pickle=trust_pickle, argument="teacher").network
        embed = getattr(network, "patch_embed", None)
        if embed is not None and hasattr(network, "dynamic_img_size"):  # a transformer's positions are resampled for any size
            network.dynamic_img_size = True
            embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, type(embed.output_fmt)("NHWC")
        cell = int(embed.patch_size[0]) if embed is not None else 32
        config = timm.data.resolve_model_data_config(network)
        return Encoder(Tokens(network).eval(), int(network.num_features), config["mean"], config["std"], cell, short, spec)
    backbone, channels = feature_maps(source, 2, 224, pretrained=weights == "pretrained", trust_pickle=trust_pickle, argument="teacher")
    if weights != "pretrained":
        raise InputError("teacher", spec, "timm/NAME@FILE; of other libraries NAME@pretrained")
    return Encoder(backbone.eval(), channels, *IMAGENET_STATISTICS, 32, short, spec)


# The stand-in ---------------------------------------------------------------------------------------------------------------------------


class SmallEncoder(nn.Module):
    """Four convolutions at a stride of 4, dilated at the end, [B, 3, H, W] to [B, 32, H / 4, W / 4].

    Its answers have mean 0 and deviation 1 in every channel over the pictures that it learned from: features are compared by their
    directions, and a mean that all share would make all directions alike.
    """

    def __init__(self) -> None:
        super().__init__()
        shape = ((3, 2, 1), (_WIDTH, 2, 1), (_WIDTH, 1, 2), (_WIDTH, 1, 4))
        self.convs = nn.ModuleList(
            nn.Conv2d(wide, _WIDTH, 5 if stride > 1 else 3, stride, 2 if stride > 1 else dilation, dilation, bias=False)
            for wide, stride, dilation in shape
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(_WIDTH) for _ in shape)
        self.last = nn.Sequential(nn.Conv2d(_WIDTH, _WIDTH, 1), nn.BatchNorm2d(_WIDTH, affine=False))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            images = relu(norm(conv(images)))
        found: Tensor = self.last(images)
        return found


def jittered(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] in other colours: channels mixed, brighter or darker, with another contrast, and some noise."""
    count = len(images)
    mix = torch.eye(3) + 0.25 * torch.randn(count, 3, 3, generator=generator)
    gain = 0.7 + 0.6 * torch.rand(count, 1, 1, 1, generator=generator)
    mixed = torch.einsum("bij,bjhw->bihw", mix, images)
    middle = mixed.mean((1, 2, 3), keepdim=True)
    contrast = 0.7 + 0.6 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = 0.03 * torch.randn(images.shape, generator=generator)
    return ((mixed - middle) * contrast + middle * gain + noise).clamp(0, 1)


def dense_vicreg(first_PC: Tensor, second_PC: Tensor) -> Tensor:
    """VICReg of corresponding pixels' features [P, C]: 25 x squared distance + 25 x hinge of deviations below 1 + covariances.

    Source: Bardes et al. 2022, equation 6.
    """
    loss = 25 * (first_PC - second_PC).square().mean()
    for features in (first_PC, second_PC):
        centred = features - features.mean(0)
        loss = loss + 25 * relu(1 - (centred.var(0) + 1e-4).sqrt()).mean() / 2
        covariance = centred.T @ centred / (len(centred) - 1)
        loss = loss + (covariance.square().sum() - covariance.diagonal().square().sum()) / features.shape[1]
    return loss


def train_own(images: Tensor, steps: int, seed: int) -> dict[str, Tensor]:
    """The stand-in's weights: two views in other colours of the same pictures are to have the same features at the same pixels.

    Args:
        images: uint8 [B, 3, H, W], of training scans alone.
        steps: of Adam.
        seed: of everything that is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = SmallEncoder().train()
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        for _ in range(steps):
            chosen = images[torch.randint(len(images), (_BATCH,), generator=generator)].float() / 255
            views = [network(jittered(chosen, generator) - 0.5).permute(0, 2, 3, 1).reshape(-1, _WIDTH) for _ in range(2)]
            pixels = torch.randint(len(views[0]), (_PIXELS,), generator=generator)
            loss = dense_vicreg(views[0][pixels], views[1][pixels])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: value.detach() for name, value in network.state_dict().items()}


def own_encoder(weights: dict[str, Tensor]) -> Encoder:
    """The stand-in with its weights."""
    network = SmallEncoder()
    network.load_state_dict(weights)
    return Encoder(network.eval(), _WIDTH, (0.5,) * 3, (1.0,) * 3, 4, None, "a small stand-in, trained on these pictures without labels")


# Targets --------------------------------------------------------------------------------------------------------------------------------


def scene_targets(frame: Frame, encoder: Encoder, device: torch.device) -> tuple[Tensor, int]:
    """The 2D feature of every super-voxel of a scan, [R, C], zero for one that no view sees; and how many of its voxels some view sees.

    Args:
        frame: as the data keep it: voxels, with `regions` in its `meta`.
        encoder: of pictures.
        device: where it computes.
    """
    points, regions = torch.from_numpy(frame.points[:, :3]), torch.from_numpy(frame.meta["regions"])
    count = int(regions.amax()) + 1 if len(regions) else 0
    views: list[tuple[Tensor, Tensor]] = []
    some = torch.zeros(len(points), dtype=torch.bool)
    for view in frame.views:
        size = view.image.shape[0], view.image.shape[1]
        pose = torch.from_numpy(np.linalg.inv(view.cam2ego)).float()
        depth = None if view.depth is None else torch.from_numpy(view.depth)
        sees, uv = seen(points, torch.from_numpy(view.intrinsics).float(), pose, depth, size)
        if bool(sees.any()):
            views.append((sees, sampled(encoder.features(view.image, device), uv[sees], size)))
            some |= sees
    whole = region_targets(lifted(views, len(points), encoder.channels), some, regions)
    inside = regions >= 0
    return segment_mean(whole[inside], regions[inside], count), int(some.sum())


def pictures_of(frames: Sequence[Frame]) -> Tensor:
    """All pictures of scans, uint8 [B, 3, H, W].

    Raises:
        InputError: there is none, or they are of several sizes.
    """
    images = [view.image for frame in frames for view in frame.views]
    if not images or len({image.shape for image in images}) > 1:
        got = "scans without pictures" if not images else "pictures of several sizes"
        raise InputError("data", got, "scans with posed pictures of one size, or features of a teacher with weights")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
