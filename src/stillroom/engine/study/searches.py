"""Several searches in one run, which are compared with each other."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from stillroom.engine.study.trial import Finished
from stillroom.errors import InputError, one_of


@dataclass(frozen=True)
class SearchResult:
    """What became of a search.

    Attributes:
        way: its name.
        best: the trial that it is judged by.
        trials: all finished ones in their order.
    """

    way: str
    best: Finished
    trials: list[Finished] = field(repr=False)

    def noted(self, name: str) -> int:
        """Sum over the trials of a number that they noted, such as `images`."""
        return sum(int(trial.told.get(name, 0)) for trial in self.trials)

    @property
    def seconds(self) -> float:
        """Of all trials."""
        return sum(trial.seconds for trial in self.trials)


def read_searches(searches: list[str] | str, known: Collection[str]) -> list[str]:
    """The searches that are compared, in a list or with commas between them.

    Raises:
        InputError: an unknown one, or one twice.
    """
    names = [name.strip() for name in searches.split(",") if name.strip()] if isinstance(searches, str) else list(searches)
    for name in names:
        one_of("searches", name, known)
    if not names or len(set(names)) < len(names):
        raise InputError("searches", searches, f"some of {', '.join(known)}, each once")
    return names
