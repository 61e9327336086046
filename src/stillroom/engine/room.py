"""Room: what a method gives to the command line, to comparisons, and to methods that train another's losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_type_hints

from stillroom.engine.distiller import Distiller
from stillroom.engine.experiment import Networks
from stillroom.engine.report.results import Report
from stillroom.engine.study.space import Range
from stillroom.engine.task import SUPERVISED, task_named
from stillroom.engine.training import Training
from stillroom.errors import InputError

Presets = Mapping[str, Mapping[str, Any]]

# options of data that say nothing where nobody teaches
_OF_A_TEACHER = frozenset({"teacher_image_size", "teacher_mean", "teacher_scales", "teacher_std"})
BUILT_FROM = {"student", "teacher", "data"}  # parameters of a room's `build` that are no options


@dataclass(frozen=True)
class Setting:
    """What a method's command starts from.

    Args:
        data: the class of the data, whose parameters are options.
        plan: how the networks are trained by default.
        networks: which they are by default; None for a recipe that names them otherwise.
        presets: other defaults, by name.
        without: options of the networks that the recipe does not have.
        default: of the small job that is run where no data are named: its data and whatever is to be otherwise for them.
        expect: what a person should expect of that job, in a sentence or two.
    """

    data: type[Any]
    plan: Training
    networks: Networks | None
    presets: Presets
    without: frozenset[str] = frozenset()
    default: Mapping[str, Any] = field(default_factory=dict)
    expect: str = ""

    @property
    def unused(self) -> frozenset[str]:
        """Options of the data that the command does not have, since no teacher is given to it."""
        return frozenset() if self.networks is not None and "teacher" not in self.without else _OF_A_TEACHER


@dataclass(frozen=True)
class Room:
    """What a method's module holds under the name `ROOM`.

    Args:
        recipe: ``recipe(lab, data, plan, networks, **options)``: the whole experiment for one seed, run by `lab` on `data`. The annotation
            of `data` says which class the data are of, and the defaults of `plan` and `networks` how and what is trained; one that names
            its networks otherwise has no `networks`.
        tasks: names of the tasks that it works on.
        presets: other defaults by name, `paper` among them.
        default: of the small job that is run where no data are named: its data and whatever is to be otherwise for them.
        expect: what a person should expect of that job, from `results/`, in a sentence or two; for the help and the job's report. A test
            holds its numbers against those that were measured.
        build: ``build(student, teacher, data, **options)``: the method's distiller, for comparisons and hosts; None where the method is no
            distiller around one student.
        reason: why there is no `build`, in words that go on from the method's name: "has no teacher".
        unlabelled: whether its student learns from samples that nobody labelled, where the data have such.
        choice: the option of a recipe of several tasks that says which.
        setting: ``setting(what was chosen)``: what its command then starts from.
        space: over which values `tune` searches options of `build`; without it, a factor of ten around its weights.
    """

    recipe: Callable[..., Report]
    tasks: tuple[str, ...]
    presets: Presets = field(default_factory=dict)
    default: Mapping[str, Any] = field(default_factory=dict)
    expect: str = ""
    build: Callable[..., Distiller] | None = None
    reason: str = ""
    unlabelled: bool = False
    choice: str | None = None
    setting: Callable[[str], Setting] | None = None
    space: Mapping[str, Range] = field(default_factory=dict)

    def check_data(self, data: Any) -> None:
        """Raises InputError for data with samples that nobody labelled, if the method would not learn from them."""
        if getattr(data, "unlabelled", 0) and not self.unlabelled:
            expected = "none for this method: kd and boss learn from them (so do wad, crkd and kd3, by options of their own)"
            raise InputError("data", f"{data.unlabelled} images by unlabelled=", expected)

    def check_engine(self, engine: str | None) -> None:
        """Raises InputError where an engine is to compute a teacher that the method asks in a way of its own, or in no task has one."""
        if engine is None or not self.tasks:  # somebody's own recipe: its experiment will say
            return
        if self.build is None or not any(hasattr(task_named(task), "by_engine") for task in self.tasks):
            raise InputError("teacher_engine", engine, "torch: this method asks its teacher in a way of its own, which no engine computes")

    @property
    def options(self) -> dict[str, Any]:
        """Options of `build`, with the values that they have in the method's own experiment; none where there is no `build`."""
        if self.build is None:
            return {}
        own = options_of(self.recipe, {"lab", "data", "plan", "networks"})
        return {name: own.get(name, default) for name, default in options_of(self.build, BUILT_FROM).items()}

    def chosen(self, value: str | None) -> Setting:
        """What the command starts from, when `choice` has this value (None for its default).

        Raises:
            InputError: no such choice.
        """
        defaults = {name: parameter.default for name, parameter in inspect.signature(self.recipe).parameters.items()}
        if self.choice is not None and self.setting is not None:
            usual = value is None or value == defaults[self.choice]
            return replace(self.setting(value or defaults[self.choice]), expect=self.expect if usual else "")
        data, networks = get_type_hints(self.recipe)["data"], defaults.get("networks")
        return Setting(data, defaults["plan"], networks, self.presets, default=self.default, expect=self.expect)


def setting_of(task: str, own: Callable[..., Any], *, plan: Training | None = None, teacher: bool = True, student: bool = True) -> Setting:
    """A task's own setting, for what serves several tasks with plain training on labels.

    Args:
        task: its name.
        own: the recipe or command, whose options a preset may hold besides those of data, training and networks.
        plan: how to train, where it is not by the task's plan.
        teacher, student: whether there is one.

    Raises:
        InputError: no such task, or one without plain training where there is a student.
    """
    found = task_named(task)
    if student and not hasattr(found, "supervised"):
        raise InputError("task", task, f"a task with plain training on labels: {', '.join(SUPERVISED)}")
    options = options_of(type(found.networks))
    without = frozenset(name for name in options if not (teacher if "teacher" in name else student or name != "student"))
    known = {*options_of(own, {"lab", "data", "plan", "networks"}), *options_of(found.data), *options_of(Training), *options} - without
    known -= frozenset() if teacher else _OF_A_TEACHER

    def of_these(preset: Mapping[str, Any]) -> dict[str, Any]:
        return {option: value for option, value in preset.items() if option in known}

    presets = {name: of_these(preset) for name, preset in found.presets.items()}
    return Setting(found.data, plan or found.plan, found.networks, presets, without, of_these(found.default))


def options_of(function: Callable[..., Any], given: Collection[str] = ()) -> dict[str, Any]:
    """What can be said to a function or a class, with the defaults; through its ``**options`` also what it hands them on to can be told.

    Args:
        function: as the command line reads it.
        given: its parameters that are no options.
    """
    import jsonargparse

    parser = jsonargparse.ArgumentParser(default_env=False)
    add = parser.add_class_arguments if inspect.isclass(function) else parser.add_function_arguments
    names = add(function, skip=set(given))
    return {name: parser.get_default(name) for name in names}
