"""BCKD's experiment: teacher, student alone, the baselines that are asked for, and the student with BCKD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from stillroom.engine import Distiller, Lab, Report, Teacher, Training
from stillroom.errors import InputError
from stillroom.methods.bckd.distiller import BCKD, LD, SoftmaxKD
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.detector import DenseDetector
from stillroom.tasks.detection.experiment import COCO, SCENES, detection_arms

Baseline = Literal["softmax", "softmax-scaled", "ld"]
_PAPER_CLASSES = 80


def build(student: DenseDetector, teacher: Teacher, data: DetectionData, **options: Any) -> BCKD:
    """The distiller for `data`, for this recipe and those that host other methods; the options are those of `BCKD`."""
    return BCKD(student, teacher, **options)


def recipe(
    lab: Lab,
    data: DetectionData,
    plan: Training = SCENES,
    teacher: str = "stillroom/gfl_32",
    student: str = "stillroom/gfl_24",
    teacher_epochs: int | None = 6,
    teacher_lr: float | None = 3e-3,
    baselines: list[Baseline] | None = None,
    **options: Any,
) -> Report:
    """Train (or load) a teacher, a student alone, and the same student with BCKD; compare them.

    Args:
        lab: where and how to run.
        data: the images and their boxes.
        plan: how the detectors are trained.
        teacher: detector, optionally with weights after ``@``; without weights it is trained first. Or a run's folder.
        student: detector, as above, with the teacher's strides and positions.
        teacher_epochs: epochs for a teacher that has to be trained, by default for the scenes' larger set.
        teacher_lr: its learning rate.
        baselines: other arms: softmax (class logits under a softmax, weight 10), softmax-scaled (that weight times C / 80), ld
            (localisation distillation, for GFL).
        options: those of `BCKD`.
    """
    known: dict[str, Callable[[DenseDetector, Teacher], Distiller]] = {
        "softmax": lambda fresh, taught: SoftmaxKD(fresh, taught),
        "softmax-scaled": lambda fresh, taught: SoftmaxKD(fresh, taught, kd_weight=10 * data.num_classes / _PAPER_CLASSES),
        "ld": lambda fresh, taught: LD(fresh, taught),
    }
    wanted = baselines or []
    if len(set(wanted)) != len(wanted) or not set(wanted) <= set(known):
        raise InputError("baselines", list(wanted), f"some of {', '.join(known)}, each once")

    def distiller(fresh: DenseDetector, taught: Teacher) -> BCKD:
        return build(fresh, taught, data, **options)

    arms: dict[str, Callable[[DenseDetector, Teacher], Distiller]] = {name: known[name] for name in wanted}
    arms["bckd"] = distiller
    return detection_arms("bckd", lab, data, plan, teacher, student, arms, teacher_epochs=teacher_epochs, teacher_lr=teacher_lr)


PRESETS = {"paper": COCO}
