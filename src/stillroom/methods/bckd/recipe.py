"""BCKD's experiment: teacher, student alone, the baselines that are asked for, and the student with BCKD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from stillroom.engine import Distiller, Experiment, Lab, Networks, Report, Room, Teacher, Training
from stillroom.errors import InputError
from stillroom.methods.bckd.distiller import BCKD, LD, SoftmaxKD
from stillroom.tasks.detection import COCO, SCENES, TASK, DenseDetector, DetectionData

Baseline = Literal["softmax", "softmax-scaled", "ld"]
_PAPER_CLASSES = 80


def build(student: DenseDetector, teacher: Teacher, data: DetectionData, **options: Any) -> BCKD:
    """The distiller for `data`, for this recipe and those that host other methods; the options are those of `BCKD`."""
    return BCKD(student, teacher, **options)


def recipe(
    lab: Lab,
    data: DetectionData,
    plan: Training = SCENES,
    networks: Networks = TASK.networks,
    baselines: list[Baseline] | None = None,
    **options: Any,
) -> Report:
    """Train (or load) a teacher, a student alone, and the same student with BCKD; compare them.

    Args:
        lab: where and how to run.
        data: the images and their boxes.
        plan: how the detectors are trained.
        networks: which they are; the student has the teacher's strides and positions.
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
    return Experiment(lab, data, plan, networks).run("bckd", arms)


PRESETS = {"paper": COCO}

ROOM = Room(
    recipe,
    tasks=("detection",),
    presets=PRESETS,
    expect="On these scenes BCKD gave +3.4 +- 1.9 AP over no distillation, which three seeds do not tell from chance; the paper "
    "sees +2.8 to +3.1 on COCO.",
    build=build,
)
