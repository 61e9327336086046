"""The students: forward distillation (a network like the teacher) and reverse distillation (a bottleneck and a mirrored decoder), each
with something recalled between its stages, or nothing.

Both are built for a teacher's levels: channels, sizes and strides of its feature maps.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import relu

from stillroom.errors import InputError, one_of
from stillroom.methods.memkd.memory import NRMemory, folded
from stillroom.modules.convolutions import conv_unit, initialise_convolutions

Variant = Literal["forward", "reverse"]
Between = Literal["nothing", "copy", "memory"]


class Family(NamedTuple):
    """Residual networks of a kind: blocks of each stage, and how many times wider a block's result is than its inside."""

    blocks: tuple[int, int, int, int]
    expansion: int


FAMILIES = {
    "small": Family((1, 1, 1, 1), 1),
    "resnet18": Family((2, 2, 2, 2), 1),
    "resnet34": Family((3, 4, 6, 3), 1),
    "resnet50": Family((3, 4, 6, 3), 4),
}


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3 and 1x1 where it widens at its end; its shortcut is a convolution where the
    shape changes.

    Args:
        in_channels, channels: of its input and its result.
        expansion: channels of the result to those inside; 1 for two 3x3 convolutions.
        stride: of the first 3x3, and of the shortcut.
        upsamples: a 2x2 transposed convolution of stride 2 takes the place of the first 3x3, and of the shortcut's 1x1.
    """

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int = 1, *, upsamples: bool = False) -> None:
        super().__init__()
        width = channels // expansion
        if expansion == 1:
            self.branch = nn.Sequential(
                _spatial(in_channels, width, stride, upsamples), nn.ReLU(), conv_unit(width, channels, 3, activation=None)
            )
        else:
            self.branch = nn.Sequential(
                conv_unit(in_channels, width, 1),
                _spatial(width, width, stride, upsamples),
                nn.ReLU(),
                conv_unit(width, channels, 1, activation=None),
            )
        self.shortcut: nn.Module = nn.Identity()
        if upsamples:
            self.shortcut = _spatial(in_channels, channels, stride, upsamples)
        elif stride > 1 or in_channels != channels:
            self.shortcut = conv_unit(in_channels, channels, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, channels, H / stride, W / stride], or twice as large."""
        return relu(self.branch(x) + self.shortcut(x))

    def entrances(self) -> dict[str, nn.Module]:
        """The convolutions that read its input, by name; of a block whose shape changes."""
        units = {path: next(self.get_submodule(path).named_children()) for path in ("branch.0", "shortcut")}
        return {f"{path}.{name}": convolution for path, (name, convolution) in units.items()}


def _spatial(in_channels: int, channels: int, stride: int, upsamples: bool) -> nn.Sequential:
    """The convolution of a block that sees neighbours, with its batch norm."""
    if not upsamples:
        return conv_unit(in_channels, channels, 3, stride, activation=None)
    return nn.Sequential(nn.ConvTranspose2d(in_channels, channels, 2, 2, bias=False), nn.BatchNorm2d(channels))


def _stage(family: Family, number: int, in_channels: int, channels: int, stride: int = 1, *, upsamples: bool = False) -> nn.Sequential:
    """A stage of so many blocks as the family has in its stage of that number (from 0)."""
    first = Block(in_channels, channels, family.expansion, stride, upsamples=upsamples)
    return nn.Sequential(first, *(Block(channels, channels, family.expansion) for _ in range(family.blocks[number] - 1)))


class Recalling(nn.Module):
    """What stands before a stage and is concatenated to the map that the stage reads.

    Args:
        between: ``memory``: what an NR memory recalls of it; ``copy``: the map itself, the control of equally wide convolutions;
            ``nothing``.
        channels: of the map.
        slots, temperature: see `NRMemory`.
    """

    def __init__(self, between: Between, channels: int, slots: int, temperature: float) -> None:
        super().__init__()
        one_of("between", between, get_args(Between))
        self.between = between
        self.memory = NRMemory(channels, slots, temperature) if between == "memory" else None
        self.out_channels = channels if between == "nothing" else 2 * channels
        self.folds = between == "memory" and slots < channels  # else nothing is saved

    def forward(self, map_BCHW: Tensor, stage: nn.Sequential) -> Tensor:
        """The stage's answer to the map [B, C, H, W] and what is recalled of it."""
        if self.between == "nothing":
            answer: Tensor = stage(map_BCHW)
        elif self.memory is None or not self.folds or torch.compiler.is_exporting():  # a file's weights must be plain numbers
            answer = stage(torch.cat([map_BCHW, map_BCHW if self.memory is None else self.memory(map_BCHW)], 1))
        else:
            shares_BLHW = self.memory.shares(map_BCHW)
            answer = functional_call(stage, self._folded(stage), torch.cat([map_BCHW, shares_BLHW], 1))
        return answer

    def _folded(self, stage: nn.Sequential) -> dict[str, Tensor]:
        """The weights of the convolutions that read the map and what is recalled, by name, for the map and the shares."""
        assert self.memory is not None
        first: Any = stage[0]
        found = {f"0.{name}.weight": convolution for name, convolution in first.entrances().items()}
        return {name: folded(one.weight, self.memory.values, transposed=isinstance(one, nn.ConvTranspose2d)) for name, one in found.items()}


