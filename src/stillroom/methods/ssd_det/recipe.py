"""SSD-Det's experiment: a detector trained on inaccurate boxes as they are, and the same one trained on boxes that it refines meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from stillroom.engine import Distiller, Experiment, Lab, Networks, Report, Room, Trained, Training
from stillroom.engine.run.stage import digest
from stillroom.errors import InputError, at_least
from stillroom.methods.ssd_det.distiller import Plain, SSDDet, refine_all
from stillroom.methods.ssd_det.noise import SEED, noised
from stillroom.methods.ssd_det.pages import FORMATS, box_section, figures, told
from stillroom.tasks.detection import COCO, DetectionData

Baseline = Literal["clean", "regressor", "mil", "spsd", "retrained"]

# The default job: 300 scenes, 37 steps of 8 an epoch.
SMALL = Training(epochs=12, optimizer="adamw", lr=4e-3, weight_decay=1e-4, schedule="cosine", warmup_epochs=1, clip_norm=10.0)
STUDENT = "stillroom/faster-rcnn_24"
# What these arms do without.
_WITHOUT: dict[str, dict[str, bool]] = {"regressor": {"mil": False}, "mil": {"spsd": False, "sisd": False}, "spsd": {"sisd": False}}


def recipe(
    lab: Lab,
    data: DetectionData,
    plan: Training = SMALL,
    student: str = STUDENT,
    noise: float = 0.0,
    noise_seed: int = SEED,
    baselines: list[Baseline] | None = None,
    **options: Any,
) -> Report:
    """Train a detector on inaccurate boxes as they are, and on boxes that it refines while it learns; compare them.

    Args:
        lab, data, plan: where to run, on what, and how to train; see `Room`.
        student: network; a Faster R-CNN: stillroom/faster-rcnn_24 or _32, torchvision/fasterrcnn_resnet50_fpn, or your own.
        noise: of the training boxes, drawn once: each is moved and scaled by up to this share of its sides; 0 leaves them as they are.
            Where there is noise, the boxes before it are the true ones that the refined ones are measured with.
        noise_seed: of the noise.
        baselines: other arms: clean (the detector on the boxes before the noise), regressor (SPSD's first step alone), mil (two stages
            without SPSD and SISD), spsd (with SPSD, without SISD), retrained (the detector from scratch on the refined boxes).
        options: those of `Refiner`.
    """
    wanted, known = baselines or [], ("clean", *_WITHOUT, "retrained")
    if len(set(wanted)) != len(wanted) or not set(wanted) <= set(known):
        raise InputError("baselines", list(wanted), f"some of {', '.join(known)}, each once")
    if "clean" in wanted and not noise:
        raise InputError("baselines", "clean", "noise above 0: the true boxes are not known without")
    if not 0 <= noise < 1:
        raise InputError("noise", noise, "a number from 0 and below 1: the share of its sides that a box is moved and scaled by at most")
    at_least("noise_seed", noise_seed, 0)
    clean, networks = data, Networks(student=student)
    true_N4 = np.full((sum(map(len, data.trained.boxes)), 4), np.nan, np.float32)
    if noise:
        data = clean.derive(("noisy boxes", noise, noise_seed), train=noised(clean.trained, noise, noise_seed))
        own_N = np.concatenate(clean.trained.crowd) == 0
        true_N4[own_N] = np.concatenate(clean.trained.boxes)[own_N]
    experiment = Experiment(lab, data, plan, networks)

    def arm(**without: bool) -> Callable[..., SSDDet]:
        def make(fresh: Any, _: Any = None) -> SSDDet:
            return SSDDet(fresh, **{**options, **without})

        return make

    def ours(fresh: Any, _: Any = None) -> SSDDet:
        return SSDDet(fresh, **options)

    arms = {name: arm(**_WITHOUT[name]) for name in wanted if name in _WITHOUT} | {"ssd-det": ours}
    experiment.rehearse(lambda fresh, _: Plain(fresh), *arms.values())
    stages: dict[str, Trained] = {}
    if "clean" in wanted:
        stages["clean"] = Experiment(lab, clean, plan, networks).trained("clean", Plain)
    stages["alone"] = experiment.trained("alone", Plain)
    stages["alone"].result.metrics.update(figures(np.concatenate(data.trained.boxes), true_N4))
    for name, make in arms.items():
        stages[name], found = trained_refiner(experiment, name, make, true_N4)
    if "retrained" in wanted:
        counts = np.cumsum([len(boxes) for boxes in data.trained.boxes])[:-1]
        better = replace(data.trained, boxes=np.split(found["boxes"], counts))
        again = data.derive(("refined boxes", _digest(found)), train=better)
        stages["retrained"] = Experiment(lab, again, plan, networks).trained("retrained", Plain)
    report = lab.report("ssd-det", data, stages, ship="ssd-det")
    report.metric_formats |= FORMATS
    if lab.seed == lab.options.seed:
        report.method_sections = [box_section(data, found, true_N4)]
        report.notes += told(data, found, true_N4)
    return report


def trained_refiner(
    experiment: Experiment, name: str, make: Callable[[Any], Distiller], true_N4: np.ndarray
) -> tuple[Trained, dict[str, np.ndarray]]:
    """A stage of that name, and the boxes that it makes of the training images' (`distiller.refine_all`).

    Args:
        make: the distiller around a fresh student.
        true_N4: the training images' true boxes, NaN where nobody knows: the refined ones' figures are among the stage's metrics then.
    """
    lab, made = experiment.lab, []

    def kept(fresh: Any) -> Distiller:
        made.append(make(fresh))
        return made[-1]

    trained = experiment.trained(name, kept)
    distiller, data = made[-1], experiment.data
    assert isinstance(distiller, SSDDet)
    assert isinstance(data, DetectionData)

    def compute() -> dict[str, torch.Tensor]:
        return {column: torch.from_numpy(rows) for column, rows in refine_all(distiller, data, lab.device).items()}

    key = f"{data.fingerprint} {digest(distiller.state_dict())}"
    found = {column: rows.numpy() for column, rows in lab.remember(f"{name}/refined", key, compute).items()}
    trained.result.metrics.update(figures(found["boxes"], true_N4, found["stage1"]))
    return trained, found


def _digest(found: dict[str, np.ndarray]) -> str:
    return digest({name: torch.from_numpy(rows) for name, rows in found.items()})


# Section "Training and evaluation protocol" of the specification.
PAPER: dict[str, Any] = {
    **{name: value for name, value in COCO.items() if not name.startswith("teacher")},
    "student": "torchvision/fasterrcnn_resnet50_fpn,backbone=pretrained",
    "noise": 0.4,
    "lr": 0.02,
    "clip_norm": 10.0,
    "prior": 0.01,
    "hidden_std": 0.01,
}

PAPER_VOC: dict[str, Any] = {
    **PAPER,
    "data": "voc:data/VOCdevkit/VOC2007,train=trainval,val=test",
    "batch_size": 4,
    "lr": 0.002,
    "image_size": 600,
    "max_size": 1000,
    "warmup_epochs": 500 / 1252,  # 500 steps of 4 of 5 011 images
}

PRESETS = {"paper": PAPER, "paper:voc": PAPER_VOC}

ROOM = Room(
    recipe,
    tasks=("detection",),
    presets=PRESETS,
    default={
        "data": "scenes:size=64,train=300,val=200,teacher=300",
        "batch_size": 8,
        "noise": 0.4,
        "ratios": [1.0, 1.25, 0.8],
        "negative_boxes": 60,
    },
    expect="On 600 such scenes the training boxes' IoU with the true ones gained +8.1 +- 0.4 points over three seeds, and the detector "
    "+3.0 +- 0.6 AP over the same on the boxes as they are.",
    reason="has no teacher: it refines the boxes that it learns from",
)
