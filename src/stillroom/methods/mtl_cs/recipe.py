"""MTL-CS's experiment: teachers, students of one target each, the student alone, and the same student by each way of matching."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from stillroom.engine import Experiment, Lab, Networks, Report, Room, Teacher, Trained, Training
from stillroom.engine.study.space import Float
from stillroom.engine.task import WARNING
from stillroom.errors import InputError, arms_of
from stillroom.methods.mtl_cs.distiller import MTLCS
from stillroom.methods.mtl_cs.loss import Divergence, Inter, Match
from stillroom.tasks.multitask import DELTA, SMALL, TASK, MultiTaskData, SideBySide, Supervised, relative

ARMS: Mapping[str, Mapping[str, Any]] = {  # what each has otherwise than the options say
    "kdam": {},
    "kl": {"kdam_divergence": "kl"},
    "inter": {"kdam_divergence": "cs", "inter": "joint", "intra": False},
    "intra": {"kdam_divergence": "cs", "inter": "none", "intra": True},
    "each": {},
}
EACH = "each"  # the arm of several teachers
PLACE = "{target}"  # in the specification of a teacher, of which there is one for each target


def build(
    student: nn.Module,
    teacher: Teacher | nn.Module,
    data: MultiTaskData,
    *,
    temperature: float = 8.0,
    kdam_weight: float = 0.5,
    gain: float = 4.0,
    kdam_divergence: Divergence = "cs",
    inter: Inter = "joint",
    intra: bool = True,
    square: bool = True,
    flipped: float = 0.0,
) -> MTLCS:
    """The distiller; for the options see `recipe`."""
    match = Match(temperature, kdam_weight, gain, kdam_divergence, inter, intra, square)
    return MTLCS(student, teacher, match, flipped=flipped)


def recipe(
    lab: Lab,
    data: MultiTaskData,
    plan: Training = SMALL,
    networks: Networks = TASK.networks,
    arms: str = "kdam",
    single_students: bool = True,
    temperature: float = 8.0,
    kdam_weight: float = 0.5,
    gain: float = 4.0,
    kdam_divergence: Divergence = "cs",
    inter: Inter = "joint",
    intra: bool = True,
    square: bool = True,
    flipped: float = 0.0,
) -> Report:
    """Teach a light network of several dense targets by a larger one, by the Cauchy-Schwarz divergence in rows and columns.

    Args:
        lab: where and how to run.
        data: pictures with the truth of their targets.
        plan: how the networks are trained.
        networks: which teach and learn; ``{target}`` in the teacher's name stands for each target's, where there is a teacher for each.
        arms: of the experiment, joined by ``+``, the last is shipped: ``kdam`` (as the options below say), ``kl``, ``inter`` and ``intra``
            alone, ``each`` (kdam with a teacher for each target).
        single_students: also train the student's network on each target alone, once for all seeds: what Delta_m counts from.
        temperature: temperature of softened class probabilities, T > 0.
        kdam_weight: beta, weight of what is matched.
        gain: kappa, factor that brings depth and directions to the range of logits; above 0.
        kdam_divergence: of the probabilities: ``cs`` by rows and columns, or ``kl`` of each target by itself.
        inter: rows: all targets at a position as one vector (``joint``), each alone (``per_task``), or ``none``.
        intra: match columns: the probabilities of a class over all positions of the batch.
        square: of the cosine in the divergence; without it half as large.
        flipped: share of the teacher's numbers whose sign is changed, to try how much a match bears; from 0 to 1.
    """
    options: dict[str, Any] = {"temperature": temperature, "kdam_weight": kdam_weight, "gain": gain, "square": square, "flipped": flipped}
    options |= {"kdam_divergence": kdam_divergence, "inter": inter, "intra": intra}
    names = arms_of(arms, ARMS)
    several = PLACE in networks.teacher
    if several and names != [EACH]:
        raise InputError("arms", arms, f"{EACH}: a teacher with {PLACE} in its name is one for each target")
    makers = {name: partial(build, data=data, **{**options, **ARMS[name]}) for name in names}
    experiment = Experiment(lab, data, plan, networks if not several else replace(networks, teacher=""))
    if several:
        with lab.shared():
            tried = Teacher(SideBySide({one.name: _teacher_of(lab, data, networks, one.name)[0].network for one in data.targets}))
        experiment.rehearse(*(lambda student, _, make=make: make(student, tried) for make in makers.values()))
    else:
        experiment.rehearse(*makers.values())
    notes = {name: _of_levels(lab, name, make, data) for name, make in makers.items()}

    stages: dict[str, Trained] = {} if several else {"teacher": experiment.teacher()}
    teachers = _teachers(lab, data, plan, networks) if EACH in names else None
    if teachers is not None:
        stages["teachers" if stages else "teacher"] = teachers
    if single_students:
        stages["single"] = _single(lab, data, plan, networks)
    stages["alone"] = experiment.alone()
    if not several:
        stages["teacher"] = experiment.beaten(stages["teacher"], stages["alone"])
    for name, make in makers.items():
        taught = lab.teach(teachers) if name == EACH and teachers is not None else None
        trained = experiment.trained(name, partial(make, teacher=taught)) if taught is not None else experiment.distilled(name, make)
        stages[name] = replace(trained, notes=(*trained.notes, *notes[name]))
    if single_students:
        stages = _relative(stages, data)
    report = lab.report("mtl-cs", data, stages, ship=names[-1])
    if single_students:
        report.primary = DELTA
    return report


def _of_levels(lab: Lab, name: str, make: Callable[..., MTLCS], data: MultiTaskData) -> list[str]:
    """The warning where columns alone are matched of values that have a level."""
    chosen: dict[str, Any] = make.keywords  # type: ignore[attr-defined]
    levels = [target.name for target in data.targets if target.kind != "classes"]
    if chosen["kdam_divergence"] != "cs" or chosen["inter"] != "none" or not levels:
        return []
    told = f"{name}: columns alone fix patterns and no levels: {', '.join(levels)} may come out shifted or turned round; match rows too"
    if lab.seed == lab.options.seed:
        lab.say(name, f"{WARNING}{told}")
    return [f"{WARNING}{told}."]


def _teacher_of(lab: Lab, data: MultiTaskData, networks: Networks, target: str) -> tuple[Any, MultiTaskData]:
    """A target's own teacher before any training, and the data with this target alone."""
    some = data.of_targets(target)
    spec = networks.teacher.replace(PLACE, target)
    return data.task.build(spec, some, networks, trust_pickle=lab.options.trust_pickle, argument="teacher"), some


