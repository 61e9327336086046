"""The arms of the experiment: where the second view of an image comes from."""

from __future__ import annotations

from dataclasses import dataclass

from stillroom.errors import arms_of


@dataclass(frozen=True)
class Rule:
    """How another image is chosen for the second view.

    Attributes:
        said: in words.
        gate: only where the image itself wins its vote.
        nearest: always the nearest other image of the newest slot, instead of a draw among those that the window voted for.
        window: V, where it is not the one that was asked for.
        begin: the first epoch, from 0, in which another image may be shown; by default V.
    """

    said: str
    gate: bool
    nearest: bool = False
    window: int | None = None
    begin: int | None = None


ADASIM, BASELINE = "adasim", "baseline"
RULES: dict[str, Rule | None] = {
    BASELINE: None,
    "naive": Rule("the nearest other image, from the second epoch on", gate=False, nearest=True, window=1, begin=1),
    "gated-naive": Rule("the nearest other image, where the image recognises itself", gate=True, nearest=True),
    "ungated": Rule("drawn by the window's vote, whether the image recognises itself or not", gate=False),
    "window1": Rule("AdaSim with a window of one epoch", gate=True, window=1),
    ADASIM: Rule("drawn by the window's vote, where the image recognises itself", gate=True),
}


def named_rules(text: str) -> dict[str, Rule | None]:
    """The rules of ``baseline+naive+adasim``, in that order; None where every view is of the image itself.

    Raises:
        InputError: an arm that there is not, or one twice.
    """
    return {name: RULES[name] for name in arms_of(text, RULES)}
