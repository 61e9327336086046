"""DOT's experiment: a teacher, the student alone, the student with a host method under plain SGD, and the same under DOT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from stillroom import catalog
from stillroom.engine import Distiller, Lab, Report, TaskData, Teacher, Trained, Training
from stillroom.errors import InputError, near
from stillroom.methods.dot.distiller import DOT
from stillroom.tasks.classification import IMAGENET
from stillroom.tasks.experiments import Experiment, experiment_of, options_of

_GIVEN = {"student", "teacher", "data"}  # parameters of a room's `build` that are no options


def host_distiller(host: str, student: nn.Module, teacher: Teacher, data: TaskData, options: dict[str, Any]) -> Distiller:
    """The host method's distiller, with its defaults but for `options`.

    Raises:
        InputError: no such method, one that cannot host, or an option that it does not have.
    """
    room = catalog.load(host, argument="host")
    if host == "dot" or not hasattr(room, "build"):
        raise InputError("host", host, "a method with a task and a distillation loss, such as kd, dkd or crd")
    known = options_of(room.build, _GIVEN)
    for name in options:
        if name not in known:
            raise InputError("host_options", name, f"an option of {host}, such as {near(name, known)}")
    made: Distiller = room.build(student, teacher, data, **options)
    return made


def build(
    student: nn.Module,
    teacher: Teacher,
    data: TaskData,
    *,
    host: str = "kd",
    delta: float = 0.075,
    host_options: dict[str, Any] | None = None,
) -> DOT:
    """A host method's distiller under DOT."""
    return DOT(host_distiller(host, student, teacher, data, host_options or {}), delta=delta)


def hosting(experiment: Experiment, host: str, delta: float) -> Callable[..., Report]:
    """The recipe for the hosts of one task.

    Args:
        experiment: of the task: its data, networks and stages.
        host: the default host.
        delta: the default momentum gap.
    """
    default_host, default_delta = host, delta

    def recipe(
        lab: Lab,
        data: Any,
        plan: Training = experiment.sgd,
        teacher: str = experiment.teacher,
        student: str = experiment.student,
        teacher_epochs: int | None = experiment.teacher_epochs,
        host: str = default_host,
        host_options: dict[str, Any] | None = None,
        delta: float = default_delta,
    ) -> Report:
        """Compare a host method under plain SGD and under DOT, besides the teacher and the student alone.

        Args:
            lab: where and how to run.
            data: of the host's task.
            plan: how the networks are trained; sgd only.
            teacher: network, optionally with weights after ``@``; without weights it is trained first. Or a run's folder, or cache:FOLDER.
            student: network, as above.
            teacher_epochs: epochs for a teacher that has to be trained; by default as many as the student's, for detection's scenes 6.
            host: the method whose losses are optimised: one with a task and a distillation loss, such as kd, dkd, fitnets, crd or bckd.
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

        def distilled(name: str, make: Callable[[nn.Module, Teacher], Distiller]) -> Trained:
            return experiment.distilled_stage(lab, data, plan, student, name, lambda fresh: make(fresh, lab.teach(taught)))

        experiment.rehearse(lab, data, teacher, student, dotted)
        taught = experiment.teacher_stage(lab, data, plan, teacher, teacher_epochs)
        alone = experiment.supervised_stage(lab, data, plan, student)
        arms = {"teacher": taught, "alone": alone, host: distilled(host, plain), f"{host}+dot": distilled(f"{host}+dot", dotted)}
        return lab.report("dot", data, arms, baseline=host, ship=f"{host}+dot")

    recipe.__annotations__["data"] = experiment.data  # whose options the command shows
    return recipe


recipe = hosting(experiment_of("classification"), "kd", 0.05)

PRESETS = {
    **{name: {**preset, "delta": 0.075} for name, preset in experiment_of("classification").presets.items()},
    "paper:imagenet": {**IMAGENET, "delta": 0.09, "host_options": {"temperature": 1.0, "task_weight": 0.5, "kd_weight": 0.5}},
}

CHOICE = "host"


def chosen(host: str) -> tuple[Callable[..., Report], Mapping[str, Mapping[str, Any]]]:
    """The recipe and the presets for a host, by its task; the presets with the host's own numbers from its own presets of that name.

    Raises:
        InputError: no such method, or one of a task that DOT has no experiment for.
    """
    task = catalog.find(host, "host").task
    if host == "kd":
        return recipe, PRESETS
    experiment = experiment_of(task, "host")
    made = recipe if task == "classification" else hosting(experiment, host, 0.05)
    room = catalog.load(host, "host")
    known = options_of(room.build, _GIVEN) if hasattr(room, "build") else {}

    def numbers(preset: str) -> dict[str, Any]:
        own = {name: value for name, value in room.PRESETS.get(preset, {}).items() if name in known}
        return {"delta": 0.09 if preset == "paper:imagenet" else 0.075, "host_options": own or None}

    return made, {name: {**preset, **numbers(name)} for name, preset in experiment.presets_of(made).items()}
