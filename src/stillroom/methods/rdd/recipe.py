"""RDD's experiment: a large detector, a compact one alone, and the compact one taught by RDD and, if asked, by its rivals."""

from __future__ import annotations

from typing import Any, get_args

from stillroom.engine import Distiller, Experiment, Lab, Networks, Report, Room, Teacher, Training
from stillroom.engine.study.space import Float
from stillroom.errors import InputError
from stillroom.methods.rdd.distiller import RDD
from stillroom.methods.rdd.loss import Mode, Selection
from stillroom.methods.rdd.rivals import Rival, RivalDistiller
from stillroom.tasks.detection3d.data import Detection3dData
from stillroom.tasks.detection3d.networks import MapDetector
from stillroom.tasks.detection3d.task import NUSCENES, STREETS, TASK

ARMS = ("rdd", "rdd-teacher", "rdd-all", *get_args(Rival))


def build(
    student: MapDetector,
    teacher: Teacher,
    data: Detection3dData,
    *,
    mode: Mode = "threshold",
    sparsity: float = 0.1,
    ratio: float = 0.6,
    **options: Any,
) -> RDD:
    """The distiller, for this recipe and for comparisons.

    Args:
        student, teacher, data: what learns, what teaches, on what.
        mode: how pairs are picked: ``threshold`` of their disparity, a ``ratio`` of them, or steps of ``projected_gradient``.
        sparsity: lambda, the disparity above which a pair counts.
        ratio: share of the pairs that count, in the mode of that name.
        options: those of `RDD`.
    """
    return RDD(student, teacher, selection=Selection(mode, sparsity, ratio), **options)


def recipe(
    lab: Lab,
    data: Detection3dData,
    plan: Training = STREETS,
    networks: Networks = TASK.networks,
    arms: str = "rdd",
    rival_weight: float = 1.0,
    **options: Any,
) -> Report:
    """Train (or load) a large detector, a compact one alone, and the compact one with RDD; compare them.

    Args:
        lab: where and how to run.
        data: frames with boxes.
        plan: how the detectors are trained.
        networks: which they are, of the same classes; their maps may differ in resolution.
        arms: of the experiment, joined by +, the last is shipped: ``rdd``, ``rdd-teacher`` (the teacher's proposals only), ``rdd-all`` (all
            pairs alike), and the methods that the paper compares with: ``hint`` (the whole map), ``fg`` (near true boxes), ``gid-f`` and
            ``gid-l`` (general instances by features and by logits), ``lad`` (labels assigned by the teacher), ``pp`` (pivotal positions).
        rival_weight: weight of hint, fg, gid-f and gid-l.
        options: those of `build`.
    """
    names = [name.strip() for name in arms.split("+")]
    if len(set(names)) != len(names) or not set(names) <= set(ARMS):
        raise InputError("arms", arms, f"some of {', '.join(ARMS)}, each once, joined by +")

    def made(name: str, student: MapDetector, teacher: Teacher) -> Distiller:
        if name in get_args(Rival):
            return RivalDistiller(student, teacher, kind=name, weight=rival_weight)  # type: ignore[arg-type]
        distiller = build(student, teacher, data, **options)
        distiller.student_proposals = name != "rdd-teacher"
        if name == "rdd-all":
            distiller.selection = Selection(sparsity=0.0)
        return distiller

    every = {name: lambda student, teacher, name=name: made(name, student, teacher) for name in names}
    return Experiment(lab, data, plan, networks).run("rdd", every, ship=names[-1])


KITTI: dict[str, Any] = {
    **{name: value for name, value in NUSCENES.items() if name != "resample"},
    "data": "kitti:data/kitti",
    "reach": [0.0, -40.0, -3.0, 70.4, 40.0, 1.0],
    "paste": 15,
    "teacher": "stillroom/second",
    "student": "stillroom/second,encoder=0.75,bev=0.5",
    "epochs": 80,
}
PRESETS = {"paper": {**NUSCENES}, "paper:kitti": KITTI}

ROOM = Room(
    recipe,
    tasks=("detection3d",),
    presets=PRESETS,
    default={
        "data": "streets:train=200,val=60,reach=12",
        "reach": [-12.8, -12.8, -1.0, 12.8, 12.8, 5.0],
        "student": "stillroom/pillar-small-w0.25",
        "epochs": 15,
        "teacher_epochs": 15,
        "mode": "ratio",
        "proposals": 8,
        "feature_weight": 1.0,
        "logit_weight": 1.0,
    },
    expect="No gain here: with a few more steps -0.5 +- 2.4 points of mAP over the student alone (3 seeds), which may be chance; "
    "the paper sees 1 to 4 points on nuScenes, after far longer training.",
    build=build,
    space={"feature_weight": Float(0.02, 20.0, log=True), "logit_weight": Float(0.02, 20.0, log=True)},
)
