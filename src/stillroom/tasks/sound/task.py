"""Sound as a task: its default job, the paper's setting, and what the Lab and the commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from stillroom.engine import Distiller, Networks, Training
from stillroom.engine.cache import CachedTeacher
from stillroom.engine.task import Built, Usual
from stillroom.errors import InputError
from stillroom.tasks.sound import loaded, pages
from stillroom.tasks.sound.data import SoundData
from stillroom.tasks.sound.metrics import METRICS
from stillroom.tasks.sound.models import TASK as NAME
from stillroom.tasks.sound.models import build_sound
from stillroom.tasks.sound.networks import DenseNetwork
from stillroom.tasks.sound.supervised import Supervised

# The specification's small experiment.
SMALL = Training(epochs=12, optimizer="adamw", lr=3e-3, weight_decay=0.01, schedule="cosine", warmup_epochs=1.0)

# The paper's data; its optimiser, rate and length are inferred.
DAPS: dict[str, Any] = {
    "data": "echoes:data/daps,unit=daps,categories=matterport",
    "teacher": "stillroom/panorama_resnet50",
    "student": "stillroom/echo_resnet50",
    "image_size": 192,
    "rate": 16_000,
    "n_fft": 512,
    "compression": 0.0,
    "standardise": False,
    "batch_size": 16,
    "epochs": 50,
    "optimizer": "adamw",
    "lr": 1e-4,
    "momentum": 0.9,
    "weight_decay": 0.01,
    "schedule": "cosine",
    "warmup_epochs": 0,
}


class Sound(Usual):
    """Recordings and what was seen where they were made; see `engine.task.Task`."""

    name = NAME
    data = SoundData
    plan = SMALL
    sgd = replace(SMALL, optimizer="sgd", lr=0.05)
    networks = Networks("stillroom/panorama16_3", "stillroom/echo16_3")
    presets: Mapping[str, Mapping[str, Any]] = {"paper": DAPS}
    default: Mapping[str, Any] = {"data": "rooms:train=600,val=150"}
    kinds = ("rooms", "echoes", "replica", "batvision")
    metric_formats = METRICS
    sections = staticmethod(pages.sound_sections)
    load = staticmethod(loaded.load)

    def build(self, spec: str, data: SoundData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The network of a specification, for the data's target.

        Raises:
            InputError: it cannot be built, or its weights know other classes than the data have; a student that sees.
        """
        built = build_sound(spec, data.shape(), trust_pickle=trust_pickle, argument=argument)
        if argument == "student" and isinstance(built.network, DenseNetwork) and built.network.part != "sound":
            raise InputError(argument, spec, "a network that hears, such as stillroom/echo16_3")
        return built.of_classes(data.classes, spec, argument)

    def supervised(self, network: nn.Module) -> Distiller:
        """The distance to the truth."""
        return Supervised(network)

    def views(self, data: SoundData, asked: int | None) -> int:
        """One: nothing about a recording is random; of voxels as many draws of points as are asked for, by default 8.

        Raises:
            InputError: more, where nothing is random.
        """
        if data.target != "occupancy" and (asked or 1) > 1:
            raise InputError("views", asked, "1: all views of a recording are the same")
        return asked or (8 if data.target == "occupancy" else 1)

    def check_cache(self, teacher: CachedTeacher, data: SoundData) -> None:
        """Nothing to look at: the points follow from the seeds alone."""


TASK = Sound()
SoundData.task = TASK
