"""Search spaces: which options are searched, over which values; declared by typed objects, and editable as YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from stillroom.engine.plain import read_yaml
from stillroom.errors import InputError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Float:
    """A number from `low` to `high`, both included; uniform, or on a logarithmic scale.

    Raises:
        InputError: the two are not finite numbers in order, or not above 0 for a logarithmic scale.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        _check_ends(self.low, self.high, self.log)

    def holds(self, value: Any) -> bool:
        """Whether it is one of these values."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def distribution(self) -> BaseDistribution:
        """As Optuna knows it."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log)

    def to_yaml(self) -> Any:
        """As a user types it."""
        return {"low": self.low, "high": self.high, **({"log": True} if self.log else {})}


@dataclass(frozen=True)
class Int:
    """A whole number from `low` to `high`, both included.

    Raises:
        InputError: as `Float`.
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        _check_ends(self.low, self.high, self.log)

    def holds(self, value: Any) -> bool:
        """Whether it is one of these values."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def distribution(self) -> BaseDistribution:
        """As Optuna knows it."""
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log)

    def to_yaml(self) -> Any:
        """As a user types it."""
        return {"low": self.low, "high": self.high, "int": True, **({"log": True} if self.log else {})}


@dataclass(frozen=True)
class Choice:
    """One of several values, which have no order.

    Raises:
        InputError: none at all, one twice, or one that is neither number, text, truth value nor null.
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values or len(set(map(repr, self.values))) < len(self.values):
            raise InputError("space", list(self.values), "a list of different values")
        for value in self.values:
            if not (value is None or isinstance(value, bool | int | float | str)):
                raise InputError("space", value, "numbers, texts, true, false or null")

    def holds(self, value: Any) -> bool:
        """Whether it is one of these values."""
        return value in self.values

    def distribution(self) -> BaseDistribution:
        """As Optuna knows it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def to_yaml(self) -> Any:
        """As a user types it."""
        return list(self.values)


Range: TypeAlias = "Float | Int | Choice"
Space: TypeAlias = "Mapping[str, Range]"


def read_space(given: Mapping[str, Any] | str | Path, argument: str = "space") -> dict[str, Range]:
    """A search space as a user writes it: a mapping, or a YAML file of one.

    Each option has ``{low: 0.001, high: 1, log: true}``, with ``int: true`` for whole numbers, or a list of choices ``[1, 2, 4]``; null
    takes an option out of a space that has it.

    Raises:
        InputError: a file that cannot be read, or a range that cannot be used; the option is named.
    """
    if not isinstance(given, Mapping):
        try:
            loaded = read_yaml(Path(given))
        except (OSError, ValueError) as error:
            raise InputError(argument, str(given), f"a YAML file of ranges ({' '.join(str(error).split())})") from None
        if not isinstance(loaded, Mapping):
            raise InputError(argument, str(given), "a YAML file of ranges by the names of options")
        given = loaded
    return {str(name): _read_range(str(name), value, argument) for name, value in given.items() if value is not None}


def _read_range(name: str, value: Any, argument: str) -> Range:
    if isinstance(value, Float | Int | Choice):
        return value
    expected = "{low: 0.001, high: 1, log: true}, {low: 16, high: 64, int: true}, or a list of choices"
    try:
        if isinstance(value, list | tuple):
            return Choice(tuple(value))
        if not isinstance(value, Mapping) or not {"low", "high"} <= value.keys() <= {"low", "high", "log", "int"}:
            raise InputError(argument, value, expected)
        low, high = (float(value[end]) for end in ("low", "high"))  # YAML reads 1e-3 as a text
        log = bool(value.get("log", False))
        if not value.get("int", False):
            return Float(low, high, log)
        if low % 1 or high % 1:
            raise InputError(argument, value, "whole numbers at both ends")
        return Int(int(low), int(high), log)
    except InputError as error:
        raise InputError(f"{argument}.{name}", error.got, error.expected) from None
    except (TypeError, ValueError):
        raise InputError(f"{argument}.{name}", value, expected) from None


def write_space(space: Space) -> dict[str, Any]:
    """A space as plain values: what `read_space` reads, and what tells spaces apart."""
    return {name: one.to_yaml() for name, one in space.items()}


def _check_ends(low: float, high: float, log: bool) -> None:
    if not -math.inf < low <= high < math.inf or (log and low <= 0):
        raise InputError("space", f"{low} to {high}", f"two finite numbers in order{', above 0 on a logarithmic scale' if log else ''}")
