"""Detection in three dimensions as a task: its default job, the papers' setting, and what the Lab and the commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillroom.engine import Distiller, Networks, Training
from stillroom.engine.card import write_card
from stillroom.engine.task import Built, Usual
from stillroom.tasks.detection3d import loaded, pages
from stillroom.tasks.detection3d.data import Detection3dData
from stillroom.tasks.detection3d.metrics import METRICS
from stillroom.tasks.detection3d.models import TASK as NAME
from stillroom.tasks.detection3d.models import Wanted, build_detector
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


class Detection3d(Usual):
    """Frames with boxes in metres; see `engine.task.Task`."""

    name = NAME
    data = Detection3dData
    plan = STREETS
    sgd = STREETS_SGD
    networks = Networks("stillroom/pillar-small", "stillroom/pillar-small-w0.25,cell=0.8", teacher_epochs=15)
    presets: Mapping[str, Mapping[str, Any]] = {"paper": NUSCENES}
    kinds = ("streets", "nuscenes", "kitti", "points")
    metric_formats = METRICS
    sections = staticmethod(pages.detection3d_sections)
    load = staticmethod(loaded.load)

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

    def ship(self, folder: Path, network: Any, model: str, data: Any) -> None:
        """`student.json`, of what the data describe, and of what names boxes by words."""
        naming = getattr(network, "naming", None)
        write_card(folder, self.name, model, data, **({} if naming is None else naming.card()))


TASK = Detection3d()
Detection3dData.task = TASK  # type: ignore[assignment]  # no cache
