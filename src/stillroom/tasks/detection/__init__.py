"""Detection of objects: boxes, detectors of three kinds, their targets, data, metrics, and the settings that most papers share."""

from stillroom.tasks.detection.data import DetectionBatch, DetectionData
from stillroom.tasks.detection.detector import DenseDetector, Detector
from stillroom.tasks.detection.loaded import LoadedDetector, load
from stillroom.tasks.detection.models import build_detector
from stillroom.tasks.detection.supervised import DetectionDistiller
from stillroom.tasks.detection.task import COCO, SCENES, TASK

__all__ = [
    "COCO",
    "SCENES",
    "TASK",
    "DenseDetector",
    "DetectionBatch",
    "DetectionData",
    "DetectionDistiller",
    "Detector",
    "LoadedDetector",
    "build_detector",
    "load",
]
