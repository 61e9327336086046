"""Segmentation of scans as a task: what the Lab and the commands ask of it. It has no supervised arm: no label is known in training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stillroom.engine import Networks, Report, Training
from stillroom.engine.report.results import Metric, Section
from stillroom.engine.task import FindLayer
from stillroom.tasks.segmentation3d.data import Segmentation3dData
from stillroom.tasks.segmentation3d.loaded import TASK as NAME
from stillroom.tasks.segmentation3d.loaded import LoadedSegmenter3d, load, ship
from stillroom.tasks.segmentation3d.metrics import METRICS
from stillroom.tasks.segmentation3d.pages import remarks, segmentation3d_sections


class Segmentation3d:
    """Scans whose points nobody labelled; see `engine.task.Task`."""

    name = NAME
    data: type[Any] = Segmentation3dData
    plan = sgd = Training()
    networks = Networks()
    presets: Mapping[str, Mapping[str, Any]] = {}
    default: Mapping[str, Any] = {}
    kinds: tuple[str, ...] = ("rooms", "scannet", "s3dis", "rgbd")
    layers: Mapping[str, FindLayer] = {}
    exact: tuple[str, ...] = ()
    metric_formats: Mapping[str, Metric] = METRICS

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """Nothing: clusters of two models have other numbers."""
        return {}

    def sections(self, report: Report, data: Segmentation3dData) -> list[Section]:
        """IoU of each class, the first scans, and the data."""
        return segmentation3d_sections(report, data)

    def remarks(self, report: Report, data: Segmentation3dData) -> list[str]:
        """Where nothing could be measured."""
        return remarks(report, data)

    def ship(self, folder: Path, network: nn.Module, model: str, data: Segmentation3dData) -> None:
        """`student.json`."""
        ship(folder, network, model, data)

    def load(self, run: Path, *, trust_pickle: bool) -> LoadedSegmenter3d:
        """The segmenter that a run shipped."""
        return load(run, trust_pickle=trust_pickle)


TASK = Segmentation3d()
Segmentation3dData.task = TASK  # type: ignore[assignment]
