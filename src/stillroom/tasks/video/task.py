"""Video as a task: its default job, the paper's setting, and what the Lab and the commands ask of it."""

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
from stillroom.tasks.video.data import VideoData
from stillroom.tasks.video.loaded import LoadedVideo, load, ship
from stillroom.tasks.video.metrics import METRICS
from stillroom.tasks.video.models import TASK as NAME
from stillroom.tasks.video.models import build_for
from stillroom.tasks.video.pages import video_sections
from stillroom.tasks.video.supervised import Supervised

SMALL = Training(epochs=8, optimizer="adamw", lr=4e-3, weight_decay=0.02, schedule="linear", warmup_epochs=1.0, clip_norm=5.0)

SOMETHING: dict[str, Any] = {
    "data": "something:data/something-something-v2",
    "teacher": "torchvision/swin3d_t@data/swin3d_t_kinetics400.pth",
    "student": "torchvision/swin3d_t@data/swin3d_t_kinetics400.pth",
    "image_size": 224,
    "frames": 16,
    "sampling": "uniform",
    "augment": "jitter",
    "test_crops": 3,
    "batch_size": 16,
    "epochs": 30,
    "optimizer": "adamw",
    "lr": 1e-4,
    "weight_decay": 0.02,
    "schedule": "linear",
    "warmup_epochs": 3,
    "clip_norm": 5.0,
}
EPIC: dict[str, Any] = {
    **SOMETHING,
    "data": "epic:data/EPIC-KITCHENS",
    "frames": 32,
    "sampling": "dense",
    "frame_stride": 2,
    "test_clips": 4,
}


class Video:
    """Clips with what is done in them; see `engine.task.Task`."""

    name = NAME
    data: type[Any] = VideoData
    plan = SMALL
    sgd = replace(SMALL, optimizer="sgd", lr=0.05)
    networks = Networks("stillroom/cnn3d16", "stillroom/cnn3d16")
    presets: Mapping[str, Mapping[str, Any]] = {"paper": SOMETHING, "paper:epic": EPIC}
    default: Mapping[str, Any] = {"data": "actions", "batch_size": 16}
    kinds: tuple[str, ...] = ("actions", "clips", "something", "epic")
    layers: Mapping[str, FindLayer] = {}
    exact: tuple[str, ...] = ()
    metric_formats: Mapping[str, Metric] = METRICS

    def build(self, spec: str, data: VideoData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The network of a specification, for the data's heads and what they read.

        Raises:
            InputError: it cannot be built, or its weights know other classes than the data have.
        """
        return build_for(data, spec, trust_pickle=trust_pickle, argument=argument)

    def supervised(self, network: nn.Module) -> Distiller:
        """The mean of the heads' cross-entropies."""
        return Supervised(network)

    def views(self, data: VideoData, asked: int | None) -> int:
        """As many random views as are asked for, by default 8; where nothing about a clip is random, one."""
        return drawn_views("none" if data.fixed else "random", asked)

    def check_cache(self, teacher: CachedTeacher, data: VideoData) -> None:
        """Whether this version of the libraries draws the views that the cache has answers to."""
        check_views(teacher, data)

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """Of how many of the clips that both saw they say the same of every head, in %."""
        _, here, there = np.intersect1d(details["ids"], reference["ids"], return_indices=True)
        same_N = (details["predicted"][here] == reference["predicted"][there]).all(1)
        return {"agreement": 100 * float(same_N.mean())} if len(same_N) else {}

    def sections(self, report: Report, data: VideoData) -> list[Section]:
        """Accuracy by class, clips, what a video costs, and the data."""
        return video_sections(report, data)

    def ship(self, folder: Path, network: nn.Module, model: str, data: VideoData) -> None:
        """`student.json`."""
        ship(folder, network, model, data)

    def load(self, run: Path, *, trust_pickle: bool) -> LoadedVideo:
        """The network that a run shipped."""
        return load(run, trust_pickle=trust_pickle)


TASK = Video()
VideoData.task = TASK
