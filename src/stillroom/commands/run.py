"""`stillroom run METHOD`: a method's whole experiment - teacher, student alone, student distilled - and its report."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_type_hints

from stillroom import catalog
from stillroom.commands.parser import named_as_typed
from stillroom.errors import InputError


def run(arguments: list[str], command: str) -> None:
    """Runs the recipe of a method, once per seed, and prints the comparison and where the report is.

    Args:
        arguments: what follows `stillroom run`.
        command: the whole line that was typed.
    """
    built = ", ".join(method.name for method in catalog.METHODS if method.room)
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: stillroom run METHOD [options]\n\nMETHOD is one of {built}.")
        print("`stillroom run METHOD --help` shows the options of a method.")
        return
    if not arguments or arguments[0].startswith("-"):
        raise InputError("METHOD", arguments[0] if arguments else "nothing", f"one of {built}, before the options")
    method, options = arguments[0], arguments[1:]
    catalog.find(method)

    from stillroom.commands.options import early, read_options
    from stillroom.engine import LabOptions, Training, run_seeds

    room = catalog.load(method)
    recipe, presets = room.recipe, room.PRESETS
    if hasattr(room, "CHOICE"):  # an option that says on which task the method works, and with it which options there are
        default = inspect.signature(recipe).parameters[room.CHOICE].default
        with named_as_typed(room.CHOICE):
            recipe, presets = room.chosen(early(options, room.CHOICE) or default)
    data, plan = get_type_hints(recipe)["data"], inspect.signature(recipe).parameters["plan"].default
    prog = f"stillroom run {method}"
    given = read_options(prog, recipe, options, data=data, plan=plan, presets=presets, out=f"runs/{method}")
    with named_as_typed(*given.settings):
        lab = LabOptions(**{**given.lab, "out": Path(given.lab["out"])})
        own = {"plan": Training(**given.plan), **given.own}
        run_seeds(recipe, lab, data(**given.data), own, command=command, settings=given.settings)
