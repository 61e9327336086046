"""Representation learning: images without labels, views of them, scores of features, and backbones that other runs start from."""

from stillroom.tasks.images.views import ViewBatch
from stillroom.tasks.representation.data import RepresentationData
from stillroom.tasks.representation.loaded import LoadedBackbone, load
from stillroom.tasks.representation.metrics import Embedded, weighted_knn
from stillroom.tasks.representation.pages import Pair, pairs_section
from stillroom.tasks.representation.task import BACKBONE, DIGITS, IMAGENET, TASK
from stillroom.tasks.representation.views import FIRST, SECOND, Look, crop_view, warp_view

__all__ = [
    "BACKBONE",
    "DIGITS",
    "FIRST",
    "IMAGENET",
    "SECOND",
    "TASK",
    "Embedded",
    "LoadedBackbone",
    "Look",
    "Pair",
    "RepresentationData",
    "ViewBatch",
    "crop_view",
    "load",
    "pairs_section",
    "warp_view",
    "weighted_knn",
]
