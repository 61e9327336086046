"""Room: what a method gives to the command line, to comparisons, and to methods that train another's losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from stillroom.engine.distiller import Distiller
from stillroom.engine.experiment import Networks
from stillroom.engine.report.results import Report
from stillroom.engine.training import Training

Presets = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Setting:
    """What a method's command starts from.

    Args:
        data: the class of the data, whose parameters are options.
        plan: how the networks are trained by default.
        networks: which they are by default; None for a recipe that names them otherwise.
        presets: other defaults, by name.
    """

    data: type[Any]
    plan: Training
    networks: Networks | None
    presets: Presets


@dataclass(frozen=True)
class Room:
    """What a method's module holds under the name `ROOM`.

    Args:
        recipe: ``recipe(lab, data, plan, networks, **options)``: the whole experiment for one seed. The annotation of `data` says which
            class the data are of, and the defaults of `plan` and `networks` how and what is trained; one that names its networks
            otherwise has no `networks`.
        tasks: names of the tasks that it works on.
        presets: other defaults by name, `paper` among them.
        build: ``build(student, teacher, data, **options)``: the method's distiller, for comparisons and hosts; None where the method is no
            distiller around one student.
        reason: why there is no `build`, in words that go on from the method's name: "has no teacher".
        choice: the option of a recipe of several tasks that says which.
        setting: ``setting(what was chosen)``: what its command then starts from.
    """

    recipe: Callable[..., Report]
    tasks: tuple[str, ...]
    presets: Presets = field(default_factory=dict)
    build: Callable[..., Distiller] | None = None
    reason: str = ""
    choice: str | None = None
    setting: Callable[[str], Setting] | None = None

    def chosen(self, value: str | None) -> Setting:
        """What the command starts from, when `choice` has this value (None for its default).

        Raises:
            InputError: no such choice.
        """
        defaults = {name: parameter.default for name, parameter in inspect.signature(self.recipe).parameters.items()}
        if self.choice is not None and self.setting is not None:
            return self.setting(defaults[self.choice] if value is None else value)
        return Setting(get_type_hints(self.recipe)["data"], defaults["plan"], defaults.get("networks"), self.presets)
