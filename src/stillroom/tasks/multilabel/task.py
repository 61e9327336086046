"""Multi-label classification as a task: its default job, the paper's setting, and what the Lab and the commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from stillroom.engine import Distiller, Networks, Report, Training
from stillroom.engine.inference.fidelity import LABELS
from stillroom.engine.report.results import Section
from stillroom.engine.task import Built, Usual
from stillroom.engine.training import Stopped
from stillroom.errors import InputError
from stillroom.modules.ml_decoder import HeadOptions, check_embeddings
from stillroom.tasks.images.cached import check_views, random_views
from stillroom.tasks.images.candidates import CLASSIFIERS, students_of
from stillroom.tasks.images.page_parts import data_section
from stillroom.tasks.multilabel import loaded
from stillroom.tasks.multilabel.data import MultiLabelData
from stillroom.tasks.multilabel.metrics import METRICS, agreement
from stillroom.tasks.multilabel.models import build_multilabel
from stillroom.tasks.multilabel.pages import multilabel_sections
from stillroom.tasks.multilabel.supervised import Supervised

# The specification's small experiment: minutes on two cores.
MOSAICS = Training(epochs=20, optimizer="adam", lr=4e-3, momentum=0.95, weight_decay=1e-4, schedule="onecycle", peak=0.2)

MOSAICS_SGD = replace(MOSAICS, optimizer="sgd", lr=0.01, momentum=0.9)

COCO: dict[str, Any] = {
    "data": (
        "coco:data/coco/train2014,data/coco/annotations/instances_train2014.json,"
        "val_images=data/coco/val2014,val_annotations=data/coco/annotations/instances_val2014.json"
    ),
    "teacher": "torchvision/resnet101@pretrained",
    "student": "torchvision/resnet34@pretrained",
    "batch_size": 64,
    "image_size": 224,
    "augment": "randaugment",
    "epochs": 80,
    "teacher_stop": 30,
    "optimizer": "adam",
    "lr": 1e-4,
    "momentum": 0.95,
    "weight_decay": 1e-4,
    "schedule": "onecycle",
    "peak": 0.2,
    "embed_dim": 768,
    "attention_heads": 8,
    "feedforward": 2048,
    "precision": "16-mixed",
}


@dataclass(frozen=True)
class MultiLabelNetworks(Networks):
    """Which networks teach and learn, and the sizes of the heads that are built on them.

    Args:
        teacher: network, named by its backbone, optionally with weights of the whole after ``@``; without them it is trained first
            (``@pretrained`` are published weights of the backbone alone). Or the folder of an earlier run, or cache:FOLDER.
        student: network, likewise.
        teacher_epochs: epochs of the teacher, where it has to be trained: of its whole schedule; by default as many as the student's.
        teacher_lr: learning rate of the teacher; by default the student's.
        accept_teacher: go on with a teacher that is no better than chance, or far worse than the student alone.
        teacher_stop: the epoch after which its training is stopped, whatever is left of the schedule (the paper: 30 of 80).
        embed_dim: length of the embeddings; of a label's, in decoders that are built here.
        attention_heads: of their cross-attention.
        feedforward: width of the layer behind it.
        dropout: in training, from 0 and below 1.
    """

    teacher_stop: int | None = None
    embed_dim: int = 64
    attention_heads: int = 4
    feedforward: int = 128
    dropout: float = 0.1

    @property
    def head(self) -> HeadOptions:
        """Of networks that are no run's."""
        return HeadOptions(self.embed_dim, self.attention_heads, self.feedforward, self.dropout)

    def teacher_plan(self, plan: Training, *, start: bool = False) -> Training:
        """As `Networks`, and stopped where that was asked for.

        Raises:
            InputError: it would be stopped after its end.
        """
        whole = super().teacher_plan(plan, start=start)
        if self.teacher_stop is None:
            return whole
        if not 1 <= self.teacher_stop <= whole.epochs:
            raise InputError("teacher_stop", self.teacher_stop, f"an epoch from 1 to {whole.epochs}, the length of the teacher's schedule")
        return Stopped(**{**vars(whole), "epochs": self.teacher_stop}, of=whole.epochs)


class MultiLabel(Usual):
    """Images of any number of labels each; see `engine.task.Task`."""

    name = "multilabel"
    data = MultiLabelData
    plan = MOSAICS
    sgd = MOSAICS_SGD
    networks = MultiLabelNetworks("stillroom/strided64", "stillroom/strided24")
    presets: Mapping[str, Mapping[str, Any]] = {"paper": COCO}
    kinds = ("mosaics",)
    students = CLASSIFIERS
    students_of = staticmethod(students_of)
    by_engine = LABELS
    metric_formats = METRICS
    ship = staticmethod(loaded.ship)
    views = staticmethod(random_views)
    check_cache = staticmethod(check_views)
    load = staticmethod(loaded.load)

    def build(self, spec: str, data: MultiLabelData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The network of a specification, with an embedding for each of the data's labels.

        Raises:
            InputError: it cannot be built, is of other labels, or has fewer queries than labels.
        """
        built = build_multilabel(
            spec,
            num_classes=data.num_classes,
            image_size=data.image_size,
            head=networks.head if isinstance(networks, MultiLabelNetworks) else HeadOptions(),
            trust_pickle=trust_pickle,
            argument=argument,
        )
        check_embeddings(built.network, argument)
        return built.of_classes(data.classes, spec, argument)

    def supervised(self, network: nn.Module) -> Distiller:
        """Binary cross-entropy with the labels."""
        return Supervised(network)

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """How many decisions two models make alike on the validation images, in %: ``agreement``."""
        return {"agreement": agreement(details, reference)} if details and reference else {}

    def sections(self, report: Report, data: MultiLabelData) -> list[Section]:
        """Each label's change, example images, and the data."""
        return [*multilabel_sections(report, data.classes, data.val_image), data_section(data, "label")]


TASK = MultiLabel()
MultiLabelData.task = TASK
