"""Representation learning as a task: what the Lab and the commands ask of it. It has no supervised arm: nothing is learnt from labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stillroom.engine import Networks, Report, Training
from stillroom.engine.cache import CachedTeacher
from stillroom.engine.report.results import Metric, Section
from stillroom.engine.task import Built, FindLayer
from stillroom.tasks.images.cached import check_views, drawn_views
from stillroom.tasks.images.classifiers import build_backbone
from stillroom.tasks.images.delivered import deliver
from stillroom.tasks.representation.data import RepresentationData
from stillroom.tasks.representation.loaded import LoadedBackbone, load, ship
from stillroom.tasks.representation.metrics import METRICS
from stillroom.tasks.representation.pages import remarks, representation_sections

# What methods that learn from two views share: a small job on scans of digits, and the papers' setting for vision transformers.
DIGITS = {
    "data": "digits",
    "primary": "few",
    "student": "stillroom/mlp_256_128",
    "batch_size": 100,
    "epochs": 40,
    "lr": 1e-3,
    "weight_decay": 0.04,
    "lr_floor": 1e-6,
}
IMAGENET = {
    "data": "imagenet:data/imagenet",
    "student": "timm/vit_small_patch16_224",
    "image_size": 224,
    "batch_size": 512,
    "epochs": 100,
    "optimizer": "adamw",
    "lr": 1e-3,
    "warmup_epochs": 10,
    "lr_floor": 1e-6,
    "schedule": "cosine",
    "weight_decay": 0.04,
    "precision": "16-mixed",
}


class Representation:
    """Images to features that other runs start from; see `engine.task.Task`."""

    name = "representation"
    data: type[Any] = RepresentationData
    plan = sgd = Training(epochs=40, optimizer="adamw", lr=1e-3, weight_decay=0.04, schedule="cosine")
    networks = Networks("", "stillroom/convnet24")
    presets: Mapping[str, Mapping[str, Any]] = {}
    default: Mapping[str, Any] = {}
    kinds: tuple[str, ...] = ("images",)
    layers: Mapping[str, FindLayer] = {}
    exact: tuple[str, ...] = ("pooled",)
    metric_formats: Mapping[str, Metric] = METRICS

    def build(self, spec: str, data: RepresentationData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The backbone of a specification: a network without its head.

        Raises:
            InputError: it cannot be built, or its weights do not fit.
        """
        return build_backbone(spec, image_size=data.image_size, trust_pickle=trust_pickle, argument=argument)

    def views(self, data: RepresentationData, asked: int | None) -> int:
        """As many random views as are asked for, by default 8; without augmentation one."""
        return drawn_views(data.augment, asked)

    def check_cache(self, teacher: CachedTeacher, data: RepresentationData) -> None:
        """Whether this version of the libraries draws the views that the cache has answers to."""
        check_views(teacher, data)

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """Nothing: features of two networks have no common axes."""
        return {}

    def sections(self, report: Report, data: RepresentationData) -> list[Section]:
        """Nearest neighbours, and the data."""
        return representation_sections(report, data)

    def remarks(self, report: Report, data: RepresentationData) -> list[str]:
        """Features that collapsed, and what could not be scored."""
        return remarks(report, data)

    def ship(self, folder: Path, network: nn.Module, model: str, data: RepresentationData) -> None:
        """`student.json`."""
        ship(folder, network, model, data)

    def deliver(self, folder: Path, network: nn.Module, model: str, data: RepresentationData) -> None:
        """For backbones of timm a folder that timm itself loads."""
        deliver(folder, network, model, data)

    def load(self, run: Path, *, trust_pickle: bool) -> LoadedBackbone:
        """The backbone that a run shipped."""
        return load(run, trust_pickle=trust_pickle)


TASK = Representation()
RepresentationData.task = TASK  # type: ignore[assignment]
