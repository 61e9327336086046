"""Nuclei as a task: its default job, the paper's setting, and what the Lab and the commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from stillroom.engine import Distiller, Networks, Training
from stillroom.engine.cache import CachedTeacher
from stillroom.engine.task import Built, Usual
from stillroom.errors import InputError
from stillroom.tasks.nuclei import loaded, pages
from stillroom.tasks.nuclei.data import NucleiData
from stillroom.tasks.nuclei.metrics import METRICS
from stillroom.tasks.nuclei.models import TASK as NAME
from stillroom.tasks.nuclei.models import build_nuclei_network
from stillroom.tasks.nuclei.supervised import Supervised

SMALL = Training(epochs=12, optimizer="adam", lr=3e-3, weight_decay=0.0, schedule="cosine", warmup_epochs=1.0)
SMALL_SGD = replace(SMALL, optimizer="sgd", lr=0.02)

# HoVer-Net's network and a schedule like its own, on CoNSeP.
CONSEP: dict[str, Any] = {
    "data": "consep:data/CoNSeP",
    "teacher": "stillroom/hovernet",
    "student": "stillroom/hovernet",
    "image_size": 256,
    "batch_size": 8,
    "augment": "stain",
    "epochs": 50,
    "optimizer": "adam",
    "lr": 1e-4,
    "weight_decay": 0.0,
    "schedule": "multistep",
    "milestones": [25],
    "warmup_epochs": 0,
}


class Nuclei(Usual):
    """Pictures with their nuclei, outlined and classified; see `engine.task.Task`."""

    name = NAME
    data = NucleiData
    plan = SMALL
    sgd = SMALL_SGD
    networks = Networks("stillroom/nuclei16_3", "stillroom/nuclei8_3")
    presets: Mapping[str, Mapping[str, Any]] = {"paper": CONSEP}
    default: Mapping[str, Any] = {"data": "drawn"}
    kinds = ("drawn", "nuclei", "consep", "lizard", "pannuke")
    students = ("stillroom/nuclei8_3", "stillroom/nuclei16_3", "stillroom/nuclei32_4", "stillroom/hovernet")
    metric_formats = METRICS
    sections = staticmethod(pages.nuclei_sections)
    load = staticmethod(loaded.load)

    def build(self, spec: str, data: NucleiData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The network of a specification, for the data's classes.

        Raises:
            InputError: it cannot be built, or its weights know other classes than the data have.
        """
        built = build_nuclei_network(spec, num_classes=data.num_classes, trust_pickle=trust_pickle, argument=argument)
        return built.of_classes(data.classes, spec, argument)

    def supervised(self, network: nn.Module) -> Distiller:
        """Classes of pixels and distances to centres."""
        return Supervised(network)

    def views(self, data: NucleiData, asked: int | None) -> int:
        """None.

        Raises:
            InputError: always.
        """
        raise InputError("task", self.name, "a task with methods that learn from a teacher's answers: here a network teaches itself")

    def check_cache(self, teacher: CachedTeacher, data: NucleiData) -> None:
        """There is none."""


TASK = Nuclei()
NucleiData.task = TASK
