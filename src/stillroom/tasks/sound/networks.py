"""Networks that see or hear a room and answer for all of its surroundings: an encoder of one, two or three dimensions, features on the
grids of what is seen, and a decoder over them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import elu, grid_sample, interpolate

from stillroom.errors import InputError, one_of
from stillroom.tasks.sound.losses import depth_decode
from stillroom.tasks.sound.recordings import COARSE, FINE, Target
from stillroom.tasks.sound.spectrogram import TOKENS, FrontEnd, Spectrogram, Tokens, band_tokens

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_GROWTH = (1, 2, 4, 6, 8, 8)  # widths of small encoders, in widths of the stem
_POINT_WIDTH, _POINT_BLOCKS = 32, 5
_POINTS_TOGETHER = 2**22  # query points that are answered at a time, of all samples


@dataclass(frozen=True)
class Shape:
    """What networks read and answer.

    Args:
        target: what is answered.
        size: height and width of panoramas.
        ears: channels of sounds.
        front: of sounds.
        classes: names of the classes 1, 2, ...
        max_depth: metres.
        mean, std: of spectrograms, [E, F], where they are standardised; not part of what a card says: they are kept with the weights.
    """

    target: Target
    size: tuple[int, int]
    ears: int
    front: FrontEnd
    classes: tuple[str, ...] = ()
    max_depth: float = 10.0
    mean: Tensor | None = None
    std: Tensor | None = None

    @property
    def dims(self) -> int:
        """Of what is seen: 2, or 3 for voxels."""
        return 3 if self.target == "occupancy" else 2

    @property
    def grid(self) -> tuple[int, ...]:
        """Of what is seen."""
        return (COARSE,) * 3 if self.target == "occupancy" else self.size

    @property
    def outputs(self) -> int:
        """Channels of an answer."""
        return len(self.classes) if self.target == "segmentation" else 1

    def example(self, part: str) -> dict[str, Tensor]:
        """Made-up inputs of one sample."""
        if part == "sound":
            inputs = {"sound": torch.randn(1, self.ears, self.front.samples)}
        else:
            inputs = {"sight": torch.zeros(1, 1 if self.target == "occupancy" else 3, *self.grid)}
        return {**inputs, "points": torch.zeros(1, 8, 3)} if self.target == "occupancy" else inputs


class Answers(NamedTuple):
    """What a network answers.

    Attributes:
        main: metres [B, 1, H, W], scores [B, C, H, W], or logits of query points [B, Q].
        auxiliary: scores from the features before the last, where there are classes and the network is trained; else None.
    """

    main: Tensor
    auxiliary: Tensor | None


class SmallEncoder(nn.Module):
    """A convolution of kernel 3 with batch norm and ReLU each: a stem in full resolution, then levels that halve it.

    Args:
        dims: of the input.
        channels: of the input.
        widths: of the stem and of each level.
    """

    def __init__(self, dims: int, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.dims, self.widths, self.strides = dims, tuple(widths), tuple(2**level for level in range(len(widths)))
        ins = (channels, *widths[:-1])
        steps = [1, *[2] * (len(widths) - 1)]
        self.levels = nn.ModuleList(_layer(dims, i, o, stride) for i, o, stride in zip(ins, widths, steps, strict=True))

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Features of the stem and of each level."""
        found = []
        for level in self.levels:
            inputs = level(inputs)
            found.append(inputs)
        return found


def _layer(dims: int, ins: int, outs: int, stride: int) -> nn.Module:
    conv = _CONV[dims](ins, outs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, _NORM[dims](outs), nn.ReLU(inplace=True))


