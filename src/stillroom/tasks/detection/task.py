"""Detection as a task: its default job, the papers' setting, and what the Lab and the commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.engine import Distiller, Networks, Training
from stillroom.engine.cache import CachedTeacher
from stillroom.engine.task import Built, Usual
from stillroom.errors import InputError
from stillroom.tasks.detection import loaded, pages
from stillroom.tasks.detection.by_engine import BY_ENGINE
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.detr_models import deliver
from stillroom.tasks.detection.file_detector import FileDetector
from stillroom.tasks.detection.models import build_detector
from stillroom.tasks.detection.small import SMALL
from stillroom.tasks.detection.supervised import DetectionDistiller
from stillroom.tasks.images.arguments import renormalisation
from stillroom.tasks.images.file_networks import of_file

# The default job: procedural scenes, 19 steps an epoch.
_BACKBONES = ("lcnet_050", "mobilenetv3_small_100", "mobilenetv3_large_100", "resnet18", "resnet34", "resnet50")  # of students
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


class Detection(Usual):
    """Images with boxes; see `engine.task.Task`."""

    name = "detection"
    data = DetectionData
    plan = SCENES
    sgd = SCENES_SGD
    networks = Networks("stillroom/gfl_32", "stillroom/gfl_24", teacher_epochs=6, teacher_lr=3e-3)
    presets: Mapping[str, Mapping[str, Any]] = {"paper": COCO}
    kinds = ("scenes", "coco", "voc", "yolo")
    students = (
        *(f"stillroom/{name}" for name in SMALL),
        *(f"{head}/{backbone}" for backbone in _BACKBONES for head in ("gfl", "retinanet", "fcos")),
    )
    exact = ("boxes",)  # half precision would place a box in a large image to the pixel, or worse
    by_engine = BY_ENGINE
    sections = staticmethod(pages.detection_sections)
    load = staticmethod(loaded.load)

    def build(self, spec: str, data: DetectionData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The detector of a specification, for the data's classes.

        Raises:
            InputError: it cannot be built, or its weights know other classes than the data have.
        """
        built = build_detector(spec, num_classes=data.num_classes, trust_pickle=trust_pickle, argument=argument)
        if isinstance(built.network, FileDetector) and data.renormalise is None:
            read = of_file(built.network.network).statistics
            if read not in (None, (data.mean, data.std)):
                built = replace(built, renormalise=renormalisation((data.mean, data.std), *read))
        return built.of_classes(data.classes, spec, argument)

    def supervised(self, network: Any) -> Distiller:
        """The detector's own losses."""
        return DetectionDistiller(network)

    def views(self, data: DetectionData, asked: int | None) -> int:
        """Two, an image and its mirror image, or one without mirroring.

        Raises:
            InputError: another number was asked for.
        """
        count, why = (2, "an image and its mirror image") if data.augment == "mirror" else (1, "nothing about an image is random")
        if asked not in (None, count):
            raise InputError("views", asked, f"{count}: {why}")
        return count

    def check_cache(self, teacher: CachedTeacher, data: DetectionData) -> None:
        """Raises InputError unless it holds a detector's logits and boxes."""
        if not set(teacher.answer) >= {"logits", "boxes"}:
            raise InputError("teacher", f"{teacher.folder}, a cache of {', '.join(teacher.answer)}", "one of a detector's logits and boxes")

    def deliver(self, folder: Path, network: nn.Module, model: str, data: DetectionData) -> None:
        """For students of transformers a folder that transformers itself loads."""
        deliver(folder, network, model, data.classes)


TASK = Detection()
DetectionData.task = TASK
