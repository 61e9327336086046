"""Segmentation as a task: its default job, the paper's setting, and what the Lab and the commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from stillroom.engine import Distiller, Networks, Training
from stillroom.engine.task import Built, Usual
from stillroom.tasks.images.cached import check_views, random_views
from stillroom.tasks.segmentation import loaded, pages
from stillroom.tasks.segmentation.data import SegmentationData
from stillroom.tasks.segmentation.metrics import METRICS
from stillroom.tasks.segmentation.models import TASK as NAME
from stillroom.tasks.segmentation.models import build_segmenter
from stillroom.tasks.segmentation.supervised import Supervised

SMALL = Training(epochs=20, optimizer="adamw", lr=4e-3, weight_decay=0.01, schedule="cosine", warmup_epochs=1.0)
SMALL_SGD = replace(SMALL, optimizer="sgd", lr=0.05)

# DeepLab's setting on Pascal VOC, with torchvision's network.
VOC: dict[str, Any] = {
    "data": "voc:data/VOCdevkit/VOC2012",
    "teacher": "torchvision/deeplabv3_resnet101",
    "student": "torchvision/deeplabv3_resnet50",
    "image_size": 513,
    "batch_size": 16,
    "augment": "crop",
    "epochs": 50,
    "optimizer": "sgd",
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "warmup_epochs": 0,
}


class Segmentation(Usual):
    """Pictures with the class of every pixel; see `engine.task.Task`."""

    name = NAME
    data = SegmentationData
    plan = SMALL
    sgd = SMALL_SGD
    networks = Networks("stillroom/unet16_3", "stillroom/unet8_3")
    presets: Mapping[str, Mapping[str, Any]] = {"paper": VOC}
    default: Mapping[str, Any] = {"data": "objects:train=600,val=100", "epochs": 10}
    kinds = ("objects", "masks", "voc", "coco")
    students = tuple(f"stillroom/unet{width}_{levels}" for width in (8, 16, 32) for levels in (3, 4))
    metric_formats = METRICS
    sections = staticmethod(pages.segmentation_sections)
    ship = staticmethod(loaded.ship)
    views = staticmethod(random_views)
    check_cache = staticmethod(check_views)
    load = staticmethod(loaded.load)

    def build(self, spec: str, data: SegmentationData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The network of a specification, for the data's classes.

        Raises:
            InputError: it cannot be built, or its weights know other classes than the data have.
        """
        built = build_segmenter(spec, num_classes=data.num_classes, trust_pickle=trust_pickle, argument=argument)
        return built.of_classes(data.classes, spec, argument)

    def supervised(self, network: nn.Module) -> Distiller:
        """Cross-entropy with the masks."""
        return Supervised(network)


TASK = Segmentation()
SegmentationData.task = TASK
