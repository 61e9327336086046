"""Classification of images: data, networks, metrics, and the experiment that most papers run on them."""

from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.classification.experiment import (
    CIFAR100,
    DIGITS,
    IMAGENET,
    TINY_IMAGENET,
    distilled_stage,
    network,
    rehearse,
    supervised_stage,
    teacher_stage,
    three_arms,
)
from stillroom.tasks.classification.layers import middle_layer, pooled_layer
from stillroom.tasks.classification.loaded import Loaded, load
from stillroom.tasks.classification.supervised import Supervised
from stillroom.tasks.classification.views import ViewBatch
from stillroom.tasks.images.batches import Batch
from stillroom.tasks.images.classifiers import build_classifier

__all__ = [
    "CIFAR100",
    "DIGITS",
    "IMAGENET",
    "TINY_IMAGENET",
    "Batch",
    "ImageData",
    "Loaded",
    "Supervised",
    "ViewBatch",
    "build_classifier",
    "distilled_stage",
    "load",
    "middle_layer",
    "network",
    "pooled_layer",
    "rehearse",
    "supervised_stage",
    "teacher_stage",
    "three_arms",
]
