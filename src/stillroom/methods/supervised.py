"""Plain training on labels: the yardstick of every other method, and a way to make a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stillroom.engine import Lab, Report, Training
from stillroom.tasks.experiments import Experiment, experiment_of


def training(experiment: Experiment, task: str) -> Callable[..., Report]:
    """The recipe for one task: its data, networks and stages."""
    of = task

    def recipe(lab: Lab, data: Any, plan: Training = experiment.plan, student: str = experiment.student, task: str = of) -> Report:
        """Train one network on labels alone.

        Args:
            lab: where and how to run.
            data: of the task.
            plan: how the network is trained.
            student: network, optionally with weights after ``@`` to start from.
            task: what the network is to learn: classification or detection.
        """
        alone = experiment.supervised_stage(lab, data, plan, student)
        return lab.report("supervised", data, {"alone": alone}, ship="alone")

    recipe.__annotations__["data"] = experiment.data  # whose options the command shows
    return recipe


CHOICE = "task"


def chosen(task: str) -> tuple[Callable[..., Report], Mapping[str, Mapping[str, Any]]]:
    """The recipe and the presets for a task.

    Raises:
        InputError: no such task.
    """
    experiment = experiment_of(task)
    made = training(experiment, task)
    return made, experiment.presets_of(made)


recipe, PRESETS = chosen("classification")
