"""The method `searched`: a student under one composed distiller, by its string; on classification, detection and segmentation."""

from __future__ import annotations

from typing import Any

from torch import nn

from stillroom.engine import Distiller, Experiment, Lab, Networks, Report, Room, Teacher, Trained, Training
from stillroom.engine.room import Setting, setting_of
from stillroom.engine.study.space import Choice
from stillroom.errors import InputError, one_of
from stillroom.losses.composed import Composition
from stillroom.methods.auto_kd.distiller import DISTILLER, LayerWeights, build, make_searched

TASKS = ("classification", "detection", "segmentation")


def recipe(
    lab: Lab,
    data: Any,
    plan: Training,
    networks: Networks,
    task: str = "classification",
    distiller: str = DISTILLER,
    student_layer: str | None = None,
    teacher_layer: str | None = None,
    layer_weights: LayerWeights = "training-free",
    more_teachers: list[str] | str = "",
) -> Report:
    """Train (or load) a teacher, a student alone, and the same student with a composed distiller; compare them.

    Args:
        lab, data, plan, networks: where to run, on what, how to train, and which networks; see `Room`.
        task: of the networks: classification, detection or segmentation.
        distiller: the composition, such as ``satt>local4>channel>kl4*10``: what is done to both networks' features, how they are compared,
            and the weight; the page of the method lists the words.
        student_layer: module path in the student; of its last features by default (of a detector its pyramid), or several with + between.
        teacher_layer: module path in the teacher; likewise, as many.
        layer_weights: how several layers and teachers are weighed: ``training-free``, by their similarity to the untrained student, or
            ``equal``.
        more_teachers: further teachers, networks with their weights or folders of runs, with commas between.
    """
    Composition.read(distiller)  # said before anything is trained
    experiment = Experiment(lab, data, plan, networks)
    others = {f"teacher {i}": spec for i, spec in enumerate(teacher_specs(more_teachers), 2)}
    tried = [further_teacher(experiment, spec) for spec in others.values()]

    def distilled(student: nn.Module, taught: Teacher) -> Distiller:
        return make_searched(student, [taught, *tried], data, distiller, student_layer, teacher_layer, layer_weights)

    experiment.rehearse(distilled)
    stages = {"teacher": experiment.teacher()}
    stages |= {name: scored_teacher(experiment, name, spec) for name, spec in others.items()}
    stages["alone"] = experiment.alone()
    stages["teacher"] = experiment.beaten(stages["teacher"], stages["alone"])
    stages["distilled"] = experiment.distilled("distilled", distilled)
    return lab.report("searched", data, stages)


def teacher_specs(given: list[str] | str) -> list[str]:
    """Specifications of networks, in a list or with commas between them."""
    return [spec.strip() for spec in given.split(",") if spec.strip()] if isinstance(given, str) else list(given)


def further_teacher(experiment: Experiment, spec: str) -> Teacher:
    """A network with its weights as one more teacher.

    Raises:
        InputError: it has none.
    """
    built = experiment.network(spec, "teacher")
    if built.weights is None or built.start:
        raise InputError("more_teachers", spec, "a network with weights for the data's classes, NAME@FILE, or the folder of a run")
    return Teacher(
        built.network,
        precision=experiment.lab.options.torch_precision,
        renormalise=built.renormalise or experiment.data.renormalise,
    )


def scored_teacher(experiment: Experiment, name: str, spec: str) -> Trained:
    """The stage of a further teacher, for the report."""
    built = experiment.network(spec, "teacher")
    with experiment.lab.shared():
        return experiment.lab.evaluate(
            built.network,
            experiment.data,
            name=name.replace(" ", "-"),
            model=built.spec,
            renormalise=built.renormalise or experiment.data.renormalise,
            around=experiment.task.supervised,
            weights=built.weights,
            origin=f"the weights of {built.weights}",
        )


def setting(task: str) -> Setting:
    """The task's own.

    Raises:
        InputError: another task.
    """
    return setting_of(one_of("task", task, TASKS), recipe)


ROOM = Room(
    recipe,
    tasks=TASKS,
    build=build,
    choice="task",
    setting=setting,
    space={
        "distiller": Choice(
            tuple(
                f"{kind}*{weight:g}"
                for kind in ("sample>gl2", "channel>gl2", "channel>kl4", "position>l2")
                for weight in (1.0, 10.0, 100.0)
            )
        )
    },
)