def _teachers(lab: Lab, data: MultiTaskData, plan: Training, networks: Networks) -> Trained:
    """A teacher for each target, trained on it alone where it brings no weights; one set for all seeds."""
    with lab.shared():
        trained: dict[str, nn.Module] = {}
        for target in data.targets:
            built, some = _teacher_of(lab, data, networks, target.name)
            trained[target.name] = built.network
            if built.weights is None:
                own, name = networks.teacher_plan(plan), f"teacher-{target.name}"
                fitted = lab.fit(Supervised(built.network), some.for_teacher(), own, name=name, model=built.spec)
                assert fitted.network is not None
                trained[target.name] = fitted.network
        return _together(lab, data, "teachers", trained, f"{networks.teacher} (one for each target)")


def _single(lab: Lab, data: MultiTaskData, plan: Training, networks: Networks) -> Trained:
    """The student's network, trained on each target alone; one set for all seeds."""
    with lab.shared():
        trained: dict[str, nn.Module] = {}
        seconds = 0.0
        for target in data.targets:
            some = data.of_targets(target.name)
            built = data.task.build(networks.student, some, networks, trust_pickle=lab.options.trust_pickle, argument="student")
            made = Supervised(built.network)
            fitted = lab.fit(made, some, plan, name=f"single-{target.name}", model=built.spec)
            assert fitted.network is not None
            trained[target.name], seconds = fitted.network, seconds + fitted.result.seconds
        found = _together(lab, data, "single", trained, f"{networks.student} (one for each target)")
        return replace(found, result=replace(found.result, seconds=seconds))


def _together(lab: Lab, data: MultiTaskData, name: str, networks: Mapping[str, nn.Module], model: str) -> Trained:
    """Several networks scored as one."""
    together = SideBySide(networks)
    together.targets = data.targets  # type: ignore[assignment]
    return lab.evaluate(together, data, name=name, model=model, around=Supervised)


def _relative(stages: Mapping[str, Trained], data: MultiTaskData) -> dict[str, Trained]:
    """The stages with Delta_m over the networks of one target each among their figures."""
    single = stages["single"].result.metrics

    def counted(trained: Trained) -> Trained:
        metrics = {DELTA: relative(data.targets, trained.result.metrics, single), **trained.result.metrics}
        return replace(trained, result=replace(trained.result, metrics=metrics))

    return {name: counted(trained) for name, trained in stages.items()}


OPTIONS = {"temperature": 8.0, "kdam_weight": 0.5, "arms": "kdam", "single_students": True}
PRESETS = {name: {**preset, **OPTIONS} for name, preset in TASK.presets.items()}

ROOM = Room(
    recipe,
    tasks=("multitask",),
    presets=PRESETS,
    default=TASK.default,
    expect="In 300 steps on solids of 32 pixels KDAM had +8.7 +- 2.3 % of Delta_m over the student alone, +9.7 +- 3.2 over KL (5 seeds); "
    "on NYU Depth V2, after 150 steps from random weights, nothing is to be told.",
    build=build,
    space={"temperature": Float(1.0, 16.0, log=True), "kdam_weight": Float(0.05, 5.0, log=True)},
)
