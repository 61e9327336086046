"""`stillroom plan run METHOD ...`: what a run would do, how long it would take, and what it needs; nothing is written."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom import catalog
from stillroom.commands.parser import named_as_typed, size_text
from stillroom.commands.rooms import room_of, short_name
from stillroom.errors import InputError, StillroomError

if TYPE_CHECKING:
    from stillroom.engine.run.planning import Planned

_COMMANDS = ("run",)


def run(arguments: list[str], command: str) -> None:
    """Runs a few steps of every stage of a recipe in a folder that is thrown away, and prints what the whole would take.

    Args:
        arguments: what follows `stillroom plan`: a command line of `run`, whole.
        command: the whole line that was typed.
    """
    if arguments[:1] in (["-h"], ["--help"], []):
        print("usage: stillroom plan run METHOD [options]\n")
        print("The options are those of `stillroom run METHOD`. A few steps of each stage are timed; nothing is written.")
        return
    if arguments[0] not in _COMMANDS or len(arguments) < 2 or arguments[1].startswith("-"):
        raise InputError("COMMAND", " ".join(arguments[:2]), "a command line of run: stillroom plan run METHOD [options]")
    method, options = arguments[1], arguments[2:]
    room = room_of(method, "method")

    from stillroom.commands.options import early, read_options
    from stillroom.engine.room import options_of
    from stillroom.engine.run.planning import PlanningLab
    from stillroom.engine.task import first_lines

    if "trials" in options_of(room.recipe, {"lab", "data", "plan", "networks"}):
        raise InputError("METHOD", f"{method}, a search", "a method without trials: a search takes --trials times one training")
    with named_as_typed(room.choice or ""):
        setting = room.chosen(early(options, room.choice) if room.choice else None)
    given = read_options(f"stillroom plan run {method}", room.recipe, options, setting=setting, out=f"runs/{short_name(method)}")
    with named_as_typed(*given.settings):
        lab = given.made_lab()
        recipe = {**given.trained_by(), **given.own}
        if "networks" in recipe:
            object.__setattr__(recipe["networks"], "accept_teacher", True)  # a teacher of a few steps knows nothing
        data = given.made_data()
        room.check_data(data)
        for line in first_lines(data):
            print(f"data: {line}")
        beyond = ""
        with tempfile.TemporaryDirectory(prefix="stillroom-plan-") as scratch:
            planning = PlanningLab(lab, Path(scratch) / "run")
            try:
                room.recipe(planning, data, **recipe)
            except StillroomError:
                if not planning.planned:
                    raise
                beyond = "what follows depends on what is found until then, and is not planned"
            except Exception as error:  # a recipe's own trouble with numbers that mean nothing
                if not planning.planned:
                    raise
                beyond = f"what follows depends on what is found until then, and is not planned ({type(error).__name__})"
    show(planning.planned, lab.seeds, beyond, catalog_title(method))


def catalog_title(method: str) -> str:
    """The paper's, or the name of one's own method."""
    return next((known.paper for known in catalog.METHODS if known.name == method), method)


def show(stages: Sequence[Planned], seeds: int, beyond: str, title: str) -> None:
    """A table of the stages, and below it the whole."""
    from rich.console import Console
    from rich.table import Table

    from stillroom.engine.report.wording import count, duration

    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for head in ("stage", "times", "epochs", "steps each", "a step", "scoring", "together", "parameters"):
        table.add_column(head, justify="left" if head == "stage" else "right")
    whole, disk = 0.0, 0
    for stage in stages:
        times = 1 if stage.shared else seeds
        whole, disk = whole + times * stage.seconds, disk + times * stage.bytes
        cells: list[Any] = [str(stage.epochs), str(stage.steps), f"{1e3 * stage.step:.3g} ms"] if stage.epochs else ["", "", ""]
        together = "done before" if stage.done else duration(times * stage.seconds)
        table.add_row(stage.name, str(times), *cells, duration(stage.scoring), together, count(stage.parameters))
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else max(console.width, 100)
    console.print(table)
    if all(stage.done for stage in stages):
        print("nothing is left to do")
        return
    print(f"about {duration(whole)} in all, {size_text(disk)} of disk at most, {size_text(_peak())} of memory at least")
    print("timed here and now, by a few steps of each stage; what is done between stages (caches, scores of whole sets) is not in it")
    if beyond:
        print(beyond)


def _peak() -> int:
    """Bytes: the most that this process held."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
