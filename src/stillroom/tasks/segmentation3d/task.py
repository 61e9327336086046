"""Segmentation of scans as a task: what the Lab and the commands ask of it. It has no supervised arm: no label is known in training."""

from __future__ import annotations

from stillroom.engine import Networks, Training
from stillroom.engine.task import Usual
from stillroom.tasks.segmentation3d import loaded, pages
from stillroom.tasks.segmentation3d.data import Segmentation3dData
from stillroom.tasks.segmentation3d.loaded import TASK as NAME
from stillroom.tasks.segmentation3d.metrics import METRICS


class Segmentation3d(Usual):
    """Scans whose points nobody labelled; see `engine.task.Task`."""

    name = NAME
    data = Segmentation3dData
    plan = sgd = Training()
    networks = Networks()
    kinds = ("rooms", "scannet", "s3dis", "rgbd")
    metric_formats = METRICS
    sections = staticmethod(pages.segmentation3d_sections)
    remarks = staticmethod(pages.remarks)
    ship = staticmethod(loaded.ship)
    load = staticmethod(loaded.load)


TASK = Segmentation3d()
Segmentation3dData.task = TASK  # type: ignore[assignment]
