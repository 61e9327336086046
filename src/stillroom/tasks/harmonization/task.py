"""Harmonization as a task: its default job, the paper's setting, and what the Lab and the commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from stillroom.engine import Distiller, Networks, Training
from stillroom.engine.cache import CachedTeacher
from stillroom.engine.task import Built, Usual
from stillroom.errors import InputError
from stillroom.tasks.harmonization import loaded, pages
from stillroom.tasks.harmonization.data import HarmonyData
from stillroom.tasks.harmonization.metrics import METRICS
from stillroom.tasks.harmonization.models import TASK as NAME
from stillroom.tasks.harmonization.models import build_harmonizer
from stillroom.tasks.harmonization.supervised import Supervised

# The specification's small experiment, for sets of a few hundred composites.
SMALL = Training(epochs=40, optimizer="adam", lr=2e-3, weight_decay=0.0, schedule="multistep", milestones=(0.8, 0.93), decay=0.2)
PATCHES: dict[str, Any] = {"epochs": 13}  # 800 steps

IHARMONY4: dict[str, Any] = {
    "data": "iharmony4:data/iHarmony4",
    "student": "stillroom/harmony32",
    "image_size": 256,
    "augment": "crop",
    "batch_size": 16,
    "epochs": 120,
    "optimizer": "adam",
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "schedule": "multistep",
    "milestones": [105, 115],
    "decay": 0.1,
}


class Harmonization(Usual):
    """Composites, masks and the real photos; see `engine.task.Task`."""

    name = NAME
    data = HarmonyData
    plan = SMALL
    sgd = Training(epochs=40, lr=1e-3, weight_decay=0.0)
    networks = Networks("stillroom/harmony8_3", "stillroom/harmony8_3")
    presets: Mapping[str, Mapping[str, Any]] = {"paper": IHARMONY4}
    default = PATCHES
    kinds = ("patches", "blobs", "iharmony4", "composites")
    metric_formats = METRICS
    sections = staticmethod(pages.harmonization_sections)
    load = staticmethod(loaded.load)

    def build(self, spec: str, data: HarmonyData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The network of a specification.

        Raises:
            InputError: it cannot be built, or answers with something else than pictures.
        """
        return build_harmonizer(spec, trust_pickle=trust_pickle, argument=argument)

    def supervised(self, network: nn.Module) -> Distiller:
        """The foreground-normalised squared error."""
        return Supervised(network)

    def views(self, data: HarmonyData, asked: int | None) -> int:
        """None.

        Raises:
            InputError: always.
        """
        raise InputError("task", self.name, "a task whose teachers answer with logits: what teaches here is the real photo")

    def check_cache(self, teacher: CachedTeacher, data: HarmonyData) -> None:
        """Raises InputError: there are no caches."""
        self.views(data, None)


TASK = Harmonization()
HarmonyData.task = TASK
