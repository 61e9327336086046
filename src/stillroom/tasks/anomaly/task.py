"""Anomaly detection as a task: what the Lab and the commands ask of it. It has no supervised arm: no anomaly is known in training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stillroom.engine import Networks, Report, Training
from stillroom.engine.report.results import Metric, Section
from stillroom.engine.task import FindLayer
from stillroom.errors import InputError
from stillroom.tasks.anomaly.data import AnomalyData
from stillroom.tasks.anomaly.detector import Detectors
from stillroom.tasks.anomaly.loaded import LoadedDetectors, deliver, load, ship
from stillroom.tasks.anomaly.metrics import METRICS
from stillroom.tasks.anomaly.pages import anomaly_sections, remarks


class Anomaly:
    """Pictures of products, of which good ones alone are known; see `engine.task.Task`."""

    name = "anomaly"
    data: type[Any] = AnomalyData
    plan = sgd = Training()
    networks = Networks()
    presets: Mapping[str, Mapping[str, Any]] = {}
    default: Mapping[str, Any] = {}
    kinds: tuple[str, ...] = ("mvtec", "good", "textures")
    layers: Mapping[str, FindLayer] = {}
    exact: tuple[str, ...] = ()
    metric_formats: Mapping[str, Metric] = METRICS

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """Nothing: a teacher alone says nothing of a picture."""
        return {}

    def sections(self, report: Report, data: AnomalyData) -> list[Section]:
        """Each category's figures, the worst mistakes with their maps, scores and ROC, the levels, and the data."""
        return anomaly_sections(report, data)

    def remarks(self, report: Report, data: AnomalyData) -> list[str]:
        """What the threshold is, and what could not be measured."""
        return remarks(report, data)

    def ship(self, folder: Path, network: nn.Module, model: str, data: AnomalyData) -> None:
        """`student.json`, of teacher and students together."""
        ship(folder, _detectors(network), data)

    def deliver(self, folder: Path, network: nn.Module, model: str, data: AnomalyData) -> None:
        """Of several categories each one's detector in a folder of its own, which can be used as a run's."""
        deliver(folder, _detectors(network), data)

    def load(self, run: Path, *, trust_pickle: bool) -> LoadedDetectors:
        """The detectors that a run shipped."""
        return load(run, trust_pickle=trust_pickle)


def _detectors(network: nn.Module) -> Detectors:
    if not isinstance(network, Detectors):
        raise InputError("network", type(network).__name__, "Detectors")
    return network


TASK = Anomaly()
AnomalyData.task = TASK  # type: ignore[assignment]
