"""DistillBEV's experiment: a lidar detector, a camera detector alone, and the same taught on the map seen from above."""

from __future__ import annotations

from typing import Any

from stillroom.engine import Experiment, Lab, Networks, Report, Room, Teacher, Training
from stillroom.engine.study.space import Float
from stillroom.errors import InputError
from stillroom.methods.distillbev.distiller import DistillBEV, Imitation
from stillroom.methods.distillbev.loss import Weights
from stillroom.tasks.detection3d.data import Detection3dData
from stillroom.tasks.detection3d.networks import MapDetector
from stillroom.tasks.detection3d.task import NUSCENES

ARMS: dict[str, Imitation] = {"distillbev": "balanced", "even": "even", "mse": "mse"}
CAMERAS = Training(epochs=10, optimizer="adamw", lr=2e-3, weight_decay=0.01, schedule="onecycle", peak=0.4, clip_norm=5.0)
NETWORKS = Networks("stillroom/pillar-small,cell=0.5", "stillroom/bevdet-small,cell=1", teacher_epochs=12)


def build(
    student: MapDetector,
    teacher: Teacher,
    data: Detection3dData,
    *,
    foreground_weight: float = 6e-3,
    background_weight: float = 4e-2,
    mistaken_weight: float = 6e-2,
    attention_weight: float = 2.5e-3,
    channel_weight: float = 0.0,
    **options: Any,
) -> DistillBEV:
    """The distiller, for this recipe and for comparisons.

    Args:
        student, teacher, data: what learns, what teaches, on what.
        foreground_weight: w_fg, weight of cells under boxes.
        background_weight: w_bg, weight of the others.
        mistaken_weight: w_fp, weight of cells that the teacher mistakes for objects.
        attention_weight: w_att, weight of the maps' channel means.
        channel_weight: w_ch, weight of the channels' means over the map.
        options: those of `DistillBEV`.
    """
    weights = Weights(foreground_weight, background_weight, mistaken_weight, attention_weight, channel_weight)
    return DistillBEV(student, teacher, example=data.example_inputs(), weights=weights, **options)


def recipe(
    lab: Lab,
    data: Detection3dData,
    plan: Training = CAMERAS,
    networks: Networks = NETWORKS,
    arms: str = "distillbev",
    mse_scale: float = 1.0,
    **options: Any,
) -> Report:
    """Train (or load) a lidar detector, a camera detector alone, and the same with DistillBEV; compare them.

    Args:
        lab: where and how to run.
        data: frames with points, pictures and boxes.
        plan: how the detectors are trained.
        networks: which they are, of the same classes and range.
        arms: of the experiment, joined by +, the last is shipped: ``distillbev``, ``even`` (cells of a region count alike, no attention),
            ``mse`` (the mean squared distance of the last maps).
        mse_scale: weight of the arm mse.
        options: those of `build`.
    """
    names = [name.strip() for name in arms.split("+")]
    if len(set(names)) != len(names) or not set(names) <= set(ARMS):
        raise InputError("arms", arms, f"some of {', '.join(ARMS)}, each once, joined by +")

    def made(name: str, student: MapDetector, teacher: Teacher) -> DistillBEV:
        distiller = build(student, teacher, data, **options)
        if name == "mse":
            distiller.distill_scale = mse_scale
        return distiller if name == "distillbev" else distiller.plainer(ARMS[name])

    every = {name: lambda student, teacher, name=name: made(name, student, teacher) for name in names}
    return Experiment(lab, data, plan, networks).run("distillbev", every, ship=names[-1])


PAPER: dict[str, Any] = {
    **{name: value for name, value in NUSCENES.items() if name not in ("peak",)},
    "data": "nuscenes:data/nuscenes,version=v1.0-trainval",
    "teacher": "stillroom/centerpoint-pillar",
    "student": "stillroom/bevdepth",
    "reach": [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
    "image_size": 256,
    "look_back": True,
    "batch_size": 64,
    "epochs": 24,
    "lr": 2e-4,
    "schedule": "multistep",
    "milestones": [16, 22],
    "warmup_epochs": 0.2,
    "clip_norm": 5.0,
    "sample": "corner",
}
FORMER: dict[str, Any] = {
    **{name: value for name, value in PAPER.items() if name not in ("milestones", "look_back")},
    "student": "stillroom/bevformer",
    "teacher": "stillroom/centerpoint-pillar",
    "schedule": "cosine",
    "clip_norm": 35.0,
    "map_pairs": "neck",
    "attention": "teacher",
    "mistaken": "none",
    "sample": "center",
    "inherit_head": True,
    "foreground_weight": 5e-3,
    "background_weight": 4e-3,
    "attention_weight": 5e-4,
}
PRESETS = {"paper": PAPER, "paper:bevformer": FORMER}

ROOM = Room(
    recipe,
    tasks=("detection3d",),
    presets=PRESETS,
    default={
        "data": "streets:train=160,val=60,cameras=4,reach=14",
        "reach": [-16.0, -16.0, -1.0, 16.0, 16.0, 5.0],
        "distill_scale": 0.3,
        "epochs": 12,
    },
    expect="On made-up streets -1.4 +- 2.1 points of mAP against the student alone and -4.1 +- 2.8 against the plain distance of the maps "
    "(3 seeds of 300 steps), neither told from chance, with a teacher hardly better than the student; the paper sees +2.6 on nuScenes.",
    build=build,
    space={"distill_scale": Float(0.03, 3.0, log=True)},
)
