"""`stillroom run METHOD`: a method's whole experiment - teacher, student alone, student distilled - and its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom import catalog
from stillroom.commands.parser import named_as_typed
from stillroom.commands.rooms import room_of, short_name
from stillroom.errors import InputError

if TYPE_CHECKING:
    from stillroom.engine import Room


def run(arguments: list[str], command: str) -> None:
    """Runs the recipe of a method, once per seed, and prints the comparison and where the report is.

    Args:
        arguments: what follows `stillroom run`.
        command: the whole line that was typed.
    """
    built = ", ".join(method.name for method in catalog.METHODS if method.room)
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: stillroom run METHOD [options]\n\nMETHOD is one of {built}; or your own, file.py:recipe.")
        print("`stillroom run METHOD --help` shows the options of a method.")
        return
    if not arguments or arguments[0].startswith("-"):
        raise InputError("METHOD", arguments[0] if arguments else "nothing", f"one of {built}, before the options")
    method, options = arguments[0], arguments[1:]
    room = room_of(method, "method")

    from stillroom.commands.options import early, read_options
    from stillroom.engine import run_seeds

    with named_as_typed(room.choice or ""):
        chosen = early(options, room.choice) if room.choice else None
        setting = room.chosen(chosen)
    _check_continued(method, early(options, "continue-from") or early(options, "continue_from"))
    given = read_options(f"stillroom run {method}", room.recipe, options, setting=setting, out=f"runs/{short_name(method)}")
    with named_as_typed(*given.settings):
        lab, recipe = given.made_lab(), {**given.trained_by(), **given.own}
        room.check_engine(lab.engine)
        notes = [given.setting.expect] if given.is_default_job and given.setting.expect else []
        if lab.continue_from is not None:
            notes.append(
                f"Goes on from {lab.continue_from}: every arm, the student alone too, began with the weights that it ended with there, and "
                "with a fresh optimiser and schedule; epochs and times are those since."
            )
        try:
            data = given.made_data()
        except InputError as error:
            readers = _other_readers(room, str(given.data["data"])) if room.choice == "task" and chosen is None else []
            if not readers:
                raise
            named = f"{' or '.join(readers)}, which read{'s' if len(readers) == 1 else ''} these"
            raise InputError(error.argument, error.got, f"{error.expected}; or say --task {named}") from None
        room.check_data(data)
        run_seeds(room.recipe, lab, data, recipe, command=command, settings=given.settings, notes=notes)


def _other_readers(room: Room, data: str) -> list[str]:
    """The tasks of a method, besides its usual one, that alone read such data."""
    from stillroom.engine.task import task_named
    from stillroom.tasks.images.sources import kind_of

    return [task for task in room.tasks[1:] if kind_of(data) in task_named(task).kinds]


def _check_continued(method: str, run: str | None) -> None:
    """Raises InputError when the run that is to be continued is of another method, or not finished."""
    if run is None:
        return
    try:
        of = json.loads((Path(run) / "metrics.json").read_text(encoding="utf-8"))["method"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError("--continue-from", run, "the folder of a finished run, which holds metrics.json") from None
    if of != method:
        raise InputError("--continue-from", f"{run}, a run of {of}", f"a run of {method}")
