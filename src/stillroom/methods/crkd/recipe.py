"""CrKD's experiment: supervised pre-training on the known classes, then discovery from there without and with class relations."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from stillroom.engine import Experiment, Lab, Networks, Report, Room, Teacher, Trained, Training
from stillroom.engine.run.measure import measure
from stillroom.errors import InputError, at_least, positive
from stillroom.methods.crkd.data import NovelClassData
from stillroom.methods.crkd.distiller import Discovery, Pretraining
from stillroom.methods.crkd.evaluator import SHOWN
from stillroom.methods.crkd.networks import DiscoveryNetwork, train_only
from stillroom.methods.crkd.novel import KnownClassifier, NovelSpec, Prototypes, headless
from stillroom.methods.crkd.views import Style, crops
from stillroom.tasks.classification import ImageData
from stillroom.tasks.images.views import View

# The default job: the paper's schedule, shortened. Constant within an epoch; the first epoch of a warm-up has the smallest rate.
SHORT = Training(epochs=16, lr=0.1, weight_decay=1.5e-4, schedule="cosine", warmup_epochs=4, step_per="epoch", lr_floor=0.0)
_BY_AUGMENTATION: dict[str, Style] = {"cifar": "cifar", "tiny-imagenet": "cifar", "imagenet": "photographs"}


def pretrained_stage(
    lab: Lab,
    data: ImageData,
    plan: Training,
    student: str,
    views: Sequence[View],
    said: str,
    *,
    cosine_temperature: float,
    trained_layers: Sequence[str],
) -> Trained:
    """Stage 1: the supervised network.

    Args:
        lab: where to run.
        data: of the known classes.
        plan: how to train.
        student: specification of a classifier, whose head is replaced.
        views, said: how images are shown.
        cosine_temperature: tau.
        trained_layers: see `Pretraining`.
    """
    supervised, backbone = _fresh(lab, data, student, cosine_temperature)
    made, spec = (
        Pretraining(supervised, trained_layers=trained_layers),
        NovelSpec(backbone, data.num_classes, temperature=cosine_temperature),
    )
    return lab.fit(made, data.in_views(*views, said=said), plan, name="supervised", model=str(spec))


def _fresh(lab: Lab, data: ImageData, student: str, cosine_temperature: float) -> tuple[KnownClassifier, str]:
    """The network of stage 1, and the specification of its backbone."""
    built = Experiment(lab, data, Training(), Networks(student=student)).network(student, "student")
    backbone, features = headless(built.network, data.num_classes, "student")
    return KnownClassifier(backbone, Prototypes(features, data.num_classes), temperature=cosine_temperature), built.spec


def recipe(
    lab: Lab,
    data: NovelClassData,
    plan: Training = SHORT,
    student: str = "stillroom/resnet8",
    view_style: Style | None = None,
    large_crops: int = 2,
    small_crops: int = 0,
    novel_heads: int = 2,
    hidden: int = 128,
    projection: int = 32,
    projection_layers: int = 1,
    relation_weight: float = 0.1,
    cosine_temperature: float = 0.1,
    teacher_epochs: int = 20,
    teacher_lr: float = 0.1,
    teacher_optimizer: Literal["sgd", "adam", "adamw"] | None = None,
    teacher_warmup_epochs: int = 0,
    teacher_trained_layers: tuple[str, ...] = (),
    **options: Any,
) -> Report:
    """Learn the known classes with labels, then find the novel ones with UNO and with class-relation distillation; compare the two.

    Args:
        lab: where and how to run.
        data: the images, and which classes are known.
        plan: how the discovery is trained, and, but for the options of the teacher, the teacher before it.
        student: network, optionally with weights after ``@``; its head is replaced. Trained on the known classes it is its own teacher.
        view_style: how the views of an image are made: ``cifar``, ``photographs`` (as for vision transformers), ``small`` (pictures of
            some 16 pixels) or ``digits`` (those, not mirrored); by default what suits the data.
        large_crops: V, views of an image that give targets.
        small_crops: S, views that only predict; for cifar's views.
        novel_heads: H, novel heads; the one with the smallest training loss is shipped.
        hidden: hidden width; M, of the novel heads' projectors.
        projection: P, width of the space in which novel classes are found.
        projection_layers: K, hidden layers of the projectors.
        relation_weight: weight of the relation distillation, between classes.
        cosine_temperature: tau > 0 of all softmaxes over cosines.
        teacher_epochs: epochs of the teacher; on the known classes.
        teacher_lr: learning rate of the teacher.
        teacher_optimizer: optimiser of the teacher; by default that of the discovery.
        teacher_warmup_epochs: warm-up of the teacher, in epochs.
        teacher_trained_layers: module paths of the backbone that the teacher trains; all by default.
        options: those of `Discovery`.
    """

    def discovery(supervised: KnownClassifier, taught: Teacher | nn.Module, weight: float) -> Discovery:
        student = DiscoveryNetwork(
            supervised, data.clusters, novel_heads=novel_heads, hidden=hidden, projection=projection, layers=projection_layers
        )
        return Discovery(student, taught, large_views=large_crops, relation_weight=weight, **options)

    def discovered(name: str, weight: float) -> Trained:
        """Stage 2, from a copy of the supervised network's weights; what it ships is the best head's network."""
        assert isinstance(supervised.network, KnownClassifier)
        taught = copy.deepcopy(supervised.network).requires_grad_(True)  # whatever the pre-training left as it was
        backbone = NovelSpec.parse(supervised.result.model, "teacher").backbone
        spec = NovelSpec(backbone, data.known_count, hidden, projection, projection_layers, taught.temperature)
        made = discovery(taught, lab.teach(supervised), weight)
        trained = lab.fit(made, data.in_views(*shown, said=said), plan, name=name, model=str(spec))
        shipped = made.student.best()
        return replace(trained, network=shipped, result=replace(trained.result, footprint=measure(shipped, data.example_inputs())))

    style = view_style or ("digits" if data.source.name == "digits" else _BY_AUGMENTATION.get(data.augment, "small"))
    shown = crops(style, data.image_size, data.mean, data.std, large=large_crops, small=small_crops)
    said = f"crkd {style} {large_crops}+{small_crops}"
    known = data.supervised()
    if not 0 <= teacher_warmup_epochs < at_least("teacher_epochs", teacher_epochs, 1):
        raise InputError("teacher_warmup_epochs", teacher_warmup_epochs, f"a number below that of the epochs ({teacher_epochs})")
    before = replace(
        plan,
        epochs=teacher_epochs,
        lr=teacher_lr,
        optimizer=teacher_optimizer or plan.optimizer,
        warmup_epochs=teacher_warmup_epochs,
    )
    positive("cosine_temperature", cosine_temperature)
    with lab.shared():  # everything is built once and thrown away: what is wrong with an argument is said before the pre-training
        tried, _ = _fresh(lab, known, student, cosine_temperature)
        discovery(tried, tried, relation_weight)
        train_only(tried.backbone, teacher_trained_layers, "teacher_trained_layers")
    supervised = pretrained_stage(
        lab, known, before, student, shown, said, cosine_temperature=cosine_temperature, trained_layers=teacher_trained_layers
    )
    arms = {"uno": discovered("uno", 0.0), "crkd": discovered("crkd", relation_weight)}
    report = lab.report("crkd", data, arms, baseline="uno", ship="crkd")
    report.metric_formats |= SHOWN
    return report


_SHARED: dict[str, Any] = {
    "batch_size": 512,
    "weight_decay": 1.5e-4,
    "momentum": 0.9,
    "schedule": "cosine",
    "precision": "16-mixed",
    "workers": 8,
    "hidden": 2048,
    "projection": 256,
    "projection_layers": 1,
}
_CIFAR: dict[str, Any] = {
    **_SHARED,
    "data": "cifar100:data/cifar100",
    "student": "stillroom/resnet18",
    "view_style": "cifar",
    "small_crops": 2,
    "novel_heads": 4,
    "optimizer": "sgd",
    "lr": 0.4,
    "lr_floor": 0.001,
    "warmup_epochs": 10,
    "epochs": 500,
    "teacher_epochs": 500,
    "teacher_lr": 0.1,
    "teacher_warmup_epochs": 10,
}
_FINE_GRAINED: dict[str, Any] = {
    **_SHARED,
    "student": "timm/vit_base_patch16_224.dino@pretrained",
    "view_style": "photographs",
    "small_crops": 0,
    "novel_heads": 2,
    "optimizer": "adamw",
    "lr": 1e-3,
    "lr_floor": 1e-4,
    "warmup_epochs": 10,
    "epochs": 100,
    "teacher_epochs": 50,
    "teacher_lr": 1e-3,
    "teacher_warmup_epochs": 5,
    "trained_layers": ["blocks.11"],
    "teacher_trained_layers": ["blocks.11"],
}
PRESETS = {
    "paper": {**_CIFAR, "known_classes": 50},
    "paper:cifar100-80": {**_CIFAR, "known_classes": 80},
    "paper:cifar10": {**_CIFAR, "data": "cifar10:data/cifar10", "known_classes": 5},
    "paper:cub": {**_FINE_GRAINED, "data": "imagefolder:data/cub", "known_classes": 100},
    "paper:cars": {**_FINE_GRAINED, "data": "imagefolder:data/stanford-cars", "known_classes": 98},
    "paper:aircraft": {**_FINE_GRAINED, "data": "imagefolder:data/aircraft", "known_classes": 50},
}

ROOM = Room(
    recipe,
    tasks=("classification",),
    presets=PRESETS,
    expect="Level with UNO on such pictures (+0.7 +- 2.4 points of novel accuracy, 3 seeds); the paper sees +0.8 to +6.5.",
    reason="finds classes that have no labels, with heads of its own and itself as the teacher: its stages are an experiment of their own",
)
