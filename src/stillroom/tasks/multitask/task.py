"""Several dense targets as a task: its default job, the papers' settings, and what the Lab and the commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stillroom.engine import Distiller, Networks, Report, Training
from stillroom.engine.cache import CachedTeacher
from stillroom.engine.report.results import Metric, Section
from stillroom.engine.task import Built, FindLayer
from stillroom.tasks.images.cached import check_views, drawn_views
from stillroom.tasks.multitask.data import MultiTaskData
from stillroom.tasks.multitask.loaded import LoadedMultiTask, load, ship
from stillroom.tasks.multitask.metrics import COMMON
from stillroom.tasks.multitask.models import TASK as NAME
from stillroom.tasks.multitask.models import build_multitask
from stillroom.tasks.multitask.pages import multitask_sections, remarks
from stillroom.tasks.multitask.supervised import Supervised

SMALL = Training(epochs=30, optimizer="adamw", lr=3e-3, weight_decay=0.01, schedule="cosine", warmup_epochs=1.0)
SMALL_SGD = replace(SMALL, optimizer="sgd", lr=0.02)

# The setting of multi-task papers on NYU Depth V2, with their networks: 40 000 iterations of 8 of its 795 pictures.
NYUD: dict[str, Any] = {
    "data": "nyud:data/NYUDv2",
    "teacher": "timm/swin_large_patch4_window12_384,backbone=pretrained",
    "student": "timm/swin_tiny_patch4_window7_224,backbone=pretrained",
    "image_size": 425,
    "batch_size": 8,
    "augment": "scale",
    "epochs": 404,
    "optimizer": "sgd",
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "poly",
    "warmup_epochs": 0,
}
PASCAL: dict[str, Any] = {**NYUD, "data": "pascal-context:data/PASCALContext", "image_size": 512, "epochs": 64}


class MultiTask:
    """Pictures with several dense targets; see `engine.task.Task`."""

    name = NAME
    data: type[Any] = MultiTaskData
    plan = SMALL
    sgd = SMALL_SGD
    networks = Networks("stillroom/pyramid12", "stillroom/pyramid6")
    presets: Mapping[str, Mapping[str, Any]] = {"paper": NYUD, "paper:pascal-context": PASCAL}
    default: Mapping[str, Any] = {
        "data": "solids:train=160,val=64,teacher=640",
        "batch_size": 16,
        "epochs": 20,
        "teacher_epochs": 8,
    }
    kinds: tuple[str, ...] = ("solids", "nyud", "pascal-context", "dense")
    layers: Mapping[str, FindLayer] = {}
    exact: tuple[str, ...] = ()
    metric_formats: Mapping[str, Metric] = COMMON

    def build(self, spec: str, data: MultiTaskData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The network of a specification, for the data's targets.

        Raises:
            InputError: it cannot be built, or a run's network answers to other targets.
        """
        return build_multitask(spec, data.targets, trust_pickle=trust_pickle, argument=argument)

    def supervised(self, network: nn.Module) -> Distiller:
        """The weighted sum of the targets' losses."""
        return Supervised(network)

    def views(self, data: MultiTaskData, asked: int | None) -> int:
        """As many random views as are asked for, by default 8; without augmentation one."""
        return drawn_views(data.augment, asked)

    def check_cache(self, teacher: CachedTeacher, data: MultiTaskData) -> None:
        """Whether this version of the libraries draws the views that the cache has answers to."""
        check_views(teacher, data)

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """Nothing: what two models answer is compared with the truth."""
        return {}

    def sections(self, report: Report, data: MultiTaskData) -> list[Section]:
        """The figures of each target, pictures of every answer, and the data."""
        return multitask_sections(report, data)

    def remarks(self, report: Report, data: MultiTaskData) -> list[str]:
        """Directions that point the wrong way."""
        return remarks(report, data)

    def ship(self, folder: Path, network: nn.Module, model: str, data: MultiTaskData) -> None:
        """`student.json`."""
        ship(folder, network, model, data)

    def load(self, run: Path, *, trust_pickle: bool) -> LoadedMultiTask:
        """The network that a run shipped."""
        return load(run, trust_pickle=trust_pickle)


TASK = MultiTask()
MultiTaskData.task = TASK
