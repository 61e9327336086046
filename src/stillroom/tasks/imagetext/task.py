"""Images and texts as a task: its default job, the paper's setting, and what the Lab and the commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stillroom.engine import Distiller, Networks, Training
from stillroom.engine.cache import CachedTeacher
from stillroom.engine.task import Built, Usual
from stillroom.errors import InputError
from stillroom.modules.clip import Clip
from stillroom.tasks.images.clips import TASK as NAME
from stillroom.tasks.images.clips import write_clip
from stillroom.tasks.imagetext import loaded, pages
from stillroom.tasks.imagetext.data import ImageTextData
from stillroom.tasks.imagetext.loaded import ship
from stillroom.tasks.imagetext.metrics import METRICS
from stillroom.tasks.imagetext.models import build_clip
from stillroom.tasks.imagetext.supervised import Supervised

# The specification's small experiment: some 200 steps of 64 drawn pairs.
SMALL = Training(epochs=2, optimizer="adamw", lr=1e-3, weight_decay=0.05, schedule="cosine", warmup_epochs=0.2, clip_norm=5.0)
TEACHER = "stillroom/clip_64x4p4_48x4_d48_h16"

# The paper's: pairs of LAION-400M in shards, 32 768 in a batch.
LAION: dict[str, Any] = {
    "data": "webdataset:data/laion400m/{00000..41455}.tar",
    "teacher": "data/CLIP-ViT-B-32-laion2B-s34B-b79K",
    "student": "stillroom/tinyclip_40m_19m",
    "batch_size": 32768,
    "epochs": 6,
    "optimizer": "adamw",
    "lr": 1e-4,
    "momentum": 0.9,
    "weight_decay": 0.2,
    "schedule": "cosine",
    "warmup_epochs": 0.16,
    "clip_norm": 5.0,
    "precision": "16-mixed",
}


class ImageTexts(Usual):
    """Pairs of images and texts; see `engine.task.Task`."""

    name = NAME
    data = ImageTextData
    plan = SMALL
    sgd = Training(epochs=2, lr=0.05, weight_decay=5e-4, clip_norm=5.0)
    networks = Networks(TEACHER, "stillroom/clip_48x4p4_32x4_d48_h16", teacher_epochs=7)
    presets: Mapping[str, Mapping[str, Any]] = {"paper": LAION}
    kinds = ("compositions", "pairs")
    metric_formats = METRICS
    sections = staticmethod(pages.imagetext_sections)
    remarks = staticmethod(pages.remarks)
    load = staticmethod(loaded.load)

    def build(self, spec: str, data: ImageTextData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The CLIP of a specification.

        Raises:
            InputError: it cannot be built, or reads other images or tokens than the data give.
        """
        return build_clip(spec, data, trust_pickle=trust_pickle, argument=argument)

    def supervised(self, network: nn.Module) -> Distiller:
        """The contrastive loss."""
        return Supervised(_clip(network))

    def views(self, data: ImageTextData, asked: int | None) -> int:
        """None.

        Raises:
            InputError: always.
        """
        raise InputError("task", self.name, "a task whose teachers' answers are kept: a CLIP's embeddings are compared batch by batch")

    def check_cache(self, teacher: CachedTeacher, data: ImageTextData) -> None:
        """Raises InputError: there are no caches."""
        self.views(data, None)

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """Of how many images both find the same text nearest, in %."""
        return {"agreement": 100 * float((details["predicted"] == reference["predicted"]).mean())}

    def ship(self, folder: Path, network: nn.Module, model: str, data: ImageTextData) -> None:
        """`student.json` and the vocabulary."""
        ship(folder, _clip(network), model, data, data.tokenizer, data.templates)

    def deliver(self, folder: Path, network: nn.Module, model: str, data: ImageTextData) -> None:
        """The folder ``clip``: for transformers where the sizes allow, else with the model file that reads it."""
        write_clip(folder / "clip", _clip(network), data.tokenizer, data.mean, data.std)


def _clip(network: nn.Module) -> Clip:
    if not isinstance(network, Clip):
        raise InputError("network", type(network).__name__, "a CLIP that `build_clip` built")
    return network


TASK = ImageTexts()
ImageTextData.task = TASK
