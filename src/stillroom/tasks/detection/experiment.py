"""The experiment that detection papers run: teacher, student alone, the same student distilled in one way or several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stillroom.engine import Distiller, Lab, Report, Teacher, Trained, Training
from stillroom.errors import InputError
from stillroom.tasks.detection.cached import CACHE, cached_teacher, seen, try_cache
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.models import BuiltDetector, build_detector
from stillroom.tasks.detection.supervised import DetectionDistiller

# The default job: procedural scenes, 19 steps an epoch.
SCENES = Training(epochs=27, optimizer="adamw", lr=4e-3, weight_decay=1e-4, schedule="cosine", warmup_epochs=2.6, clip_norm=10.0)


def detector(spec: str, data: DetectionData, lab: Lab, argument: str) -> BuiltDetector:
    """The detector of a specification, for the data's classes.

    Raises:
        InputError: it cannot be built, or its weights know other classes than the data have.
    """
    built = build_detector(spec, num_classes=data.num_classes, trust_pickle=lab.options.trust_pickle, argument=argument)
    if built.classes is not None and built.classes != data.classes:
        raise InputError(
            argument, f"{spec}, of the classes {', '.join(built.classes[:5])}", f"those of the data: {', '.join(data.classes[:5])}"
        )
    return built


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
    with lab.shared():  # what is wrong with an argument is said now, not after hours of training a teacher
        cached = teacher.startswith(CACHE)
        rehearsed = cached_teacher(teacher, data) if cached else Teacher(detector(teacher, data, lab, "teacher").network)
        for make in distillers.values():
            try_cache(make(detector(student, data, lab, "student").network, rehearsed), data)
    taught = teacher_stage(lab, data, plan, teacher, teacher_epochs, teacher_lr)
    built = detector(student, data, lab, "student")
    arms = {"teacher": taught, "alone": lab.fit(DetectionDistiller(built.network), data, plan, name="alone", model=built.spec)}
    for name, make in distillers.items():
        built = detector(student, data, lab, "student")
        made = make(built.network, lab.teach(taught))
        arms[name] = lab.fit(made, seen(made, data), plan, name=name, model=built.spec)
    return lab.report(method, data, arms, ship=list(distillers)[-1])


def teacher_stage(lab: Lab, data: DetectionData, plan: Training, spec: str, epochs: int | None = None, lr: float | None = None) -> Trained:
    """The teacher, one for all seeds: read from a cache; scored when the specification brings weights; else trained on boxes first."""
    with lab.shared():
        if spec.startswith(CACHE):
            cached = cached_teacher(spec, data)
            return Trained("teacher", None, replace(cached.result, seed=lab.seed), cached.folder, teacher=cached)
        built = detector(spec, data, lab, "teacher")
        if built.weights is not None:
            return lab.evaluate(built.network, data, name="teacher", model=built.spec, around=DetectionDistiller)
        plan = plan if epochs is None else replace(plan, epochs=epochs)
        plan = plan if lr is None else replace(plan, lr=lr)
        return lab.fit(DetectionDistiller(built.network), data.for_teacher(), plan, name="teacher", model=built.spec)
