"""A baseline network whose encoder's features are transformed by GIFT before the decoder reads them.

A run's `student.json` names such a network by its baseline and the options, see `GiftSpec`; `catalog.BUILDERS` names this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from stillroom.errors import InputError, one_of
from stillroom.methods.giftnet.gift import BLENDS, SOURCES, Gift, global_vector
from stillroom.tasks.harmonization import HarmonizationUNet

PREFIX = "gift:"
_GRAMMAR = re.compile(r"gift:(?P<base>.+),levels=(?P<levels>[\d+]+),source=(?P<source>\w+),blend=(?P<blend>\w+)")


class Gifted(nn.Module):
    """The baseline with GIFT: composite and mask [B, 4, H, W] to the harmonised picture [B, 3, H, W].

    The encoder runs completely, then the features of the levels are transformed by the global vector of its last, untransformed ones, then
    the decoder runs on them.

    Args:
        base: the baseline.
        levels: whose features are transformed; all by default.
        source: of the global vector, see `global_vector`.
        blend: see `Gift`.

    Raises:
        InputError: a network that is no such baseline, a level that it does not have, or another word.
    """

    def __init__(self, base: nn.Module, *, levels: Sequence[int] | None = None, source: str = "all", blend: str = "residual") -> None:
        super().__init__()
        if not isinstance(base, HarmonizationUNet):
            raise InputError("student", type(base).__name__, "stillroom/harmonyWIDTH_LEVELS: features between encoder and decoder change")
        levels = range(base.depth) if levels is None else levels
        if not levels or len(set(levels)) < len(levels) or not set(levels) <= set(range(base.depth)):
            raise InputError("levels", list(levels), f"some of {list(range(base.depth))}, each once")
        self.base, self.source, self.blend = base, one_of("global_source", source, SOURCES), blend
        self.gifts = nn.ModuleDict({str(level): Gift(base.channels[level], base.channels[-1], blend=blend) for level in sorted(levels)})

    @property
    def multiple(self) -> int:
        """As the baseline's."""
        return self.base.multiple

    @property
    def taps(self) -> tuple[str, ...]:
        """Module paths of the features that the decoder reads, from level 0 on."""
        return tuple(f"gifts.{level}" if str(level) in self.gifts else f"base.enc{level}" for level in range(self.base.depth))

    def forward(self, inputs_B4HW: Tensor) -> Tensor:
        """Normalised, not clamped."""
        return self.answer(inputs_B4HW)[0]

    def answer(self, inputs_B4HW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The picture, and F'_0 .. F'_(depth - 1), from which it is decoded."""
        return self.base.answer(inputs_B4HW, self.transformed)

    def transformed(self, features: list[Tensor], mask_B1HW: Tensor, vector_BD: Tensor | None = None) -> list[Tensor]:
        """F'_l of every F_l; the global vector is that of the features, unless another is given."""
        masks = [mask_B1HW]
        for _ in features[1:]:  # each level has half the size: areas of areas, which exports know how to write for any size
            masks.append(avg_pool2d(masks[-1], 2))
        vector = global_vector(features[-1], masks[-1], self.source) if vector_BD is None else vector_BD
        gifts = {int(level): gift for level, gift in self.gifts.items()}
        pairs = enumerate(zip(features, masks, strict=True))
        return [gifts[level](found, vector, mask) if level in gifts else found for level, (found, mask) in pairs]


@dataclass(frozen=True)
class GiftSpec:
    """What a `Gifted` network is built from again; as text ``gift:BASE,levels=0+1+2,source=SOURCE,blend=BLEND``.

    Args:
        base: specification of the baseline, without weights.
        levels, source, blend: see `Gifted`.
    """

    base: str
    levels: tuple[int, ...]
    source: str
    blend: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.base},levels={'+'.join(map(str, self.levels))},source={self.source},blend={self.blend}"

    @classmethod
    def parse(cls, text: str, argument: str) -> GiftSpec:
        """The inverse of `str`.

        Raises:
            InputError: the text is not of this form.
        """
        found = _GRAMMAR.fullmatch(text)
        if found is None or found["source"] not in SOURCES or found["blend"] not in BLENDS:
            raise InputError(argument, text, f"{PREFIX}BASE,levels=0+1+2,source={'|'.join(SOURCES)},blend={'|'.join(BLENDS)}")
        return cls(found["base"], tuple(map(int, found["levels"].split("+"))), found["source"], found["blend"])

    @classmethod
    def of_network(cls, network: Gifted, base: str) -> GiftSpec:
        """Of a network that was built around the baseline of that specification."""
        return cls(base, tuple(map(int, network.gifts)), network.source, network.blend)

    def parts(self) -> tuple[str, ...]:
        """The baseline's specification."""
        return (self.base,)

    def of(self, *parts: str) -> GiftSpec:
        """The same around another baseline."""
        return replace(self, base=parts[0])

    def build(self, make: Callable[[str, int], nn.Module], num_classes: int, example: Tensor, argument: str) -> Gifted:
        """An untrained network, as `engine.specification.Composed` says.

        Raises:
            InputError: as `Gifted`.
        """
        return Gifted(make(self.base, num_classes), levels=self.levels, source=self.source, blend=self.blend)


parse = GiftSpec.parse
