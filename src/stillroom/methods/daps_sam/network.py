"""A network that hears, whose features reach the decoder through SAM blocks, or through what these are compared with.

A run's `student.json` names such a network by its base and the options, see `AlignedSpec`; `catalog.BUILDERS` names this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from stillroom.errors import InputError, at_least, one_of
from stillroom.methods.daps_sam.matching import SpatialAlignment
from stillroom.tasks.sound import Answers, DenseNetwork

PREFIX = "aligned:"
Way = Literal["sam", "attention", "embeddings", "non-spatial", "pooled", "interpolation"]
WAYS: tuple[str, ...] = get_args(Way)[:-1]  # those with a module of their own
_GRAMMAR = re.compile(
    r"aligned:(?P<base>.+),way=(?P<way>[\w-]+),levels=(?P<levels>[\d+]+),embeddings=(?P<embeddings>\d+),ratio=(?P<ratio>\d+),heads=(?P<heads>\d+)"
)


@dataclass(frozen=True)
class AlignedSpec:
    """How features are aligned; as text ``aligned:BASE,way=WAY,levels=2+3,embeddings=64,ratio=4,heads=8``.

    Args:
        base: specification of the network that hears, without weights.
        way: ``sam``; without the choice among maps (``attention``), without the refinement (``embeddings``), with one vector for all
            positions of a map (``non-spatial``); or ``pooled``: no blocks, but two layers from the mean of the deepest features to the
            deepest map, with as many parameters as the blocks.
        levels: numbers of the levels with a block, from 1; skips of all others are dropped.
        embeddings: K of the last level.
        ratio: by which K is divided from one level to the one above, down to 1.
        heads: of the attention.
    """

    base: str = ""
    way: str = "sam"
    levels: tuple[int, ...] = (3, 4)
    embeddings: int = 64
    ratio: int = 4
    heads: int = 8

    def __post_init__(self) -> None:
        one_of("way", self.way, WAYS)
        at_least("embeddings", self.embeddings, 1)
        at_least("ratio", self.ratio, 1)

    def __str__(self) -> str:
        numbers = f"embeddings={self.embeddings},ratio={self.ratio},heads={self.heads}"
        return f"{PREFIX}{self.base},way={self.way},levels={'+'.join(map(str, self.levels))},{numbers}"

    @classmethod
    def parse(cls, text: str, argument: str) -> AlignedSpec:
        """The inverse of `str`.

        Raises:
            InputError: the text is not of this form.
        """
        found = _GRAMMAR.fullmatch(text)
        if found is None or found["way"] not in WAYS:
            raise InputError(argument, text, f"{PREFIX}BASE,way={'|'.join(WAYS)},levels=3+4,embeddings=64,ratio=4,heads=8")
        numbers = {name: int(found[name]) for name in ("embeddings", "ratio", "heads")}
        return cls(found["base"], found["way"], tuple(map(int, found["levels"].split("+"))), **numbers)

    def parts(self) -> tuple[str, ...]:
        """The base's specification."""
        return (self.base,)

    def of(self, *parts: str) -> AlignedSpec:
        """The same around another base."""
        return replace(self, base=parts[0])

    def build(self, make: Callable[[str, int], nn.Module], num_classes: int, example: Tensor, argument: str) -> Aligned:
        """An untrained network, as `engine.specification.Composed` says.

        Raises:
            InputError: as `Aligned`.
        """
        return Aligned(make(self.base, num_classes), self)


class Aligned(nn.Module):
    """A network that hears, with blocks: a batch's inputs to an answer. The blocks stay in it for good.

    Args:
        base: whose decoder is made anew, for the skips of the levels with blocks.
        spec: how.

    Raises:
        InputError: no network that hears, levels that it does not have, or heads that do not divide its channels.
    """

    def __init__(self, base: nn.Module, spec: AlignedSpec) -> None:
        super().__init__()
        if not isinstance(base, DenseNetwork) or base.part != "sound":
            raise InputError("student", type(base).__name__, "a network that hears, such as stillroom/echo16_3")
        count = len(base.widths)
        if not spec.levels or list(spec.levels) != sorted(set(spec.levels)) or not {*spec.levels} <= {*range(1, count + 1)}:
            raise InputError("levels", list(spec.levels), f"some of {list(range(1, count + 1))}, in order")
        if spec.levels[-1] != count:
            raise InputError("levels", list(spec.levels), f"the last of the student's {count} levels among them: the decoder begins there")
        self.base, self.spec = base, spec
        blocks = {level: _block(base, level, spec) for level in spec.levels}
        if spec.way == "pooled":
            wanted = sum(parameter.numel() for block in blocks.values() for parameter in block.parameters())
            base.alignment = _Pooled(base.widths[-1], base.grids[-1], wanted)
            base.read(())
        else:
            base.alignment = _Blocks(blocks, count)
            base.read([level for level in spec.levels if level < count])

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the levels' features, from level 1 on."""
        found: tuple[int, ...] = self.base.widths
        return found

    @property
    def grids(self) -> list[tuple[int, ...]]:
        """Of what is seen, of each level."""
        found: list[tuple[int, ...]] = self.base.grids
        return found

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The main answer."""
        found: Tensor = self.base(inputs)
        return found

    def answers(self, inputs: Tensor | Mapping[str, Tensor]) -> tuple[Answers, list[Tensor]]:
        """The answers, and the features of each level before its block."""
        found: tuple[Answers, list[Tensor]] = self.base.answers(inputs)
        return found


def _block(base: DenseNetwork, level: int, spec: AlignedSpec) -> SpatialAlignment:
    embeddings = max(1, spec.embeddings // spec.ratio ** (len(base.widths) - level))
    selects = spec.way != "attention"
    return SpatialAlignment(
        base.widths[level - 1],
        base.grids[level - 1],
        embeddings=embeddings if selects else 1,
        heads=spec.heads,
        select=selects,
        refine=spec.way != "embeddings",
        spatial=spec.way != "non-spatial",
    )


class _Blocks(nn.Module):
    """SAM blocks by level; the others have no map."""

    def __init__(self, blocks: Mapping[int, SpatialAlignment], count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({str(level): block for level, block in blocks.items()})
        self.count = count

    def forward(self, features: Sequence[Tensor], grids: Sequence[Sequence[int]]) -> list[Tensor | None]:
        blocks = {int(level): block for level, block in self.blocks.items()}
        found: list[Tensor | None] = [None] * self.count
        for level, block in blocks.items():
            map_BVC = block(features[level - 1].flatten(2).transpose(1, 2))
            found[level - 1] = map_BVC.transpose(1, 2).unflatten(2, block.grid)
        return found


class _Pooled(nn.Module):
    """The control: two layers from the mean of the deepest features to the deepest map.

    Args:
        channels: of the features and of the map.
        grid: of the map.
        parameters: about as many it is to have.
    """

    def __init__(self, channels: int, grid: Sequence[int], parameters: int) -> None:
        super().__init__()
        self.grid = tuple(grid)
        outs = channels * int(torch.tensor(self.grid).prod())
        hidden = max(1, round((parameters - outs) / (channels + 1 + outs)))
        self.first, self.second = nn.Linear(channels, hidden), nn.Linear(hidden, outs)

    def forward(self, features: Sequence[Tensor], grids: Sequence[Sequence[int]]) -> list[Tensor | None]:
        made = self.second(elu(self.first(features[-1].flatten(2).mean(-1))))
        return [*[None] * (len(features) - 1), made.unflatten(1, (-1, *self.grid))]


parse = AlignedSpec.parse
