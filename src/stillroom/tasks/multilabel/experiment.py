"""The multi-label experiment: teacher, student alone, student distilled; and the paper's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from stillroom.engine import Distiller, Lab, Progress, Report, Teacher, Trained, Training
from stillroom.engine.task import Built
from stillroom.errors import InputError
from stillroom.modules.ml_decoder import HeadOptions
from stillroom.tasks.multilabel.data import MultiLabelData
from stillroom.tasks.multilabel.metrics import SHOWN
from stillroom.tasks.multilabel.models import build_multilabel
from stillroom.tasks.multilabel.networks import check_embeddings
from stillroom.tasks.multilabel.supervised import Supervised

# The specification's small experiment: minutes on two cores.
MOSAICS = Training(epochs=20, optimizer="adam", lr=4e-3, momentum=0.95, weight_decay=1e-4, schedule="onecycle", peak=0.2)

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
    "heads": 8,
    "feedforward": 2048,
    "precision": "16-mixed",
}


@dataclass(frozen=True)
class Stopped(Training):
    """A training that is stopped before its schedule has ended.

    Args:
        of: epochs of the whole schedule.
    """

    of: int = 1

    def rate(self, base_lr: float, progress: Progress) -> float:
        """As of the whole schedule."""
        return super().rate(base_lr, replace(progress, epochs=self.of))

    def momentum_at(self, progress: Progress) -> float | None:
        """As of the whole schedule."""
        return super().momentum_at(replace(progress, epochs=self.of))


@dataclass(frozen=True)
class Bench:
    """What an experiment's stages have in common.

    Args:
        lab, data, plan: where, on what and how to train.
        teacher, student: specifications of the networks.
        head: sizes of the heads of networks that are no run's.
        teacher_epochs: length of the schedule of a teacher that has to be trained, when other than the plan's.
        teacher_stop: the epoch after which it is stopped all the same.
    """

    lab: Lab
    data: MultiLabelData
    plan: Training
    teacher: str
    student: str
    head: HeadOptions
    teacher_epochs: int | None = None
    teacher_stop: int | None = None

    def network(self, spec: str, argument: str) -> Built:
        """The network of a specification, with an embedding for each of the data's labels.

        Raises:
            InputError: it cannot be built, is of other labels, or has fewer queries than labels.
        """
        if spec.startswith("cache:"):
            raise InputError(argument, spec, "a network: caches are of classifiers' answers")
        built = build_multilabel(
            spec,
            num_classes=self.data.num_classes,
            image_size=self.data.image_size,
            head=self.head,
            trust_pickle=self.lab.options.trust_pickle,
            argument=argument,
        )
        built = built.of_classes(self.data.classes, spec, argument)
        check_embeddings(built.network, argument)
        return built

    def rehearse(self, distiller: Callable[[nn.Module, Teacher], Distiller]) -> None:
        """Builds everything once and throws it away: what is wrong with an argument is said now, not after hours of training a teacher."""
        with self.lab.shared():
            self.teacher_plan()
            made = distiller(self.network(self.student, "student").network, Teacher(self.network(self.teacher, "teacher").network))
            made.plan = self.plan
            made.configure_optimizers()

    def teacher_plan(self) -> Training:
        """How a teacher is trained.

        Raises:
            InputError: it would be stopped after its end.
        """
        epochs = self.plan.epochs if self.teacher_epochs is None else self.teacher_epochs
        if epochs < 1:
            raise InputError("teacher_epochs", epochs, "a number of at least 1")
        if self.teacher_stop is None:
            return replace(self.plan, epochs=epochs)
        if not 1 <= self.teacher_stop <= epochs:
            raise InputError("teacher_stop", self.teacher_stop, f"an epoch from 1 to {epochs}, the length of the teacher's schedule")
        return Stopped(**{**vars(self.plan), "epochs": self.teacher_stop}, of=epochs)

    def teach(self) -> Trained:
        """The teacher, one for all seeds: scored when the specification brings weights, else trained on labels first."""
        with self.lab.shared():
            built = self.network(self.teacher, "teacher")
            if built.weights is not None:
                return self.lab.evaluate(built.network, self.data, name="teacher", model=built.spec, renormalise=self.data.renormalise)
            if self.data.renormalise is not None:
                expected = "a teacher with weights: one that is trained here has the student's statistics"
                raise InputError("teacher_mean", self.teacher, expected)
            return self.lab.fit(Supervised(built.network), self.data.for_teacher(), self.teacher_plan(), name="teacher", model=built.spec)

    def alone(self) -> Trained:
        """The student trained on labels only."""
        built = self.network(self.student, "student")
        return self.lab.fit(Supervised(built.network), self.data, self.plan, name="alone", model=built.spec)

    def distilled(self, name: str, distiller: Callable[[nn.Module], Distiller]) -> Trained:
        """The student, from the same initial weights as alone, under the distiller that is made around it."""
        built = self.network(self.student, "student")
        made = distiller(built.network)
        return self.lab.fit(made, made.training_data(self.data), self.plan, name=name, model=built.spec)

    def three_arms(self, method: str, distiller: Callable[[nn.Module, Teacher], Distiller]) -> Report:
        """Teacher, student alone, and the same student (from the same initial weights) distilled.

        Args:
            method: its name in the catalog.
            distiller: makes the method's distiller from a fresh student and the frozen teacher.
        """
        self.rehearse(distiller)
        taught, alone = self.teach(), self.alone()
        distilled = self.distilled("distilled", lambda fresh: distiller(fresh, self.lab.teach(taught)))
        report = self.lab.report(method, self.data, {"teacher": taught, "alone": alone, "distilled": distilled})
        report.metric_formats.update(SHOWN)
        return report
