"""Classification of images: data, networks, metrics, and the settings that most papers share."""

from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.classification.loaded import Loaded, load
from stillroom.tasks.classification.supervised import Supervised
from stillroom.tasks.classification.task import CIFAR100, CONVNETS, DIGITS, IMAGENET, PHOTOS, SHAPES, TASK, TINY_IMAGENET
from stillroom.tasks.images.batches import Batch
from stillroom.tasks.images.classifiers import build_classifier
from stillroom.tasks.images.layers import middle_layer, pooled_layer
from stillroom.tasks.images.views import ViewBatch

__all__ = [
    "CIFAR100",
    "CONVNETS",
    "DIGITS",
    "IMAGENET",
    "PHOTOS",
    "SHAPES",
    "TASK",
    "TINY_IMAGENET",
    "Batch",
    "ImageData",
    "Loaded",
    "Supervised",
    "ViewBatch",
    "build_classifier",
    "load",
    "middle_layer",
    "pooled_layer",
]