class ResNet50(nn.Module):
    """ResNet-50's encoder in any number of dimensions; its parameters are called as torchvision's.

    Args:
        dims: of the input.
        channels: of the input.
        width: of the stem; 64 in the paper.
    """

    def __init__(self, dims: int, channels: int, width: int = 64) -> None:
        super().__init__()
        self.dims, self.widths, self.strides = dims, (width, *(width * 4 * 2**level for level in range(4))), (2, 4, 8, 16, 32)
        self.conv1 = _CONV[dims](channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1, self.pool = _NORM[dims](width), _POOL[dims](3, stride=2, padding=1)
        ins = width
        for level, blocks in enumerate((3, 4, 6, 3)):
            inner = width * 2**level
            made = [
                _Bottleneck(dims, ins if not number else 4 * inner, inner, 2 if level and not number else 1) for number in range(blocks)
            ]
            self.add_module(f"layer{level + 1}", nn.Sequential(*made))
            ins = 4 * inner

    @property
    def levels(self) -> list[nn.Module]:
        """The four stages."""
        return [self.get_submodule(f"layer{level}") for level in range(1, 5)]

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Features of the stem and of each stage."""
        found = [self.bn1(self.conv1(inputs)).relu()]
        features = self.pool(found[0])
        for level in self.levels:
            features = level(features)
            found.append(features)
        return found


class _Bottleneck(nn.Module):
    def __init__(self, dims: int, ins: int, inner: int, stride: int) -> None:
        super().__init__()
        conv, norm = _CONV[dims], _NORM[dims]
        self.conv1, self.bn1 = conv(ins, inner, 1, bias=False), norm(inner)
        self.conv2, self.bn2 = conv(inner, inner, 3, stride=stride, padding=1, bias=False), norm(inner)
        self.conv3, self.bn3 = conv(inner, 4 * inner, 1, bias=False), norm(4 * inner)
        self.downsample = None
        if stride > 1 or ins != 4 * inner:
            self.downsample = nn.Sequential(conv(ins, 4 * inner, 1, stride=stride, bias=False), norm(4 * inner))

    def forward(self, inputs: Tensor) -> Tensor:
        made = self.bn2(self.conv2(self.bn1(self.conv1(inputs)).relu())).relu()
        found: Tensor = self.bn3(self.conv3(made)) + (inputs if self.downsample is None else self.downsample(inputs))
        return found.relu()


class Decoder(nn.Module):
    """Per stage a convolution with ELU, enlargement to the next grid, the skip, and another one; no normalisation.

    Args:
        dims: of the grids.
        deepest: channels of the coarsest features.
        skips: channels of the features that join each stage, from coarse to fine; 0 for none.
        grids: that stages enlarge to, from coarse to fine.
        widths: of the stages.

    Source: the equirectangular baseline of UniFuse, whose decoder the paper takes.
    """

    def __init__(self, dims: int, deepest: int, skips: Sequence[int], grids: Sequence[Sequence[int]], widths: Sequence[int]) -> None:
        super().__init__()
        self.grids, self.skips = [tuple(grid) for grid in grids], tuple(skips)
        ins = (deepest, *widths[:-1])
        self.before = nn.ModuleList(_CONV[dims](i, o, 3, padding=1) for i, o in zip(ins, widths, strict=True))
        self.after = nn.ModuleList(_CONV[dims](o + skip, o, 3, padding=1) for skip, o in zip(skips, widths, strict=True))

    def forward(self, deepest: Tensor, features: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """The features of the last stage, and of the one before.

        Args:
            deepest: the coarsest features.
            features: of each stage's grid, from coarse to fine; None where there is no skip.
        """
        found = before = deepest
        for first, second, grid, skip in zip(self.before, self.after, self.grids, features, strict=True):
            before = found
            enlarged = interpolate(elu(first(found)), size=grid, mode="nearest")
            found = elu(second(enlarged if skip is None else torch.cat((enlarged, skip), 1)))
        return found, before


class AtPoints(nn.Module):
    """Logits of being solid at query points: residual blocks over features that are sampled there.

    Args:
        channels: of the features on a cube.

    Source: convolutional occupancy networks: 5 blocks of width 32.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = _POINT_WIDTH
        self.place = nn.Linear(3, width)
        self.condition = nn.ModuleList(nn.Linear(channels, width) for _ in range(_POINT_BLOCKS))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(_POINT_BLOCKS)
        )
        self.last = nn.Linear(width, 1)

    def forward(self, features_BCXYZ: Tensor, points_BQ3: Tensor) -> Tensor:
        """[B, Q]; points in the unit cube, by x, y, z."""
        if torch.compiler.is_exporting():
            return self._some(features_BCXYZ, points_BQ3)
        step = max(1, _POINTS_TOGETHER // max(1, len(points_BQ3) * _POINT_WIDTH))
        return torch.cat([self._some(features_BCXYZ, part) for part in points_BQ3.split(step, 1)], 1)

    def _some(self, features_BCXYZ: Tensor, points_BQ3: Tensor) -> Tensor:
        place = (2 * points_BQ3 - 1).flip(-1)[:, :, None, None]  # grid_sample wants the fastest axis first
        sampled_BCQ = grid_sample(features_BCXYZ.float(), place.float(), padding_mode="border", align_corners=False)[..., 0, 0]
        sampled_BQC = sampled_BCQ.transpose(1, 2)
        state = self.place(points_BQ3)
        for condition, block in zip(self.condition, self.blocks, strict=True):
            state = state + condition(sampled_BQC)
            state = state + block(state)
        return self.last(state.relu())[..., 0]


class Interpolated(nn.Module):
    """Features of what is heard, interpolated to the grids of what is seen: time along the width, the same at every height."""

    def forward(self, features: Sequence[Tensor], grids: Sequence[Sequence[int]]) -> list[Tensor | None]:
        """One map for each level."""
        modes = {1: "linear", 2: "bilinear", 3: "trilinear"}
        found: list[Tensor | None] = []
        for one, grid in zip(features, grids, strict=True):
            whole = one.reshape(*one.shape[:2], *(1,) * (len(grid) - one.ndim + 2), *one.shape[2:])
            found.append(interpolate(whole, size=tuple(grid), mode=modes[len(grid)], align_corners=False))
        return found


class DenseNetwork(nn.Module):
    """An encoder, what brings its features to the grids of what is seen, and a decoder.

    Args:
        shape: what it reads and answers.
        part: of a batch's inputs, that it reads: ``sound`` or ``sight``.
        size: WIDTH_LEVELS of a small encoder, or ``resnet50``, or ``resnet50`` and the width of its stem.
        tokens: how a spectrogram is read.

    Attributes:
        widths: channels of the levels, without the stem.
        grids: of what is seen, of each level; those of the levels of a network that sees are its own.
        heard: dimensions of the encoder.
        skips: numbers of the levels, from 1, whose features the decoder reads besides the last's; 0 is the stem.

    Raises:
        InputError: other tokens, or grids that are too small for so many levels.
    """

    def __init__(self, shape: Shape, part: str, size: str, tokens: Tokens = "time") -> None:
        super().__init__()
        self.shape, self.part, self.tokens = shape, part, tokens
        one_of("tokens", tokens, TOKENS)
        front = shape.front
        if part == "sight":
            self.heard, channels = shape.dims, 1 if shape.dims == 3 else 3
        else:
            self.spectrogram = Spectrogram(front, shape.ears, shape.mean, shape.std)
            self.heard = 2 if tokens == "picture" else 1
            channels = {"time": shape.ears * front.bins, "frequency": shape.ears * front.frames, "picture": shape.ears}[tokens]
        self.encoder = _encoder(self.heard, channels, size, constant=shape.dims == 3)
        strides = self.encoder.strides
        self.widths = self.encoder.widths[1:]
        self._all_grids = [tuple(math.ceil(side / stride) for side in shape.grid) for stride in strides]
        self.grids = self._all_grids[1:]
        if any(max(grid) < 2 for grid in self.grids):
            raise InputError("student" if part == "sound" else "teacher", f"{len(self.grids)} levels", f"fewer, for a grid of {shape.grid}")
        self.alignment: nn.Module | None = Interpolated() if part == "sound" else None
        self.read(range(part == "sound", len(self.widths)))

    def read(self, skips: Sequence[int]) -> None:
        """Makes the decoder anew, for these skips."""
        self.skips = tuple(skips)
        shape, every = self.shape, (self.encoder.widths[0], *self.widths)
        wanted = [*reversed(range(len(every) - 1))]
        grids = [self._all_grids[level] for level in wanted]
        if self._all_grids[0] != shape.grid:  # a stem that halves the input
            wanted, grids = [*wanted, -1], [*grids, shape.grid]
        joined = [every[level] if level in self.skips else 0 for level in wanted]
        self._wanted = wanted
        narrow = max(16, every[0] // 4)
        sizes = [max(narrow, every[-1] // (2 ** (stage + (3 if every[-1] > 512 else 1)))) for stage in range(len(wanted))]
        self.decoder = Decoder(shape.dims, every[-1], joined, grids, sizes)
        if shape.dims == 3:
            self.head: nn.Module = AtPoints(sizes[-1])
        else:
            self.head = nn.Conv2d(sizes[-1], shape.outputs, 3, padding=1)
        self.auxiliary = nn.Conv2d(sizes[-2], shape.outputs, 1) if shape.target == "segmentation" else None

    @property
    def taps(self) -> tuple[str, ...]:
        """Module paths of the levels' features, from level 1 on."""
        names = {id(module): name for name, module in self.named_modules()}
        return tuple(names[id(level)] for level in self.encoder.levels[-len(self.widths) :])

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The main answer to a batch's inputs, or to its own part of them alone."""
        return self.answers(inputs)[0].main

    def answers(self, inputs: Tensor | Mapping[str, Tensor]) -> tuple[Answers, list[Tensor]]:
        """The answers, and the features of each level, from level 1 on: [B, C, ...]."""
        own = inputs if isinstance(inputs, Tensor) else inputs[self.part]
        stem, *features = self.encoder(self._tokens(own) if self.part == "sound" else own)
        maps = self.alignment(features, self.grids) if self.alignment is not None else features
        every = [None if self.part == "sound" else stem, *maps]
        read = [every[level] if level in self.skips else None for level in self._wanted]
        found, before = self.decoder(maps[-1], read)
        if self.shape.target == "depth":
            return Answers(depth_decode(self.head(found), self.shape.max_depth), None), features
        if self.shape.target == "segmentation":
            wanted = self.auxiliary is not None and self.training
            enlarged = interpolate(self.auxiliary(before), size=self.shape.size, mode="nearest") if wanted else None  # type: ignore[misc]
            return Answers(self.head(found), enlarged), features
        points = cube_points(own) if isinstance(inputs, Tensor) else inputs["points"]
        return Answers(self.head(found, points), None), features

    def _tokens(self, waves_BEN: Tensor) -> Tensor:
        spectrogram_BEFT = self.spectrogram(waves_BEN)
        return spectrogram_BEFT if self.tokens == "picture" else band_tokens(spectrogram_BEFT, self.tokens).transpose(1, 2)


def cube_points(like: Tensor) -> Tensor:
    """The centres of the fine voxels of the unit cube, [B, 32768, 3], for a batch like that one."""
    ticks = (torch.arange(FINE, device=like.device, dtype=torch.float32) + 0.5) / FINE
    points = torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), -1).reshape(1, -1, 3)
    return points.expand(like.shape[0], -1, -1)


def _encoder(dims: int, channels: int, size: str, *, constant: bool) -> SmallEncoder | ResNet50:
    if size.startswith("resnet50"):
        return ResNet50(dims, channels, int(size.removeprefix("resnet50").lstrip("x") or 64))
    width, _, levels = size.partition("_")
    growth = _GROWTH[: int(levels or 3) + 1]
    return SmallEncoder(dims, channels, [2 * int(width) if constant else int(width) * times for times in growth])