class Student(nn.Module, ABC):
    """What both variants have in common; see `anomaly.detector.FeatureStudent`.

    Attributes:
        recalling: what stands between the stages, in the order of its use.
        memory_levels: of each of these, the number of the teacher's level that its memory is to hold.
        reads: the teacher's levels, as (channels, stride).
        compared: of these, the first ones that its maps are compared with; a fourth is what the deepest memory is to hold.
    """

    compared = 3
    recalling: nn.ModuleList
    memory_levels: tuple[int, ...]
    reads: Sequence[tuple[int, int]]

    @abstractmethod
    def levels(self, images: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Its maps, from the largest to the smallest."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """`levels` without a teacher: one that reads its maps is given zeros. For measuring what the student alone costs."""
        rows, columns = images.shape[-2:]
        blank = [images.new_zeros(len(images), channels, -(-rows // stride), -(-columns // stride)) for channels, stride in self.reads]
        return self.levels(images, blank)

    def memories(self) -> list[tuple[NRMemory, int]]:
        """Each memory and the number of the teacher's level that it is to hold; none of a student without."""
        recalling: Iterable[Any] = self.recalling
        found = [(one.memory, level) for one, level in zip(recalling, self.memory_levels, strict=True)]
        return [(memory, level) for memory, level in found if isinstance(memory, NRMemory)]


class ForwardStudent(Student):
    """Variant A: stem and three stages, of which each reads the one before and what is recalled of it.

        a = stage1(stem(x))    b = stage2(a, M1(a))    c = stage3(b, M2(b))

    Args:
        levels: the teacher's three, as (channels, stride).
        family: of residual networks.
        between, slots, temperature: see `Recalling`.

    Source: the specification's variant A; with nothing in between STFPM's student (Wang et al. 2021).
    """

    memory_levels = (0, 1)

    def __init__(self, levels: Sequence[tuple[int, int]], family: Family, between: Between, slots: int, temperature: float) -> None:
        super().__init__()
        self.reads = levels
        channels, strides = zip(*levels[:3], strict=True)
        width = channels[0] // family.expansion
        coarse = strides[0] % 4 == 0
        stem: list[nn.Module] = [conv_unit(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)] if coarse else [conv_unit(3, width, 3)]
        self.stem = nn.Sequential(*stem)
        recalling = [Recalling(between, c, slots, temperature) for c in channels[:2]]
        self.recalling = nn.ModuleList(recalling)
        inputs = (width, *(one.out_channels for one in recalling))
        steps = (strides[0] // (4 if coarse else 1), strides[1] // strides[0], strides[2] // strides[1])
        self.stages = nn.ModuleList(_stage(family, i, inputs[i], channels[i], steps[i]) for i in range(3))
        initialise_convolutions(self)

    def levels(self, images: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The stages' maps of the images; the teacher's are not read."""
        stage1, stage2, stage3 = self.stages
        a = stage1(self.stem(images))
        b = self.recalling[0](a, stage2)
        return a, b, self.recalling[1](b, stage3)


class ReverseStudent(Student):
    """Variant B: a bottleneck (one-class embedding) of the teacher's first three maps, and a decoder that gives them back.

        e = O(F1, F2, F3)   f3 = A(e, M0(e))   f2 = B(f3, M1(f3))   f1 = C(f2, M2(f2))

    Args:
        levels: the teacher's four, as (channels, stride), each of twice the stride of the one before.
        family, between, slots, temperature: see `ForwardStudent`.

    Source: the specification's variant B; with nothing in between RD4AD's student (Deng and Li 2022).
    """

    memory_levels = (3, 2, 1)

    def __init__(self, levels: Sequence[tuple[int, int]], family: Family, between: Between, slots: int, temperature: float) -> None:
        super().__init__()
        self.reads = levels
        (c1, c2, c3, c4), strides = zip(*levels, strict=True)
        if any(after != 2 * before for before, after in itertools.pairwise(strides)):
            raise InputError(
                "layers", f"levels of strides {list(strides)}", "each of twice the stride of the one before, for variant reverse"
            )
        self.down1 = nn.Sequential(conv_unit(c1, c2, 3, 2), conv_unit(c2, c3, 3, 2))
        self.down2 = conv_unit(c2, c3, 3, 2)
        self.bottleneck = _stage(family, 3, 3 * c3, c4, 2)
        recalling = [Recalling(between, c, slots, temperature) for c in (c4, c3, c2)]
        self.recalling = nn.ModuleList(recalling)
        inputs = [one.out_channels for one in recalling]
        self.stages = nn.ModuleList(_stage(family, 2 - i, inputs[i], c, upsamples=True) for i, c in enumerate((c3, c2, c1)))
        initialise_convolutions(self)

    def levels(self, images: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The decoder's maps; the images are not read."""
        f1, f2, f3 = features[:3]
        maps = self.bottleneck(torch.cat([self.down1(f1), self.down2(f2), f3], 1))
        decoded = []
        for recalling, stage in zip(self.recalling, self.stages, strict=True):
            maps = recalling(maps, stage)
            decoded.append(maps)
        return tuple(decoded[::-1])


def build(description: Mapping[str, Any]) -> Student:
    """A student, from random numbers.

    Args:
        description: ``variant``; ``levels``: the teacher's (channels, stride); ``family``: one of `FAMILIES`; ``between``, ``slots`` and
            ``temperature``: see `Recalling`.

    Raises:
        InputError: a value that cannot be used.
    """
    kinds: dict[str, type[ForwardStudent] | type[ReverseStudent]] = {"forward": ForwardStudent, "reverse": ReverseStudent}
    kind = kinds[one_of("variant", description["variant"], kinds)]
    family = FAMILIES[one_of("student", description["family"], FAMILIES)]
    levels = [(int(channels), int(stride)) for channels, stride in description["levels"]]
    return kind(levels, family, description["between"], int(description["slots"]), float(description["temperature"]))
