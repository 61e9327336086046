"""Anomaly detection as a task: what the Lab and the commands ask of it. It has no supervised arm: no anomaly is known in training."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from stillroom.engine import Networks, Training
from stillroom.engine.task import Usual
from stillroom.errors import InputError
from stillroom.tasks.anomaly import loaded, pages
from stillroom.tasks.anomaly.data import AnomalyData
from stillroom.tasks.anomaly.detector import Detectors
from stillroom.tasks.anomaly.loaded import deliver, ship
from stillroom.tasks.anomaly.metrics import METRICS


class Anomaly(Usual):
    """Pictures of products, of which good ones alone are known; see `engine.task.Task`."""

    name = "anomaly"
    data = AnomalyData
    plan = sgd = Training()
    networks = Networks()
    kinds = ("mvtec", "good", "textures")
    metric_formats = METRICS
    sections = staticmethod(pages.anomaly_sections)
    remarks = staticmethod(pages.remarks)
    load = staticmethod(loaded.load)

    def ship(self, folder: Path, network: nn.Module, model: str, data: AnomalyData) -> None:
        """`student.json`, of teacher and students together."""
        ship(folder, _detectors(network), data)

    def deliver(self, folder: Path, network: nn.Module, model: str, data: AnomalyData) -> None:
        """Of several categories each one's detector in a folder of its own, which can be used as a run's."""
        deliver(folder, _detectors(network), data)


def _detectors(network: nn.Module) -> Detectors:
    if not isinstance(network, Detectors):
        raise InputError("network", type(network).__name__, "Detectors")
    return network


TASK = Anomaly()
AnomalyData.task = TASK  # type: ignore[assignment]
