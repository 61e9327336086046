"""DOT's experiment: a teacher, the student alone, the student with a host method under plain SGD, and the same under DOT."""

from __future__ import annotations

import inspect
from typing import Any, Literal

from torch import nn

from stillroom import catalog
from stillroom.engine import Distiller, Lab, Report, Teacher, Training
from stillroom.errors import InputError, near
from stillroom.methods.dot.distiller import DOT
from stillroom.tasks.classification import (
    CIFAR100,
    DIGITS,
    IMAGENET,
    TINY_IMAGENET,
    ImageData,
    distilled_stage,
    rehearse,
    supervised_stage,
    teacher_stage,
)


def host_distiller(host: str, student: nn.Module, teacher: Teacher, data: ImageData, options: dict[str, Any]) -> Distiller:
    """The host method's distiller, with its defaults but for `options`.

    Raises:
        InputError: no such method, one that cannot host, or an option that it does not have.
    """
    room = catalog.load(host, argument="host")
    if host == "dot" or not hasattr(room, "build"):
        raise InputError("host", host, "a method with a task and a distillation loss, such as kd, dkd or crd")
    known = [name for name, p in inspect.signature(room.build).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise InputError("host_options", name, f"an option of {host}, such as {near(name, known)}")
    made: Distiller = room.build(student, teacher, data, **options)
    return made


def build(
    student: nn.Module,
    teacher: Teacher,
    data: ImageData,
    *,
    host: str = "kd",
    delta: float = 0.075,
    host_options: dict[str, Any] | None = None,
) -> DOT:
    """A host method's distiller under DOT."""
    return DOT(host_distiller(host, student, teacher, data, host_options or {}), delta=delta)


def recipe(
    lab: Lab,
    data: ImageData,
    plan: Training = DIGITS,
    teacher: str = "stillroom/convnet24",
    student: str = "stillroom/convnet4",
    teacher_epochs: int | None = None,
    host: Literal["kd", "dkd", "crd", "fitnets"] = "kd",
    host_options: dict[str, Any] | None = None,
    delta: float = 0.05,
) -> Report:
    """Compare a host method under plain SGD and under DOT, besides the teacher and the student alone.

    Args:
        lab: where and how to run.
        data: the images.
        plan: how the networks are trained; sgd only.
        teacher: network, optionally with weights after ``@``; without weights it is trained first. Or a run's folder, or cache:FOLDER.
        student: network, as above.
        teacher_epochs: epochs for a teacher that has to be trained; by default as many as the student's.
        host: the method whose losses are optimised.
        host_options: arguments of the host that differ from its defaults, e.g. ``{"temperature": 2}``.
        delta: the momentum gap; momentum + delta must stay below 1. The paper's 0.075 (ImageNet 0.09) needs some 3 000 steps or more.
    """
    options = host_options or {}

    def plain(fresh: nn.Module, taught: Teacher) -> Distiller:
        return host_distiller(host, fresh, taught, data, options)

    def dotted(fresh: nn.Module, taught: Teacher) -> Distiller:
        made = build(fresh, taught, data, host=host, delta=delta, host_options=options)
        made.plan = plan
        made.configure_optimizers()  # refuses a plan that DOT is not defined for
        return made

    rehearse(lab, data, teacher, student, dotted)
    taught = teacher_stage(lab, data, plan, teacher, teacher_epochs)
    alone = supervised_stage(lab, data, plan, student)
    under_sgd = distilled_stage(lab, data, plan, student, host, lambda fresh: plain(fresh, lab.teach(taught)))
    under_dot = distilled_stage(lab, data, plan, student, f"{host}+dot", lambda fresh: dotted(fresh, lab.teach(taught)))
    arms = {"teacher": taught, "alone": alone, host: under_sgd, f"{host}+dot": under_dot}
    return lab.report("dot", data, arms, baseline=host, ship=f"{host}+dot")


PRESETS = {
    "paper": {**CIFAR100, "delta": 0.075},
    "paper:tiny-imagenet": {**TINY_IMAGENET, "delta": 0.075},
    "paper:imagenet": {**IMAGENET, "delta": 0.09, "host_options": {"temperature": 1.0, "task_weight": 0.5, "kd_weight": 0.5}},
}
