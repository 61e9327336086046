"""DINO's experiment: a backbone that learnt from images alone, beside the pixels and the same backbone before it learnt."""

from __future__ import annotations

from typing import Any

from torch import nn

from stillroom.engine import Experiment, Lab, Networks, Report, Room, Training
from stillroom.errors import InputError
from stillroom.methods.dino.distiller import DINO
from stillroom.methods.dino.views import Crops, Scale
from stillroom.modules.projectors import probing
from stillroom.tasks.representation import BACKBONE, DIGITS, IMAGENET, TASK, RepresentationData
from stillroom.tasks.representation.references import PIXELS, references


def build(
    student: nn.Module,
    teacher: Any,
    data: RepresentationData,
    *,
    global_scale: Scale = (0.4, 1.0),
    local_crops: int = 0,
    local_scale: Scale = (0.05, 0.4),
    local_size: int = 96,
    **options: Any,
) -> DINO:
    """The distiller for `data`, for this recipe and for methods that choose the second view's image.

    Args:
        student: the backbone.
        teacher: none: the student's average teaches.
        data: what it learns from.
        global_scale: smallest and largest share of the area in a global view.
        local_crops: local crops of each image besides; the student alone sees them.
        local_scale: smallest and largest share of the area in a local crop.
        local_size: height and width of a local crop, in pixels.
        options: those of `DINO`.

    Raises:
        InputError: local crops of a size that the backbone cannot read, or an option that cannot be used.
    """
    crops = Crops(global_scale, local_crops, local_scale, local_size)
    patch = getattr(getattr(student, "patch_embed", None), "patch_size", (1, 1))
    if local_crops and any(local_size % side for side in patch):
        raise InputError("local_size", local_size, f"a multiple of the backbone's patches ({patch[0]} pixels)")
    example = data.example_inputs()
    with probing(student, example):
        width = student(example).shape[1]
    return DINO(student, width=width, crops=crops, **options)


def recipe(lab: Lab, data: RepresentationData, plan: Training = TASK.plan, networks: Networks = BACKBONE, **options: Any) -> Report:
    """Train a backbone by self-distillation, without labels; compare its features with the pixels and with those it began with.

    Args:
        lab, data, plan, networks: where to run, on what, how to train, and which backbone; see `Room`.
        options: those of `build`.
    """
    experiment = Experiment(lab, data, plan, networks)

    def distiller(network: nn.Module, teacher: Any = None) -> DINO:
        return build(network, teacher, data, **options)

    experiment.rehearse(distiller)
    stages = references(experiment)
    stages["dino"] = experiment.trained("dino", distiller)
    return lab.report("dino", data, stages, baseline=PIXELS, ship="dino")


HEADS = {"prototypes": 256, "hidden": 256, "bottleneck": 64, "ema_momentum": 0.99, "final_weight_decay": 0.04}

PRESETS = {"paper": IMAGENET}

ROOM = Room(
    recipe,
    tasks=("representation",),
    presets=PRESETS,
    default={**DIGITS, **HEADS},
    expect="Features far above those of the random network (+3.5 +- 1.0 points of few-label k-NN, 3 seeds), but no better than the pixels "
    "themselves (-0.1 +- 0.5): 900 scans of digits are few, and easy.",
    build=build,
)
