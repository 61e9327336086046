"""BCKD's experiment: teacher, student alone, the baselines that are asked for, and the student with BCKD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from stillroom.engine import Distiller, Lab, Report, Teacher, Training
from stillroom.errors import InputError
from stillroom.methods.bckd.distiller import BCKD, LD, SoftmaxKD
from stillroom.tasks.detection.boxes import IoUKind
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.detector import DenseDetector
from stillroom.tasks.detection.experiment import SCENES, detection_arms

Baseline = Literal["softmax", "softmax-scaled", "ld"]
_PAPER_CLASSES = 80


def build(
    student: DenseDetector,
    teacher: Teacher,
    data: DetectionData,
    *,
    cls_weight: float = 1.0,
    loc_weight: float = 4.0,
    beta: float = 1.0,
    iou_kind: IoUKind = "giou",
    detach_gap: bool = False,
    skip_levels_without_positives: bool = True,
) -> BCKD:
    """The distiller for `data`, for recipes that host other methods."""
    return BCKD(
        student,
        teacher,
        cls_weight=cls_weight,
        loc_weight=loc_weight,
        beta=beta,
        iou_kind=iou_kind,
        detach_gap=detach_gap,
        skip_levels_without_positives=skip_levels_without_positives,
    )


def recipe(
    lab: Lab,
    data: DetectionData,
    plan: Training = SCENES,
    teacher: str = "stillroom/gfl_32",
    student: str = "stillroom/gfl_24",
    teacher_epochs: int | None = 6,
    teacher_lr: float | None = 3e-3,
    baselines: list[Baseline] | None = None,
    cls_weight: float = 1.0,
    loc_weight: float = 4.0,
    beta: float = 1.0,
    iou_kind: IoUKind = "giou",
    detach_gap: bool = False,
    skip_levels_without_positives: bool = True,
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
        cls_weight: alpha1, of the classification term.
        loc_weight: alpha2, of the localisation term.
        beta: exponent of the gap in the classification term.
        iou_kind: overlap of the localisation term: giou (the release), iou (the paper), diou or ciou.
        detach_gap: let no gradient through the gap.
        skip_levels_without_positives: leave out levels of a batch in which nothing is, as the release does.
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
        return build(
            fresh,
            taught,
            data,
            cls_weight=cls_weight,
            loc_weight=loc_weight,
            beta=beta,
            iou_kind=iou_kind,
            detach_gap=detach_gap,
            skip_levels_without_positives=skip_levels_without_positives,
        )

    arms: dict[str, Callable[[DenseDetector, Teacher], Distiller]] = {name: known[name] for name in wanted}
    arms["bckd"] = distiller
    return detection_arms("bckd", lab, data, plan, teacher, student, arms, teacher_epochs=teacher_epochs, teacher_lr=teacher_lr)


PAPER: dict[str, Any] = {
    "data": "coco:data/coco/train2017,data/coco/annotations/instances_train2017.json",
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
    "milestones": [8, 11],
    "clip_norm": None,
}

PRESETS = {"paper": PAPER}
