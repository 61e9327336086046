"""`stillroom cache`: a teacher's answers to a training set, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.commands.options import read_options
from stillroom.commands.parser import named_as_typed

if TYPE_CHECKING:
    pass


def run(arguments: list[str], command: str) -> None:
    """Builds a cache, or goes on with one that was begun.

    Args:
        arguments: what follows `stillroom cache`.
        command: the whole line that was typed.
    """
    from stillroom.engine import LabOptions, Training
    from stillroom.tasks.classification import DIGITS, ImageData
    from stillroom.tasks.classification.cached import build_teacher_cache

    given = read_options("stillroom cache", build_teacher_cache, arguments, data=ImageData, plan=DIGITS, presets={}, out="runs/cache")
    with named_as_typed(*given.settings):
        options, plan = LabOptions(**{**given.lab, "out": Path(given.lab["out"])}), Training(**given.plan)
        data = ImageData(**given.data)
        teacher = build_teacher_cache(options, data, plan, **given.own, settings=given.settings)
