"""Pyramids: a backbone and the maps that a detector reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.errors import InputError
from stillroom.tasks.images.timm_backbone import TimmBackbone, adopt_classifier, freeze_up_to


class SmallBackbone(nn.Module):
    """conv-BN-ReLU: a stem of stride 2 and stages of stride 2 each; what procedural scenes are detected with.

    Args:
        stem: channels of the stem.
        stages: channels of each stage; stage i has the stride 2^(i + 2).
        extra: further 3x3 convolutions of each stage.
    """

    def __init__(self, stem: int, stages: Sequence[int], extra: int = 0) -> None:
        super().__init__()
        self.channels = tuple(stages)
        self.strides = tuple(2 ** (i + 2) for i in range(len(stages)))
        self.stem = _block(3, stem, stride=2)
        self.stages = nn.ModuleList()
        width = stem
        for channels in stages:
            self.stages.append(nn.Sequential(_block(width, channels, stride=2), *(_block(channels, channels) for _ in range(extra))))
            width = channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images -> one map for each stage."""
        x, maps = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def adopt_backbone(detector: nn.Module, weights: str, *, trust_pickle: bool = False, argument: str = "backbone") -> str:
    """Gives a detector's backbone the weights of a classifier, and freezes what the papers freeze then; says so, in a clause.

    Stem and first stage are not trained any more, and BatchNorm's statistics stay as they are; its scales and shifts are trained from the
    second stage on in GFL (BCKD's release), and nowhere in torchvision's detectors (their own habit).

    Args:
        detector: with a backbone of timm, or torchvision's detector in its adapter.
        weights: a file of the backbone's own library: a state dict of the classifier, whose head is left out. Or the folder
            of a run, or ``pretrained``: what the library publishes.
        trust_pickle: read weights that are pickles, which can run code as they are read.
        argument: what the user calls the specification; named in errors.

    Raises:
        InputError: a detector without such a backbone; weights that are missing, cannot be downloaded or do not fit.
    """
    backbone = getattr(getattr(detector, "model", detector), "backbone", None)
    backbone = getattr(backbone, "backbone", backbone) if isinstance(backbone, PyramidMaps) else backbone
    if isinstance(backbone, TimmBackbone):
        network, name = backbone.network, backbone.name
    elif isinstance(body := getattr(backbone, "body", None), nn.Module):
        from timm.layers import freeze_batch_norm_2d

        network, name = body, "resnet50"
        freeze_batch_norm_2d(body)
    else:
        raise InputError(
            argument,
            f"weights for the backbone of {type(detector).__name__}",
            "gfl/BACKBONE, atss/BACKBONE or torchvision/NAME before them",
        )
    of_timm = isinstance(backbone, TimmBackbone)
    count = adopt_classifier(network, name, weights, of_timm=of_timm, trust_pickle=trust_pickle, argument=argument)
    if isinstance(backbone, TimmBackbone):
        backbone.freeze()
    else:
        freeze_up_to(network, "layer1")
    return f"its backbone starts from all {count} tensors that it has in {weights}; stem and first stage stay as they are"


class Pyramid(nn.Module):
    """A feature pyramid: lateral 1x1 convolutions, nearest-neighbour top-down addition, 3x3 output convolutions, and further levels by
    3x3 convolutions of stride 2. No norm, no activation; Xavier-uniform weights, zero biases.

    Args:
        channels: of the backbone's maps.
        width: D, of the pyramid's.
        extra: further levels.

    Source: Lin et al. 2017; the further levels of Tian et al. 2019 (FCOS) without ReLU between them.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, extra: int = 2) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.extra = nn.ModuleList(nn.Conv2d(width, width, 3, 2, 1) for _ in range(extra))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's maps, fine to coarse -> the pyramid's."""
        levels = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[-2:], mode="nearest")
        out = [output(level) for output, level in zip(self.output, levels, strict=True)]
        for convolution in self.extra:
            out.append(convolution(out[-1]))
        return out


def strides_of(strides: Sequence[int], extra: int) -> tuple[int, ...]:
    """Strides of a pyramid over maps of these strides."""
    return (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(extra)))


def padded_size(size: int, divisor: int) -> int:
    """The smallest multiple of `divisor` that is not below `size`."""
    return -(-size // divisor) * divisor


def pad_batch(images: Sequence[Tensor], divisor: int = 32, canvas: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Images [3, h, w] of any sizes as one batch [B, 3, H, W], zeros at the right and the bottom, H and W multiples of `divisor` that the
    largest fits into, or those of the `canvas`; and their sizes int64 [B, 2]."""
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = canvas or (padded_size(int(most), divisor) for most in sizes.amax(0))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[-2], : image.shape[-1]] = image
    return batch, sizes


def shown(images: Tensor, image_sizes: Tensor) -> Tensor:
    """Which pixels of a padded batch [B, D, H, W] are image: bool [B, H, W]; sizes int64 [B, 2], height and width."""
    height_B1, width_B1 = image_sizes.to(images.device).split(1, 1)
    rows_BH = torch.arange(images.shape[-2], device=images.device) < height_B1
    columns_BW = torch.arange(images.shape[-1], device=images.device) < width_B1
    return rows_BH[:, :, None] & columns_BW[:, None]


class PyramidMaps(nn.Module):
    """A backbone and its pyramid in torchvision's manner: maps by name, the finest first.

    Args:
        backbone: images -> a list of maps; has `channels`.
        width, extra: see `Pyramid`.
    """

    def __init__(self, backbone: nn.Module, width: int = 256, extra: int = 0) -> None:
        super().__init__()
        self.out_channels = width
        self.backbone, self.pyramid = backbone, Pyramid(tuple(backbone.channels), width, extra)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """float [B, 3, H, W] -> maps [B, width, h, w]."""
        return {str(level): feature for level, feature in enumerate(self.pyramid(self.backbone(images)))}
