"""Methods as they are typed: those of the catalog, and a file's or an installed module's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_type_hints

from stillroom import catalog
from stillroom.errors import InputError

if TYPE_CHECKING:
    from stillroom.engine import Distiller, Room

_WANTED = "a Room, a recipe or a Distiller: file.py:NAME"


def is_own(word: str) -> bool:
    """Whether it is ``file.py:NAME`` or ``package.module:NAME``."""
    return "." in word.rpartition(":")[0]


def short_name(word: str) -> str:
    """What a method is called in folders and reports."""
    return word.rpartition(":")[2] if is_own(word) else word


def room_of(word: str, argument: str) -> Room:
    """The room of a method of the catalog; or of one's own, whose code is run: its `Room`, or one around its recipe or its distiller.

    Args:
        word: as typed.
        argument: what the user calls it.

    Raises:
        InputError: there is no such method, or what there is cannot be used as one.
    """
    if not is_own(word):
        return catalog.load(word, argument)
    from stillroom.engine import Distiller, Room
    from stillroom.engine.specification import named_object

    found = named_object(word, argument, _WANTED)
    if isinstance(found, Room):
        return found
    if isinstance(found, type) and issubclass(found, Distiller):
        return _around_distiller(found)
    if inspect.isfunction(found):
        return _around_recipe(found, word, argument)
    raise InputError(argument, f"{word}, a {type(found).__name__}", _WANTED)


def _around_recipe(recipe: Callable[..., Any], word: str, argument: str) -> Room:
    from stillroom.engine import Room

    task = getattr(get_type_hints(recipe).get("data"), "task", None)
    if list(inspect.signature(recipe).parameters)[:1] != ["lab"] or task is None:
        raise InputError(argument, word, "a recipe(lab, data: ImageData, plan, networks, ...), or a Room; the class of data says the task")
    return Room(recipe, tasks=(task.name,), reason="is a recipe alone: name a Room with a `build`, or a Distiller")


def _around_distiller(kind: type[Distiller]) -> Room:
    """The room of a distiller ``kind(student, teacher, *, options)`` that classifies; its options are the method's."""
    from stillroom.engine import Experiment, Lab, Networks, Report, Room, Teacher, Training
    from stillroom.engine.task import task_named

    task = task_named("classification")

    def build(student: Any, teacher: Teacher, data: Any, **options: Any) -> Distiller:
        return kind(student, teacher, **options)

    def recipe(lab: Lab, data: Any, plan: Training = task.plan, networks: Networks = task.networks, **options: Any) -> Report:
        return Experiment(lab, data, plan, networks).run(
            kind.__name__, {"distilled": lambda student, taught: build(student, taught, data, **options)}
        )

    hints = get_type_hints(kind.__init__)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints.get(name, Any))
        for name, parameter in list(inspect.signature(kind).parameters.items())[2:]
    ]
    for function in (build, recipe):
        given = [one for one in inspect.signature(function).parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        vars(function)["__signature__"] = inspect.Signature([*given, *own])  # what the command line reads
        function.__doc__ = kind.__doc__
        function.__annotations__ = {"data": task.data, **{one.name: one.annotation for one in own}}
    return Room(recipe, tasks=(task.name,), build=build)
