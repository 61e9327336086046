"""Detection in three dimensions as a task: its default job, the papers' setting, and what the Lab and the commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.engine import Distiller, Networks, Report, Training
from stillroom.engine.report.results import Metric, Section
from stillroom.engine.task import Built, FindLayer
from stillroom.tasks.detection3d.data import Detection3dData
from stillroom.tasks.detection3d.loaded import LoadedDetector3d, load, ship
from stillroom.tasks.detection3d.metrics import METRICS
from stillroom.tasks.detection3d.models import TASK as NAME
from stillroom.tasks.detection3d.models import Wanted, build_detector
from stillroom.tasks.detection3d.pages import detection3d_sections
from stillroom.tasks.detection3d.supervised import Detection3dDistiller

# The default job: made-up streets, 37 steps an epoch.
STREETS = Training(epochs=10, optimizer="adamw", lr=3e-3, weight_decay=0.01, schedule="onecycle", peak=0.4, clip_norm=35.0)
STREETS_SGD = replace(STREETS, optimizer="sgd", lr=0.03)

# CenterPoint's setting on nuScenes.
NUSCENES: dict[str, Any] = {
    "data": "nuscenes:data/nuscenes,version=v1.0-trainval,cameras=0",
    "teacher": "stillroom/centerpoint-voxel",
    "student": "stillroom/centerpoint-voxel,bev=0.5,head=0.5",
    "batch_size": 32,
    "resample": True,
    "epochs": 20,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.01,
    "schedule": "onecycle",
    "peak": 0.4,
    "clip_norm": 35.0,
}


class Detection3d:
    """Frames with boxes in metres; see `engine.task.Task`."""

    name = NAME
    data: type[Any] = Detection3dData
    plan = STREETS
    sgd = STREETS_SGD
    networks = Networks("stillroom/pillar-small", "stillroom/pillar-small-w0.25,cell=0.8", teacher_epochs=15)
    presets: Mapping[str, Mapping[str, Any]] = {"paper": NUSCENES}
    default: Mapping[str, Any] = {}
    kinds: tuple[str, ...] = ("streets", "nuscenes", "kitti", "points")
    layers: Mapping[str, FindLayer] = {}
    exact: tuple[str, ...] = ()
    metric_formats: Mapping[str, Metric] = METRICS

    def build(self, spec: str, data: Detection3dData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The detector of a specification, for the data's classes, columns and range.

        Raises:
            InputError: it cannot be built, or its weights know other classes than the data have.
        """
        built = build_detector(spec, Wanted.of(data.describe()), trust_pickle=trust_pickle, argument=argument)
        return built.of_classes(data.classes, spec, argument)

    def supervised(self, network: Any) -> Distiller:
        """The detector's own losses."""
        return Detection3dDistiller(network)

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """Nothing: boxes of two models are compared by their AP."""
        return {}

    def sections(self, report: Report, data: Detection3dData) -> list[Section]:
        """AP of each class, frames from above and in the cameras with true and found boxes, and the data."""
        return detection3d_sections(report, data)

    def ship(self, folder: Path, network: Any, model: str, data: Detection3dData) -> None:
        """`student.json`."""
        ship(folder, network, model, data)

    def load(self, run: Path, *, trust_pickle: bool) -> LoadedDetector3d:
        """The detector that a run shipped."""
        return load(run, trust_pickle=trust_pickle)


TASK = Detection3d()
Detection3dData.task = TASK  # type: ignore[assignment]  # no cache
