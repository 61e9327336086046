"""The experiment that most distillation papers run on images: teacher, student alone, student distilled; and the papers' settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from stillroom.engine import Distiller, Lab, Report, Teacher, Trained, Training
from stillroom.engine.cache import CachedTeacher
from stillroom.engine.task import Built
from stillroom.errors import InputError
from stillroom.tasks.classification.cached import CACHE, cached_teacher, check_views, views_of
from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.classification.layers import middle_layer, pooled_layer
from stillroom.tasks.classification.supervised import Supervised
from stillroom.tasks.experiments import Experiment
from stillroom.tasks.images.classifiers import build_classifier

# The default job: scikit-learn's digits, some 1 500 steps. The paper of DOT sees its effect only once the longer memory has filled.
DIGITS = Training(epochs=100, lr=0.05, weight_decay=5e-4, milestones=(0.62, 0.85))

# The DOT specification's three rows; most papers on CIFAR-100 share the first.
CIFAR100: dict[str, Any] = {
    "data": "cifar100:data/cifar100",
    "teacher": "stillroom/resnet32x4",
    "student": "stillroom/resnet8x4",
    "batch_size": 64,
    "epochs": 240,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "multistep",
    "milestones": [150, 180, 210],
    "decay": 0.1,
}
TINY_IMAGENET: dict[str, Any] = {
    **CIFAR100,
    "data": "tiny-imagenet:data/tiny-imagenet-200",
    "teacher": "torchvision/resnet18",
    "student": "stillroom/mobilenetv2_tiny",
    "batch_size": 256,
    "epochs": 200,
    "lr": 0.2,
    "milestones": [60, 120, 160],
}
IMAGENET: dict[str, Any] = {
    **CIFAR100,
    "data": "imagenet:data/imagenet",
    "teacher": "torchvision/resnet34@pretrained",
    "student": "torchvision/resnet18",
    "batch_size": 512,
    "epochs": 100,
    "lr": 0.2,
    "weight_decay": 1e-4,
    "milestones": [30, 60, 90],
}


def network(spec: str, data: ImageData, lab: Lab, argument: str) -> Built:
    """The network of a specification, with a head for the data's classes.

    Raises:
        InputError: the model cannot be built, or its weights know other classes than the data have.
    """
    built = build_classifier(
        spec, num_classes=data.num_classes, image_size=data.image_size, trust_pickle=lab.options.trust_pickle, argument=argument
    )
    return built.of_classes(data.classes, spec, argument)


def teacher_stage(lab: Lab, data: ImageData, plan: Training, spec: str, epochs: int | None = None) -> Trained:
    """The teacher, one for all seeds: read from a cache; scored when the specification brings weights; else trained on labels first."""
    with lab.shared():
        if spec.startswith(CACHE):
            cached = cached_teacher(spec, data)
            check_views(cached, data)
            return Trained("teacher", None, replace(cached.result, seed=lab.seed), cached.folder, teacher=cached)
        built = network(spec, data, lab, "teacher")
        if built.weights is not None:
            return lab.evaluate(built.network, data, name="teacher", model=built.spec, renormalise=data.renormalise)
        if data.renormalise is not None:
            got = f"{list(data.renormalise.to_mean)} for {spec}, a teacher without weights"
            raise InputError("teacher_mean", got, "none: a teacher that is trained here has the student's statistics")
        if epochs is not None and epochs < 1:
            raise InputError("teacher_epochs", epochs, "a number of at least 1")
        plan = plan if epochs is None else replace(plan, epochs=epochs)
        return lab.fit(Supervised(built.network), data, plan, name="teacher", model=built.spec)


def supervised_stage(lab: Lab, data: ImageData, plan: Training, spec: str) -> Trained:
    """The student alone: trained on labels only."""
    built = network(spec, data, lab, "student")
    return lab.fit(Supervised(built.network), data, plan, name="alone", model=built.spec)


def distilled_stage(
    lab: Lab, data: ImageData, plan: Training, spec: str, name: str, distiller: Callable[[nn.Module], Distiller]
) -> Trained:
    """The student, from the same initial weights as alone, under the distiller that is made around it.

    With a cache as the teacher it is shown the views of its images that the cache has answers to; else what the method shows it.
    """
    built = network(spec, data, lab, "student")
    made = distiller(built.network)
    made.plan = plan  # what it shows may depend on how long it does
    seen = data.replaying(made.teacher.views) if isinstance(made.teacher, CachedTeacher) else made.training_data(data)
    return lab.fit(made, seen, plan, name=name, model=built.spec)


def rehearse(lab: Lab, data: ImageData, teacher: str, student: str, distiller: Callable[[nn.Module, Teacher], object]) -> None:
    """Builds everything once and throws it away: what is wrong with an argument is said now, not after hours of training a teacher."""
    with lab.shared():
        cached = teacher.startswith(CACHE)
        taught = cached_teacher(teacher, data) if cached else Teacher(network(teacher, data, lab, "teacher").network)
        distiller(network(student, data, lab, "student").network, taught)


def three_arms(
    method: str,
    lab: Lab,
    data: ImageData,
    plan: Training,
    teacher: str,
    student: str,
    distiller: Callable[[nn.Module, Teacher], Distiller],
    *,
    teacher_epochs: int | None = None,
) -> Report:
    """Teacher, student alone, and the same student (from the same initial weights) distilled.

    Args:
        method: its name in the catalog.
        lab, data, plan: where, on what and how to train.
        teacher, student: specifications of the networks; the teacher's may be ``cache:FOLDER``.
        distiller: makes the method's distiller from a fresh student and the frozen teacher.
        teacher_epochs: for a teacher that has to be trained, when other than the plan's.
    """
    rehearse(lab, data, teacher, student, distiller)
    taught = teacher_stage(lab, data, plan, teacher, teacher_epochs)
    alone = supervised_stage(lab, data, plan, student)
    distilled = distilled_stage(lab, data, plan, student, "distilled", lambda fresh: distiller(fresh, lab.teach(taught)))
    return lab.report(method, data, {"teacher": taught, "alone": alone, "distilled": distilled})


EXPERIMENT = Experiment(
    data=ImageData,
    plan=DIGITS,
    sgd=DIGITS,
    teacher="stillroom/convnet24",
    student="stillroom/convnet4",
    teacher_epochs=None,
    presets={"paper": CIFAR100, "paper:tiny-imagenet": TINY_IMAGENET, "paper:imagenet": IMAGENET},
    kinds=(),
    views=views_of,
    layers={"middle": middle_layer, "pooled": pooled_layer},
    network=network,
    rehearse=rehearse,
    teacher_stage=teacher_stage,
    supervised_stage=supervised_stage,
    distilled_stage=distilled_stage,
)
