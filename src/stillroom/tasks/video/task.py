"""Video as a task: its default job, the paper's setting, and what the Lab and the commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from stillroom.engine import Distiller, Networks, Training
from stillroom.engine.task import Built, Usual
from stillroom.tasks.images.cached import check_views, drawn_views
from stillroom.tasks.video import loaded, pages
from stillroom.tasks.video.data import VideoData
from stillroom.tasks.video.metrics import METRICS
from stillroom.tasks.video.models import TASK as NAME
from stillroom.tasks.video.models import build_for
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


class Video(Usual):
    """Clips with what is done in them; see `engine.task.Task`."""

    name = NAME
    data = VideoData
    plan = SMALL
    sgd = replace(SMALL, optimizer="sgd", lr=0.05)
    networks = Networks("stillroom/cnn3d16", "stillroom/cnn3d16")
    presets: Mapping[str, Mapping[str, Any]] = {"paper": SOMETHING, "paper:epic": EPIC}
    default: Mapping[str, Any] = {"data": "actions", "batch_size": 16}
    kinds = ("actions", "clips", "something", "epic")
    metric_formats = METRICS
    sections = staticmethod(pages.video_sections)
    check_cache = staticmethod(check_views)
    load = staticmethod(loaded.load)

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

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """Of how many of the clips that both saw they say the same of every head, in %."""
        _, here, there = np.intersect1d(details["ids"], reference["ids"], return_indices=True)
        same_N = (details["predicted"][here] == reference["predicted"][there]).all(1)
        return {"agreement": 100 * float(same_N.mean())} if len(same_N) else {}


TASK = Video()
VideoData.task = TASK
