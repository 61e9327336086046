"""What an experiment is made of, task by task: for methods and commands that serve several tasks without knowing any."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import jsonargparse
from torch import nn

from stillroom.engine import Distiller, Lab, Teacher, Trained, Training
from stillroom.errors import InputError

TASKS = ("classification", "detection")  # each with a room here whose `experiment` module holds EXPERIMENT


@dataclass(frozen=True)
class Experiment:
    """Teacher, student alone, and students distilled, on one task's data.

    Args:
        data: the class of the task's data; its parameters are the options of a command.
        plan: the default job.
        sgd: the same under plain SGD with momentum, for methods that are defined for it alone.
        teacher, student: specifications of the default job's networks.
        teacher_epochs: epochs for a teacher that has to be trained in the default job; None for as many as the plan's.
        presets: the task's papers' settings, by name.
        kinds: of data that only this task reads, as they are typed before the colon.
        views: ``(data, asked)``: how many views of an image a cache of a teacher's answers holds.
        network: ``(spec, data, lab, argument)``: the network of a specification, with its weights; `argument` is what errors call it.
        rehearse: ``(lab, data, teacher, student, distiller)``: builds everything once and throws it away, so that what is wrong with an
            argument is said before hours of training.
        teacher_stage: ``(lab, data, plan, spec, epochs)``: the teacher, one for all seeds: loaded, or trained first.
        supervised_stage: ``(lab, data, plan, spec)``: a student trained without a teacher.
        distilled_stage: ``(lab, data, plan, spec, name, distiller)``: the same student under the distiller that is made around it.
        layers: module paths by a word, for a cache's taps: ``(network, argument)``.
        exact: parts of a teacher's answer that a cache stores in fp32 whatever it is asked for.
    """

    data: type[Any]
    plan: Training
    sgd: Training
    teacher: str
    student: str
    teacher_epochs: int | None
    presets: Mapping[str, Mapping[str, Any]]
    kinds: tuple[str, ...]
    views: Callable[[Any, int | None], int]
    network: Callable[[str, Any, Lab, str], Any]
    rehearse: Callable[[Lab, Any, str, str, Callable[[Any, Teacher], object]], None]
    teacher_stage: Callable[[Lab, Any, Training, str, int | None], Trained]
    supervised_stage: Callable[[Lab, Any, Training, str], Trained]
    distilled_stage: Callable[[Lab, Any, Training, str, str, Callable[[Any], Distiller]], Trained]
    layers: Mapping[str, Callable[[nn.Module, str], str]] = field(default_factory=dict)
    exact: tuple[str, ...] = ()

    def presets_of(self, recipe: Callable[..., Any]) -> dict[str, dict[str, Any]]:
        """The presets, without what a recipe has no option for."""
        known = {*options_of(recipe, {"lab", "data", "plan"}), *options_of(self.data), *options_of(Training)}
        return {name: {option: value for option, value in preset.items() if option in known} for name, preset in self.presets.items()}


def options_of(function: Callable[..., Any], given: Collection[str] = ()) -> dict[str, Any]:
    """What can be said to a function or a class, with the defaults; through its ``**options`` also what it hands them on to can be told.

    Args:
        function: as the command line reads it.
        given: its parameters that are no options.
    """
    parser = jsonargparse.ArgumentParser(default_env=False)
    add = parser.add_class_arguments if inspect.isclass(function) else parser.add_function_arguments
    names = add(function, skip=set(given))
    return {name: parser.get_default(name) for name in names}


def experiment_of(task: str, argument: str = "task") -> Experiment:
    """A task's experiment.

    Raises:
        InputError: no such task, or one whose methods have experiments of their own kind.
    """
    if task not in TASKS:
        raise InputError(argument, task, f"one of {', '.join(TASKS)}")
    found: Experiment = importlib.import_module(f"stillroom.tasks.{task}.experiment").EXPERIMENT
    return found
