"""The experiment: teachers, the backbone as it starts, and the same backbone distilled without a label; what its features are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from stillroom.engine import Experiment, Lab, Networks, Report, Room, Teacher, Trained, Training
from stillroom.engine.cache import CACHE, CachedTeacher, Storage, Views, build_cache
from stillroom.engine.report.results import Metric, StageResult
from stillroom.engine.task import WARNING
from stillroom.errors import InputError, at_least
from stillroom.methods.features.distiller import FeatureLoss, Features
from stillroom.methods.features.towers import Opened, SideBySide, Towers, named_teachers, open_teacher
from stillroom.tasks.classification import ImageData, Supervised, build_classifier
from stillroom.tasks.representation import TASK, RepresentationData

ADAMW = Training(epochs=30, optimizer="adamw", lr=2e-3, weight_decay=0.02, schedule="cosine")
_TEACHER = Training(epochs=20, lr=0.1, weight_decay=5e-4, schedule="onecycle")
_TUNING = Training(epochs=5, optimizer="adamw", lr=5e-3, weight_decay=0.02, schedule="cosine")
_TUNING_STEPS, _TUNING_BATCH = 40, 16  # of an epoch
_ANSWERS = "answers"  # the folder of a run's own cache


@dataclass(frozen=True)
class FeatureNetworks(Networks):
    """Which networks teach and learn.

    Args:
        teacher: network, with weights: ``timm/NAME@FILE``, ``torchvision/NAME@pretrained``, ``transformers/FOLDER`` (DINOv2, DINOv3, ViT,
            the image tower of a CLIP), ``nets.py:function``, a run's folder; its head is left out. Several with a + between them teach
            together. Without weights it is trained first, on the labels of the data. Or ``cache:FOLDER``, the answers of an earlier run.
        student: network, as above; its head is left out.
        teacher_epochs: epochs of the teacher, where it has to be trained; by default 20.
        teacher_lr: learning rate of the teacher, where it has to be trained; by default 0.1.
        accept_teacher: go on with a teacher that is no better than chance, where it had to be trained.
        teacher_size: pixels of the images that the teachers are given, resized from the student's crops; by default a teacher's own where
            it is made for one size, else the data's.
    """

    teacher_size: int | None = None


def recipe(
    lab: Lab,
    data: RepresentationData,
    plan: Training = ADAMW,
    networks: FeatureNetworks = FeatureNetworks("stillroom/convnet24", "stillroom/convnet12"),
    feature_loss: FeatureLoss = "cosine",
    projector: Literal["linear", "mlp"] = "linear",
    pooled_weight: float = 1.0,
    dense_weight: float = 0.0,
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
        dense_weight: weight of the distance of the last maps, place by place; 0 for none.
        queue_size: teacher embeddings that the queue holds.
        queue_temperatures: softmax temperatures over the queue, the student's and the teacher's.
        views: random versions of each image that are stored, in the run's folder, with the teachers' answers, pooled features exactly and
            maps in half precision; training then shows these in turn. By default none: the teachers answer at every step.
        tune_labels: labels of each class on which the backbone is fine-tuned at the end, as it starts and distilled; 0 for not.
    """
    dense, cached = dense_weight > 0, networks.teacher.startswith(CACHE)
    if tune_labels and not data.labelled:
        raise InputError("tune_labels", tune_labels, "0: the data have no labels")
    options: dict[str, Any] = {"loss": feature_loss, "projector": projector, "pooled_weight": pooled_weight, "dense_weight": dense_weight}
    options |= {"queue_size": queue_size, "queue_temperatures": queue_temperatures, "example": data.example_inputs()}
    experiment = Experiment(lab, data, plan, replace(networks, teacher=""))

    def made(teacher: Teacher) -> Any:
        return lambda student, *_: Features(student, teacher, **options)

    def opened(specs: Sequence[str]) -> list[Opened]:
        given: dict[str, Any] = {"dense": dense, "trust_pickle": lab.options.trust_pickle}
        return [open_teacher(spec, data, networks.teacher_size, **given) for spec in specs]

    if cached:
        if views is not None:
            raise InputError("views", views, "none: the cache has its own")
        teacher: Teacher = CachedTeacher(Path(networks.teacher.removeprefix(CACHE)), data.cache_key)
        experiment.rehearse(made(teacher))
        TASK.check_cache(teacher, data)  # type: ignore[arg-type]
        stages: dict[str, Trained] = {"teacher": _read(lab, teacher)}  # type: ignore[arg-type]
    else:
        specs = named_teachers(networks.teacher)
        with lab.shared():
            towers = opened(specs)
            experiment.rehearse(made(_frozen(lab, towers)))
            for number, tower in enumerate(towers):
                if not tower.trained:
                    learned = _trained(lab, data, networks, tower.spec, f"teacher{number + 1}-on-labels")
                    tower.tower.network.load_state_dict(learned.state_dict(), strict=False)  # all but its head
            stages = {"teacher": _scored(lab, data, towers)}
            teacher = _frozen(lab, towers)
            if views is not None:
                teacher = _stored(lab, data, teacher, stages["teacher"].result, Views(TASK.views(data, views), lab.options.seed))
    built = experiment.network(networks.student, "student")
    stages["start"] = lab.evaluate(built.network, data, name="start", model=built.spec, origin=_start(built.weights))
    stages["distilled"] = experiment.trained("distilled", made(teacher))
    if tune_labels:
        for name, knows in (("start", built.weights is not None), ("distilled", True)):
            labels = at_least("tune_labels", tune_labels, 1)
            stages[name] = _tuned(lab, data, stages[name], networks.student, labels, knows=knows)
    report = lab.report("features", data, stages, baseline="start", ship="distilled")
    report.metric_formats["tuned"] = Metric(f"fine-tuned, {tune_labels} labels a class", "%", 1, True)
    return report


def _frozen(lab: Lab, towers: Sequence[Opened]) -> Teacher:
    """Not folded: a tower reads the map of a module that folding might change."""
    network = Towers([tower.tower for tower in towers])
    return Teacher(network, precision=lab.options.torch_precision, compile=lab.options.teacher_compile, fold=False)


def _start(weights: str | None) -> str:
    return "random numbers" if weights is None else f"the weights of {weights}"


def _scored(lab: Lab, data: RepresentationData, towers: Sequence[Opened]) -> Trained:
    """The teachers' pooled features, scored as the student's are."""
    told = [(tower.spec, note) for tower in towers for note in tower.notes]
    loud = [f"{spec}: {note.removeprefix(WARNING)}" for spec, note in told if note.startswith(WARNING)]
    for note in loud:
        lab.say("teacher", f"{WARNING}{note}")
    quiet = "; ".join(note for _, note in told if not note.startswith(WARNING))
    model = " + ".join(tower.spec.partition("@")[0] for tower in towers)
    network = SideBySide([tower.tower for tower in towers])
    files = {tower.weights for tower in towers}
    weights = towers[0].weights if None not in files else None  # which lie on disk already: they may be large
    scored = lab.evaluate(network, data, name="teacher", model=f"{model} (features)", origin=quiet, weights=weights)
    return replace(scored, notes=tuple(f"{WARNING}{note}." for note in loud))


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


def _read(lab: Lab, teacher: CachedTeacher) -> Trained:
    """What was measured of a cache's teacher when it was built."""
    result: StageResult = replace(teacher.result, seed=lab.seed)
    return Trained("teacher", None, result, teacher.folder, teacher=teacher)


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
