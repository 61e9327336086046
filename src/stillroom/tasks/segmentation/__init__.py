"""Semantic segmentation: the class of every pixel of a picture, of fixed classes or of those that words name."""

from stillroom.tasks.segmentation.data import SegmentationData
from stillroom.tasks.segmentation.loaded import LoadedSegmenter, load
from stillroom.tasks.segmentation.masked import SegmentationBatch, WholeBatch
from stillroom.tasks.segmentation.models import build_segmenter
from stillroom.tasks.segmentation.supervised import SegmentationDistiller, Supervised, predicted_classes
from stillroom.tasks.segmentation.task import SMALL, TASK
from stillroom.tasks.segmentation.unet import UNet
from stillroom.tasks.segmentation.vocabulary import Background, OpenVocabulary, Vocabulary

__all__ = [
    "SMALL",
    "TASK",
    "Background",
    "LoadedSegmenter",
    "OpenVocabulary",
    "SegmentationBatch",
    "SegmentationData",
    "SegmentationDistiller",
    "Supervised",
    "UNet",
    "Vocabulary",
    "WholeBatch",
    "build_segmenter",
    "load",
    "predicted_classes",
]
