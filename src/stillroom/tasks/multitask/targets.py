"""What is asked of every pixel: targets and their kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from stillroom.errors import InputError, at_least_zero, near, one_of

Kind = Literal["classes", "saliency", "depth", "normals", "edges"]
KINDS: tuple[Kind, ...] = ("classes", "saliency", "depth", "normals", "edges")
WEIGHTS: Mapping[Kind, float] = {"classes": 1.0, "saliency": 5.0, "depth": 1.0, "normals": 10.0, "edges": 50.0}
_CHANNELS = {"saliency": 2, "depth": 1, "normals": 3, "edges": 1}


@dataclass(frozen=True)
class Target:
    """One dense map that a network answers with.

    Attributes:
        name: of it, and of its part of an answer.
        kind: ``classes``; ``saliency``: an object or none; ``depth`` in metres; ``normals``: directions, x right, y down, z forward unless
            the data say others; ``edges``.
        classes: names, of the kind classes.
        weight: of its loss.
        positive_weight: of edges, beside 1 - it for all else.
        tolerance: share of the picture's diagonal that an edge may lie off.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...] = ()
    weight: float = 1.0
    positive_weight: float = 0.8
    tolerance: float = 0.0075

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        at_least_zero("weight", self.weight)

    @property
    def channels(self) -> int:
        """C of a network's raw answer [B, C, h, w]."""
        return len(self.classes) if self.kind == "classes" else _CHANNELS[self.kind]

    @property
    def labelled(self) -> bool:
        """Whether its truth is a map of class numbers, and no measured values."""
        return self.kind in ("classes", "saliency", "edges")

    def plain(self) -> dict[str, Any]:
        """As in a student's card."""
        return {**asdict(self), "classes": list(self.classes)}

    @staticmethod
    def of(plain: Mapping[str, Any]) -> Target:
        """The inverse of `plain`."""
        return Target(**{**plain, "classes": tuple(plain["classes"])})


def chosen(targets: tuple[Target, ...], names: str | None, weights: str | None) -> tuple[Target, ...]:
    """Some of the targets, with other weights.

    Args:
        targets: all that there are.
        names: ``semseg+depth``; None for all.
        weights: ``depth=2+edges=20``; None for those that the targets have.

    Raises:
        InputError: no such target, one twice, or no number.
    """
    known = {target.name: target for target in targets}
    wanted = list(known) if names is None else [name.strip() for name in names.split("+")]
    for name in wanted:
        if name not in known or wanted.count(name) > 1:
            raise InputError("only_targets", names, f"each once, of {', '.join(known)}")
    for part in [] if weights is None else weights.split("+"):
        name, _, number = part.partition("=")
        try:
            known[name.strip()] = replace(known[name.strip()], weight=float(number))
        except (KeyError, ValueError):
            expected = f"TARGET=NUMBER of the targets {near(name.strip(), known)}, e.g. depth=2+edges=20"
            raise InputError("target_weights", weights, expected) from None
    return tuple(known[name] for name in wanted)
