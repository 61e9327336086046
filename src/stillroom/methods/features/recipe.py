"""The experiment: teachers, the backbone as it starts, and the same backbone distilled without a label; what its features are worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from stillroom.engine import Experiment, Lab, Report, Room, Teacher, Trained, Training
from stillroom.engine.cache import CACHE, CachedTeacher, Storage, Views, build_cache
from stillroom.engine.report.results import Metric, StageResult
from stillroom.errors import InputError, at_least
from stillroom.methods.features.distiller import FeatureLoss, Features
from stillroom.tasks.classification import ImageData, Supervised, build_classifier
from stillroom.tasks.detection.models import backbone_of
from stillroom.tasks.representation import TASK, RepresentationData
from stillroom.tasks.representation.teachers import FeatureNetworks, open_teachers

NETWORKS = FeatureNetworks("stillroom/convnet24", "stillroom/convnet12")
ADAMW = Training(epochs=30, optimizer="adamw", lr=2e-3, weight_decay=0.02, schedule="cosine")
_TEACHER = Training(epochs=20, lr=0.1, weight_decay=5e-4, schedule="onecycle")
_TUNING = Training(epochs=5, optimizer="adamw", lr=5e-3, weight_decay=0.02, schedule="cosine")
_TUNING_STEPS, _TUNING_BATCH = 40, 16  # of an epoch
_ANSWERS = "answers"  # the folder of a run's own cache


def recipe(
    lab: Lab,
    data: RepresentationData,
    plan: Training = ADAMW,
    networks: FeatureNetworks = NETWORKS,
    feature_loss: FeatureLoss = "cosine",
    projector: Literal["linear", "mlp"] = "linear",
    pooled_weight: float = 1.0,
    queue_size: int = 4096,
    queue_temperatures: tuple[float, float] = (0.2, 0.01),
    views: int | None = None,
    tune_labels: int = 0,
) -> Report:
    """Teach a backbone the features of any frozen network, from images without labels.

    Args:
        lab, data, plan, networks: where to run, on what, how to train, and which networks; see `Room`.
        feature_loss: distance to the teacher's features: ``cosine``, ``smooth_l1`` (to whitened features), or ``queue`` (softmax over a
            queue of the teacher's embeddings).
        projector: between the student's pooled features and a teacher's: ``linear``, or ``mlp``; it is no part of the student.
        pooled_weight: weight of the pooled features' distance.
        queue_size: teacher embeddings that the queue holds.
        queue_temperatures: softmax temperatures over the queue, the student's and the teacher's.
        views: random versions of each image that are stored, in the run's folder, with the teachers' answers, pooled features exactly and
            maps in half precision; training then shows these in turn. By default none: the teachers answer at every step.
        tune_labels: labels of each class on which the backbone is fine-tuned at the end, as it starts and distilled; 0 for not.
    """
    if (backbone := backbone_of(networks.student)) is not None:
        detector = networks.student.partition(",")[0]
        lab.say("student", f"the backbone of {detector}, {backbone}, alone; the detector takes it as {detector},backbone={lab.folder}")
        networks = replace(networks, student=backbone)
    if tune_labels and not data.labelled:
        raise InputError("tune_labels", tune_labels, "0: the data have no labels")
    options: dict[str, Any] = {
        "loss": feature_loss,
        "projector": projector,
        "pooled_weight": pooled_weight,
        "dense_weight": networks.dense_weight,
        "queue_size": queue_size,
        "queue_temperatures": queue_temperatures,
        "example": data.example_inputs(),
    }
    cached = networks.teacher.startswith(CACHE)
    experiment = Experiment(lab, data, plan, networks if cached else replace(networks, teacher=""))

    def made(student: nn.Module, teacher: Teacher) -> Features:
        return Features(student, teacher, **options)

    if cached:
        if views is not None:
            raise InputError("views", views, "none: the cache has its own")
        experiment.rehearse(made)
        stages: dict[str, Trained] = {"teacher": experiment.teacher()}
    else:
        with lab.shared():
            teachers = open_teachers(data, networks, trust_pickle=lab.options.trust_pickle)
            frozen = teachers.frozen(lab)
            experiment.rehearse(lambda student, _: made(student, frozen))
            for number, one in enumerate(teachers.opened):
                if not one.trained:
                    learned = _trained(lab, data, networks, one.spec, f"teacher{number + 1}-on-labels")
                    one.tower.network.load_state_dict(learned.state_dict(), strict=False)  # all but its head
            stages = {"teacher": teachers.scored(lab, data)}
    teacher = lab.teach(stages["teacher"])
    if views is not None:
        with lab.shared():
            teacher = _stored(lab, data, teacher, stages["teacher"].result, Views(TASK.views(data, views), lab.options.seed))
    built = experiment.network(networks.student, "student")
    stages["start"] = lab.evaluate(built.network, data, name="start", model=built.spec, origin=_start(built.weights))
    stages["distilled"] = experiment.trained("distilled", lambda student: made(student, teacher))
    if tune_labels:
        for name, knows in (("start", built.weights is not None), ("distilled", True)):
            labels = at_least("tune_labels", tune_labels, 1)
            stages[name] = _tuned(lab, data, stages[name], networks.student, labels, knows=knows)
    report = lab.report("features", data, stages, baseline="start", ship="distilled")
    report.metric_formats["tuned"] = Metric(f"fine-tuned, {tune_labels} labels a class", "%", 1, True)
    return report


def _start(weights: str | None) -> str:
    return "random numbers" if weights is None else f"the weights of {weights}"


def _trained(lab: Lab, data: RepresentationData, networks: FeatureNetworks, spec: str, name: str) -> nn.Module:
    """Trains a teacher without weights on the labels of the data; the classifier that it became.

    Raises:
        InputError: the data have no labels, or it is no better than chance afterwards and that was not accepted.
    """
    if not data.labelled:
        raise InputError("teacher", f"{spec}, without weights", "weights behind an @: these images have no labels to train a teacher on")
    images = _labelled(data, data.subset, batch_size=data.batch_size)
    settings = replace(networks, teacher_epochs=networks.teacher_epochs or _TEACHER.epochs, teacher_lr=networks.teacher_lr or _TEACHER.lr)
    size = networks.teacher_size or data.image_size
    trust = lab.options.trust_pickle
    built = build_classifier(spec, num_classes=data.num_classes, image_size=size, trust_pickle=trust, argument="teacher")
    plan = settings.teacher_plan(_TEACHER)
    trained = lab.fit(Supervised(built.network), images.for_teacher(), plan, name=name, model=built.spec)
    accuracy, chance = trained.result.metrics["top1"], 100 / data.num_classes
    if accuracy <= 1.5 * chance and not networks.accept_teacher:
        got = f"{spec}, which is right in {accuracy:.1f} % of the validation images after its training"
        raise InputError("teacher", got, "one that learns more (--teacher-epochs), or --accept-teacher to go on with it")
    assert trained.network is not None
    return trained.network


def _labelled(data: RepresentationData, subset: int | None, *, batch_size: int) -> ImageData:
    """The same images with their labels, as a classifier learns from them."""
    shared: dict[str, Any] = {"image_size": data.image_size, "augment": data.augment, "mean": data.mean, "std": data.std}
    shared |= {"val_subset": data.val_subset, "subset_seed": data.subset_seed, "workers": data.workers, "strict": data.strict}
    return ImageData(data.data, subset=subset, batch_size=batch_size, **shared)


def _stored(lab: Lab, data: RepresentationData, teacher: Teacher, result: StageResult, views: Views) -> CachedTeacher:
    """The teachers' answers to these views of the training images, in the run's folder; goes on with what was begun.

    Of several processes the first asks the teachers, and the others wait.
    """
    with torch.no_grad():
        answers: Any = teacher(data.example_inputs())
    bytes_of = {"pooled": 4, "dense": 2}
    each = sum(bytes_of[kind] * prod(one.shape[1:]) for kind, parts in answers.items() for one in parts)
    shapes = "; ".join(f"{kind} {' + '.join('x'.join(map(str, one.shape[1:])) for one in parts)}" for kind, parts in answers.items())
    rows = data.train_size * views.count
    exactly = "pooled features exactly, maps in half precision" if "dense" in answers else "exactly"
    lab.say(_ANSWERS, f"{each * rows / 1e6:.1f} MB for {views.count} views of {data.train_size} images, {exactly} ({shapes})")
    options: dict[str, Any] = {"views": views, "storage": Storage("fp16"), "exact": TASK.exact, "about": data.describe()}

    def build() -> dict[str, torch.Tensor]:
        build_cache(lab.folder / _ANSWERS, teacher, data, result, device=lab.device, **options)
        return {"rows": torch.tensor(rows)}

    key = f"{teacher.fingerprint()} {data.cache_key} {views}"
    lab.remember(f"{_ANSWERS}-done", key, build)
    return CachedTeacher(lab.folder / _ANSWERS, data.cache_key)


def _tuned(lab: Lab, data: RepresentationData, stage: Trained, student: str, labels: int, *, knows: bool) -> Trained:
    """The stage with one figure more, ``tuned``: the accuracy of a classifier that starts from its backbone, trained on a few labels.

    Args:
        lab, data: where, on what.
        stage: whose backbone it starts from.
        student: the backbone's specification.
        labels: of each class.
        knows: the backbone was trained before: it learns at a tenth of its new head's rate.
    """
    few = _labelled(data, labels * data.num_classes, batch_size=min(data.batch_size, _TUNING_BATCH))
    size, trust = data.image_size, lab.options.trust_pickle
    spec = student.partition("@")[0]
    network = build_classifier(spec, num_classes=data.num_classes, image_size=size, trust_pickle=trust, argument="student").network
    assert stage.network is not None
    backbone: Mapping[str, torch.Tensor] = stage.network.state_dict()
    network.load_state_dict(backbone, strict=False)
    distiller = Supervised(network)
    if knows:
        distiller.new_head = tuple(sorted(name for name in network.state_dict() if name not in backbone))
    again = few.restricted(train=np.arange(_TUNING_STEPS * few.batch_size) % few.train_size)  # an epoch is so many steps, whatever few is
    tuned = lab.fit(
        distiller, again, _TUNING, name=f"{stage.name}-tuned", model=f"{spec} (fine-tuned)", origin=f"the backbone of {stage.name}"
    )
    metrics = {**stage.result.metrics, "tuned": tuned.result.metrics["top1"]}
    return replace(stage, result=replace(stage.result, metrics=metrics))


PRESETS: dict[str, dict[str, Any]] = {
    "dense": {"dense_weight": 1.0},
    "queue": {"feature_loss": "queue", "projector": "mlp"},
}

ROOM = Room(
    recipe,
    tasks=("representation",),
    presets=PRESETS,
    default={"data": "digits", "views": 8, "tune_labels": 5},
    expect="k-NN by the features was +17.0 +- 5.1 points over that of the backbone as it starts; a classifier fine-tuned on 5 labels of "
    "each class was +4.2 +- 2.4 points better from it, within noise (3 seeds). The teacher was trained on labels, the student saw none.",
    reason="learns from images without labels, on a task of its own: a comparison of classifiers has no place for it",
)
