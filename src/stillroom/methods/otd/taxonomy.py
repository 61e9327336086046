"""Two lists of classes of the same things: the target's fine one, and the coarse one of the source that it refines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.engine.plain import read_yaml
from stillroom.errors import InputError


@dataclass(frozen=True)
class Taxonomy:
    """Which coarse class each fine class belongs to; number 0 is the background in both.

    Attributes:
        fine, coarse: names of the classes, without the background.
        tax: of each fine class, the background first, its coarse class, [1 + C].
        reliable, new: R and N, numbers of fine classes; one of them may be empty.

    Raises:
        InputError: a label outside the lists; background that is not background; R and N not disjoint.
    """

    fine: tuple[str, ...]
    coarse: tuple[str, ...]
    tax: tuple[int, ...]
    reliable: tuple[int, ...]
    new: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.tax) != 1 + len(self.fine) or self.tax[0] or not all(1 <= one <= len(self.coarse) for one in self.tax[1:]):
            expected = f"a coarse class from 1 to {len(self.coarse)} for each of the {len(self.fine)} fine ones, 0 for the background"
            raise InputError("taxonomy", list(self.tax), expected)
        for name, numbers in (("reliable_classes", self.reliable), ("new_classes", self.new)):
            if len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(1, len(self.tax))):
                raise InputError(name, list(numbers), f"different fine classes, from 1 to {len(self.fine)}")
        if both := set(self.reliable) & set(self.new):
            raise InputError("new_classes", ", ".join(self.fine[one - 1] for one in sorted(both)), "classes that are not reliable, too")

    @classmethod
    def of(cls, fine: Sequence[str], coarse: Sequence[str], coarse_of: Mapping[str, str], new: Sequence[str] | None = None) -> Taxonomy:
        """That of names.

        Args:
            fine, coarse: of the target's and of the source's data.
            coarse_of: the coarse class of each fine one.
            new: N; by default the fine classes that share their coarse class with another. All others are R.

        Raises:
            InputError: a fine class without a coarse one, or a name that is not among the data's.
        """
        if strange := [name for name in coarse_of if name not in fine]:
            raise InputError("taxonomy", strange[0], f"a class of the target: {', '.join(fine)}")
        if missing := [name for name in fine if name not in coarse_of]:
            raise InputError("taxonomy", f"no coarse class for {', '.join(missing)}", "one for each class of the target")
        if strange := [name for name in coarse_of.values() if name not in coarse]:
            raise InputError("taxonomy", strange[0], f"a class of the source: {', '.join(coarse)}")
        tax = (0, *(1 + list(coarse).index(coarse_of[name]) for name in fine))
        if new is None:
            named = tuple(one for one in range(1, len(tax)) if tax.count(tax[one]) > 1)
        elif strange := [name for name in new if name not in fine]:
            raise InputError("new_classes", strange[0], f"classes of the target: {', '.join(fine)}")
        else:
            named = tuple(1 + list(fine).index(name) for name in new)
        return cls(tuple(fine), tuple(coarse), tax, tuple(one for one in range(1, len(tax)) if one not in named), named)


def read_taxonomy(path: Path) -> dict[str, str]:
    """The coarse class of each fine one: a YAML file of ``fine: coarse``, one a line.

    Raises:
        InputError: it cannot be read or is something else.
    """
    try:
        found: Any = read_yaml(path)
    except (OSError, ValueError) as error:
        raise InputError("taxonomy", f"{path} ({error})", "a YAML file") from None
    if not isinstance(found, dict) or not all(isinstance(one, str | int) for pair in found.items() for one in pair):
        raise InputError("taxonomy", str(path), "lines of the form `fine class: coarse class`")
    return {str(fine): str(coarse) for fine, coarse in found.items()}
