"""`stillroom run METHOD`: a method's whole experiment - teacher, student alone, student distilled - and its report."""

from __future__ import annotations

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
    room = catalog.load(method)

    from stillroom.commands.options import early, read_options
    from stillroom.engine import run_seeds

    with named_as_typed(room.choice or ""):
        setting = room.chosen(early(options, room.choice) if room.choice else None)
    given = read_options(f"stillroom run {method}", room.recipe, options, setting=setting, out=f"runs/{method}")
    with named_as_typed(*given.settings):
        lab, recipe = given.made_lab(), {**given.trained_by(), **given.own}
        notes = [given.setting.expect] if given.is_default_job and given.setting.expect else []
        run_seeds(room.recipe, lab, given.made_data(), recipe, command=command, settings=given.settings, notes=notes)
