"""The experiment that detection papers run: teacher, student alone, the same student distilled in one way or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stillroom.engine import Distiller, Lab, Report, Teacher, Trained, Training
from stillroom.engine.task import Built
from stillroom.errors import InputError
from stillroom.tasks.detection.cached import CACHE, EXACT, cached_teacher, seen, try_cache, views_of
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.models import build_detector
from stillroom.tasks.detection.supervised import DetectionDistiller
from stillroom.tasks.experiments import Experiment

# The default job: procedural scenes, 19 steps an epoch.
SCENES = Training(epochs=27, optimizer="adamw", lr=4e-3, weight_decay=1e-4, schedule="cosine", warmup_epochs=2.6, clip_norm=10.0)
SCENES_SGD = replace(SCENES, optimizer="sgd", lr=0.06)

# What most papers on dense detectors train with: GFL's schedule on COCO, once for students and twice for the teacher.
COCO: dict[str, Any] = {
    "data": (
        "coco:data/coco/train2017,data/coco/annotations/instances_train2017.json,"
        "val_images=data/coco/val2017,val_annotations=data/coco/annotations/instances_val2017.json"
    ),
    "teacher": "gfl/resnet101,backbone=pretrained",
    "student": "gfl/resnet50,backbone=pretrained",
    "batch_size": 16,
    "image_size": 800,
    "max_size": 1333,
    "teacher_scales": [480, 800],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "epochs": 12,
    "teacher_epochs": 24,
    "teacher_lr": 0.01,
    "optimizer": "sgd",
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "multistep",
    "milestones": [2 / 3, 11 / 12],  # after 8 and 11 epochs of 12; the teacher's after 16 and 22 of 24
    "warmup_epochs": 500 / 7329,  # 500 steps of 16 of the 117 266 images with a box
    "clip_norm": None,
}


def detector(spec: str, data: DetectionData, lab: Lab, argument: str) -> Built:
    """The detector of a specification, for the data's classes.

    Raises:
        InputError: it cannot be built, or its weights know other classes than the data have.
    """
    built = build_detector(spec, num_classes=data.num_classes, trust_pickle=lab.options.trust_pickle, argument=argument)
    return built.of_classes(data.classes, spec, argument)


def rehearse(lab: Lab, data: DetectionData, teacher: str, student: str, distiller: Callable[[Any, Teacher], object]) -> None:
    """Builds everything once and throws it away: what is wrong with an argument is said now, not after hours of training a teacher."""
    with lab.shared():
        cached = teacher.startswith(CACHE)
        taught = cached_teacher(teacher, data) if cached else Teacher(detector(teacher, data, lab, "teacher").network)
        made = distiller(detector(student, data, lab, "student").network, taught)
        if isinstance(made, Distiller):
            try_cache(made, data)


def teacher_stage(lab: Lab, data: DetectionData, plan: Training, spec: str, epochs: int | None = None, lr: float | None = None) -> Trained:
    """The teacher, one for all seeds: read from a cache; scored when the specification brings weights; else trained on boxes first."""
    with lab.shared():
        if spec.startswith(CACHE):
            cached = cached_teacher(spec, data)
            return Trained("teacher", None, replace(cached.result, seed=lab.seed), cached.folder, teacher=cached)
        built = detector(spec, data, lab, "teacher")
        if built.weights is not None:
            return lab.evaluate(
                built.network, data, name="teacher", model=built.spec, renormalise=data.renormalise, around=DetectionDistiller
            )
        if data.renormalise is not None:
            raise InputError("teacher_mean", spec, "a teacher with weights: one that is trained here has the student's statistics")
        if epochs is not None and epochs < 1:
            raise InputError("teacher_epochs", epochs, "a number of at least 1")
        plan = plan if epochs is None else replace(plan, epochs=epochs)
        plan = plan if lr is None else replace(plan, lr=lr)
        return lab.fit(DetectionDistiller(built.network), data.for_teacher(), plan, name="teacher", model=built.spec)


def supervised_stage(lab: Lab, data: DetectionData, plan: Training, spec: str) -> Trained:
    """The student alone: trained on boxes only."""
    built = detector(spec, data, lab, "student")
    return lab.fit(DetectionDistiller(built.network), data, plan, name="alone", model=built.spec)


def distilled_stage(lab: Lab, data: DetectionData, plan: Training, spec: str, name: str, distiller: Callable[[Any], Distiller]) -> Trained:
    """The student, from the same initial weights as alone, under the distiller that is made around it."""
    built = detector(spec, data, lab, "student")
    made = distiller(built.network)
    made.plan = plan
    return lab.fit(made, seen(made, data), plan, name=name, model=built.spec)


def detection_arms(
    method: str,
    lab: Lab,
    data: DetectionData,
    plan: Training,
    teacher: str,
    student: str,
    distillers: Mapping[str, Callable[[Any, Teacher], Distiller]],
    *,
    teacher_epochs: int | None = None,
    teacher_lr: float | None = None,
) -> Report:
    """Teacher, student alone, and the same student (from the same initial weights) under each distiller; the last one is shipped.

    Args:
        method: its name in the catalog.
        lab, data, plan: where, on what and how to train.
        teacher, student: specifications of the detectors; the teacher's may be ``cache:FOLDER``.
        distillers: by the arm's name: makes a distiller from a fresh student and the frozen teacher.
        teacher_epochs, teacher_lr: for a teacher that has to be trained, when other than the plan's.
    """
    for make in distillers.values():
        rehearse(lab, data, teacher, student, make)
    taught = teacher_stage(lab, data, plan, teacher, teacher_epochs, teacher_lr)
    arms = {"teacher": taught, "alone": supervised_stage(lab, data, plan, student)}
    for name, make in distillers.items():
        arms[name] = distilled_stage(lab, data, plan, student, name, lambda fresh, make=make: make(fresh, lab.teach(taught)))  # type: ignore[misc]
    return lab.report(method, data, arms, ship=list(distillers)[-1])


EXPERIMENT = Experiment(
    data=DetectionData,
    plan=SCENES,
    sgd=SCENES_SGD,
    teacher="stillroom/gfl_32",
    student="stillroom/gfl_24",
    teacher_epochs=6,
    presets={"paper": COCO},
    kinds=("scenes", "coco", "voc"),
    views=views_of,
    exact=EXACT,
    network=detector,
    rehearse=rehearse,
    teacher_stage=teacher_stage,
    supervised_stage=supervised_stage,
    distilled_stage=distilled_stage,
)
