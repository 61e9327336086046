"""DOT's experiment: a teacher, the student alone, the student with a host method under plain SGD, and the same under DOT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from stillroom import catalog
from stillroom.engine import Distiller, Experiment, Lab, Networks, Report, Room, TaskData, Teacher, Training
from stillroom.engine.room import Setting, setting_of
from stillroom.engine.study.space import Float
from stillroom.engine.task import SUPERVISED, task_named
from stillroom.errors import InputError, near
from stillroom.methods.dot.distiller import DOT


def host_distiller(host: str, student: nn.Module, teacher: Teacher, data: TaskData, options: dict[str, Any]) -> Distiller:
    """The host method's distiller, with its defaults but for `options`.

    Raises:
        InputError: no such method, one that cannot host, or an option that it does not have.
    """
    room = host_room(host)
    known = room.options
    for name in options:
        if name not in known:
            raise InputError("host_options", name, f"an option of {host}, such as {near(name, known)}")
    assert room.build is not None
    return room.build(student, teacher, data, **options)


def host_room(host: str) -> Room:
    """The host's room.

    Raises:
        InputError: no such method, or one that cannot host.
    """
    room = catalog.load(host, argument="host")
    if host == "dot" or room.build is None:
        reason = "is DOT itself" if host == "dot" else room.reason
        raise InputError("host", host, f"a method with a task and a distillation loss, such as kd, dkd or crd: {host} {reason}")
    return room


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


def recipe(
    lab: Lab,
    data: Any,
    plan: Training,
    networks: Networks,
    host: str = "kd",
    host_options: dict[str, Any] | None = None,
    delta: float = 0.05,
) -> Report:
    """Compare a host method under plain SGD and under DOT, besides the teacher and the student alone.

    Args:
        lab: where and how to run.
        data: of the host's task.
        plan: how the networks are trained; sgd only.
        networks: which they are.
        host: the method whose losses are optimised: one with a task and a distillation loss, such as kd, dkd, fitnets, crd, l2d or bckd.
        host_options: arguments of the host that differ from its defaults, e.g. ``{"temperature": 2}``.
        delta: the momentum gap; momentum + delta must stay below 1. The paper's 0.075 (ImageNet 0.09) needs some 3 000 steps or more.
    """
    options = host_options or {}

    def plain(fresh: nn.Module, taught: Teacher) -> Distiller:
        return host_distiller(host, fresh, taught, data, options)

    def dotted(fresh: nn.Module, taught: Teacher) -> Distiller:
        return build(fresh, taught, data, host=host, delta=delta, host_options=options)

    return Experiment(lab, data, plan, networks).run("dot", {host: plain, f"{host}+dot": dotted}, baseline=host)


def setting(host: str) -> Setting:
    """The setting of the host's task under plain SGD; a preset brings the numbers that the host's own preset of that name has.

    Raises:
        InputError: no such method, or one that cannot host.
    """
    room = host_room(host)
    task = room.tasks[0]
    found = setting_of(task, recipe, plan=task_named(task).sgd)

    def of_host(values: Mapping[str, Any]) -> dict[str, Any]:
        return {"host_options": {name: value for name, value in values.items() if name in room.options} or None}

    def numbers(preset: str) -> dict[str, Any]:
        return {**PRESETS.get(preset, PRESETS["paper"]), **of_host(room.presets.get(preset, {}))}

    presets = {name: {**preset, **numbers(name)} for name, preset in found.presets.items()}
    default = {**found.default, **of_host(room.default), "seeds": 3} if found.default else {}
    return replace(found, presets=presets, default=default)


PRESETS = {"paper": {"delta": 0.075}, "paper:tiny-imagenet": {"delta": 0.075}, "paper:imagenet": {"delta": 0.09}}

ROOM = Room(
    recipe,
    tasks=SUPERVISED,
    presets=PRESETS,
    expect="KD under DOT gives +16.1 +- 2.1 points over the student alone (3 seeds), since the teacher was trained on ten times as many "
    "pictures, and is level with KD under plain SGD (-1.6 +- 1.4); the paper sees it +0.8 to +1.8 above on CIFAR-100.",
    build=build,
    space={"delta": Float(0.005, 0.095)},
    choice="host",
    setting=setting,
)
