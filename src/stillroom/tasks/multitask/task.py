"""Several dense targets as a task: its default job, the papers' settings, and what the Lab and the commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from stillroom.engine import Distiller, Networks, Training
from stillroom.engine.task import Built, Usual
from stillroom.tasks.images.cached import check_views, random_views
from stillroom.tasks.multitask import loaded, pages
from stillroom.tasks.multitask.data import MultiTaskData
from stillroom.tasks.multitask.metrics import COMMON
from stillroom.tasks.multitask.models import TASK as NAME
from stillroom.tasks.multitask.models import build_multitask
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


class MultiTask(Usual):
    """Pictures with several dense targets; see `engine.task.Task`."""

    name = NAME
    data = MultiTaskData
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
    kinds = ("solids", "nyud", "pascal-context", "dense")
    metric_formats = COMMON
    sections = staticmethod(pages.multitask_sections)
    remarks = staticmethod(pages.remarks)
    views = staticmethod(random_views)
    check_cache = staticmethod(check_views)
    load = staticmethod(loaded.load)

    def build(self, spec: str, data: MultiTaskData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The network of a specification, for the data's targets.

        Raises:
            InputError: it cannot be built, or a run's network answers to other targets.
        """
        return build_multitask(spec, data.targets, trust_pickle=trust_pickle, argument=argument)

    def supervised(self, network: nn.Module) -> Distiller:
        """The weighted sum of the targets' losses."""
        return Supervised(network)


TASK = MultiTask()
MultiTaskData.task = TASK
