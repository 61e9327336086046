"""What Auto-KD searches (section 2 of its specification): the levels of the tree in their order, and their options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.engine.study.space import Choice, read_space
from stillroom.errors import InputError
from stillroom.losses.composed import DISTANCE, GLOBAL, INTER, INTRA, L1, NONE, NORMALISE, WEIGHTS, Composition

Levels = dict[str, tuple[Any, ...]]

FULL: Levels = {"global": GLOBAL, "intra": INTRA, "inter": INTER, "distance": DISTANCE, "weight": WEIGHTS}
SMALL: Levels = {
    "global": GLOBAL,
    "intra": (NONE, "scale2", "local2"),
    "inter": ("position", "channel", "sample"),
    "distance": ("l2", "kl4", "gl2", "cos"),
    "weight": (0.1, 1.0, 10.0, 100.0),
}
SPACES = {"full": FULL, "small": SMALL}
_KNOWN = {**FULL, "distance": (*DISTANCE, L1), "normalise": NORMALISE}
_ORDER = ("global", "intra", "inter", "normalise", "distance", "weight")


def read_levels(space: Mapping[str, Any] | str | None) -> Levels:
    """The levels that are meant: a name of `SPACES`, or choices that take the place of those of the full space.

    Raises:
        InputError: a level or an option that there is not, or a level without any.
    """
    if space is None or (isinstance(space, str) and space in SPACES):
        return SPACES[space or "full"]
    if isinstance(space, str) and not Path(space).is_file():
        raise InputError("space", space, f"{', '.join(SPACES)}, a YAML file or a mapping of levels to options")
    given = read_space(space)
    for name, one in given.items():
        if name not in _KNOWN:
            raise InputError("space", name, f"levels among {', '.join(_ORDER)}")
        if not isinstance(one, Choice):
            raise InputError(f"space.{name}", one.to_yaml(), "a list of options")
        for option in one.values:
            if name == "weight" and not (isinstance(option, int | float) and option > 0):
                raise InputError("space.weight", option, "numbers above 0")
            if name != "weight" and option not in _KNOWN[name]:
                raise InputError(f"space.{name}", option, f"options among {', '.join(_KNOWN[name])}")
    chosen = {**FULL, **{name: one.values for name, one in given.items() if isinstance(one, Choice)}}
    return {name: chosen[name] for name in _ORDER if name in chosen}


def composition_of(params: Mapping[str, Any]) -> Composition:
    """The distiller that a trial tries."""
    words = {("global_" if name == "global" else name): value for name, value in params.items() if name != "weight"}
    return Composition(**words, weight=float(params.get("weight", 1.0)))


def can_be_trained(batch_size: int, path: Mapping[str, Any]) -> bool:
    """Whether a beginning of a path makes sense: one sample alone has no others that it could be compared with."""
    return batch_size > 1 or (path.get("inter"), path.get("distance")) != ("sample", "gl2")
