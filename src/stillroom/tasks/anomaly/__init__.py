"""Anomaly detection: a student learns to see good pictures as its teacher does; where it fails to, something is not normal."""

from stillroom.tasks.anomaly.data import AnomalyBatch, AnomalyData
from stillroom.tasks.anomaly.detector import Detectors, FeatureStudent, Scored
from stillroom.tasks.anomaly.experiment import train_detectors
from stillroom.tasks.anomaly.loaded import Inspection, LoadedDetectors, load
from stillroom.tasks.anomaly.maps import MapOptions, anomaly_map
from stillroom.tasks.anomaly.scores import aupro, detection, normal_threshold
from stillroom.tasks.anomaly.task import TASK
from stillroom.tasks.anomaly.teachers import Extractor, TaughtBy, build_teacher

__all__ = [
    "TASK",
    "AnomalyBatch",
    "AnomalyData",
    "Detectors",
    "Extractor",
    "FeatureStudent",
    "Inspection",
    "LoadedDetectors",
    "MapOptions",
    "Scored",
    "TaughtBy",
    "anomaly_map",
    "aupro",
    "build_teacher",
    "detection",
    "load",
    "normal_threshold",
    "train_detectors",
]
