"""Plain training on labels: the yardstick of every other method, and a way to make a teacher."""

from __future__ import annotations

from typing import Any

from stillroom.engine import Experiment, Lab, Networks, Report, Room, Training
from stillroom.engine.room import Setting, setting_of
from stillroom.engine.task import SUPERVISED
from stillroom.errors import one_of


def recipe(lab: Lab, data: Any, plan: Training, networks: Networks, task: str = "classification") -> Report:
    """Train one network on labels alone.

    Args:
        lab, data, plan, networks: where to run, on what, how to train, and which networks; see `Room`.
        task: of the networks, such as detection or segmentation; a wrong name is answered with all that there are.
    """
    experiment = Experiment(lab, data, plan, networks)
    experiment.rehearse(lambda student, _: experiment.task.supervised(student))
    return lab.report("supervised", data, {"alone": experiment.alone()}, ship="alone")


def setting(task: str) -> Setting:
    """The task's own, without a teacher.

    Raises:
        InputError: no such task, or one whose networks are not trained on labels.
    """
    return setting_of(one_of("task", task, SUPERVISED), recipe, teacher=False)


ROOM = Room(recipe, tasks=SUPERVISED, reason="is plain training, which a comparison has as the arm `alone`", choice="task", setting=setting)
