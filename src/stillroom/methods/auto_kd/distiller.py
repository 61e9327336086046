"""A student under a composed distiller: aligned features of one layer or several, of one teacher or several (sections 1, 6 and 7 of
Auto-KD's specification)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy
from torch.utils._pytree import tree_leaves

from stillroom.engine import Distiller, Losses, Teacher, tap
from stillroom.engine.cache import CachedTeacher
from stillroom.engine.tap import module_paths
from stillroom.errors import InputError, one_of
from stillroom.losses.composed import Composition
from stillroom.losses.precision import at_least_float32
from stillroom.methods.auto_kd.weighting import TAU_W, layer_and_teacher_weights, similarities
from stillroom.modules.projectors import probing
from stillroom.tasks.images.layers import dense_layer

LayerWeights = Literal["training-free", "equal"]
DISTILLER = "channel>kl4*10"
PYRAMIDS = ("pyramid", "model.backbone", "backbone")  # where detectors have the maps that their heads read
_INITIALISATIONS = 3
_COMPARED = 128  # images
_MOST_BEFORE = 17  # tokens of classes and registers, before those of places


class Aligned(nn.Module):
    """Brings a student's map to a teacher's channels, and the larger of the two to the smaller one's size.

    Where channels differ, a 1x1 convolution without bias and a batch norm; where sizes do, adaptive average pooling.

    Args:
        channels: of the student's map.
        wanted: of the teacher's.

    Source: Auto-KD's specification, section 1.
    """

    def __init__(self, channels: int, wanted: int) -> None:
        super().__init__()
        self.project = nn.Sequential()
        if channels != wanted:
            conv = nn.Conv2d(channels, wanted, 1, bias=False)
            nn.init.kaiming_normal_(conv.weight)
            self.project.extend([conv, nn.BatchNorm2d(wanted)])

    def forward(self, student_NCHW: Tensor, teacher_NDHW: Tensor) -> tuple[Tensor, Tensor]:
        """Two maps [N, D, H, W]."""
        height, width = (min(pair) for pair in zip(student_NCHW.shape[2:], teacher_NDHW.shape[2:], strict=True))
        student, teacher = (
            one if one.shape[2:] == (height, width) else adaptive_avg_pool2d(one, (height, width))
            for one in (self.project(student_NCHW), teacher_NDHW)
        )
        return student, teacher


class Searched(Distiller):
    """Student trained on labels and by a composed distance from one frozen teacher or several: L = L_task + sum mu_m lambda_ml D(F_s, F_t).

    Args:
        student: network from images [B, 3, H, W] to logits [B, C], or with `plain` what that trains.
        teacher: the same signature; a network or a cache of its answers.
        distiller: the composition, see `Composition.read`.
        student_layer: module paths of maps [B, C, H, W], tokens [B, L, C] or vectors [B, C], or of modules that answer with several maps;
            with + between. Not read where logits are compared.
        teacher_layer: as many in the teacher.
        example: a few inputs, run once through the networks in eval mode to learn the features' shapes.
        more_teachers: further teachers and their layers.
        weights: lambda mu, for each teacher's layers, see `weigh`; by default all 1.
        plain: the task's own training of the student on labels, where it is no classifier.

    Raises:
        InputError: a composition that cannot be read, unknown layers, or features that cannot be compared.
    """

    teacher: Teacher

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | nn.Module,
        *,
        distiller: str,
        student_layer: str,
        teacher_layer: str,
        example: Any,
        more_teachers: Sequence[tuple[Teacher, str]] = (),
        weights: Sequence[Sequence[float]] | None = None,
        plain: Distiller | None = None,
    ) -> None:
        super().__init__(student, teacher)
        self._composition = Composition.read(distiller)
        self.distiller, self.student_layer, self.teacher_layer = str(self._composition), student_layer, teacher_layer
        self.more_teachers = tuple((one.fingerprint(), layer) for one, layer in more_teachers)
        self._plain = (plain,)  # in a tuple, since its student would be this one's a second time
        if self._composition.logits and plain is not None:
            raise InputError("distiller", distiller, "features for this task: logits are compared in classification")
        self._student_with = tap(student, *_paths(student_layer), argument="student_layer")
        taught = [(self.teacher, teacher_layer), *more_teachers]
        self._teachers_with = [one.tap(*_paths(layer), argument="teacher_layer") for one, layer in taught]
        with probing(student, example):
            mine = features_of(self._student_with(example)[1])
            theirs = [features_of(told(example)[1]) for told in self._teachers_with]
        for features in theirs:
            if len(features) != len(mine):
                raise InputError("teacher_layer", f"{len(features)} features", f"as many as of the student, {len(mine)}")
        self.aligned = nn.ModuleList(
            nn.ModuleList(Aligned(ours.shape[1], hint.shape[1]) for ours, hint in zip(mine, features, strict=True)) for features in theirs
        )
        self.weights = tuple(tuple(row) for row in weights or [[1.0] * len(mine)] * len(theirs))

    def losses(self, batch: Any) -> Losses:
        """The task's own terms, and the weighted distances of all layers from all teachers."""
        told = [answer(batch) for answer in self._teachers_with]  # first: their working memory is free again
        task, answer, features = self._own(batch)
        if self._composition.logits:
            total = torch.stack([self._composition(answer, logits) for logits, _ in told]).sum()
            return Losses(task=task, distill={"distiller": total})
        mine, terms = features_of(features), []
        for (_, hints), modules, weights in zip(told, self.aligned, self.weights, strict=True):
            align: Any = modules
            for ours, hint, aligned, weight in zip(mine, features_of(hints), align, weights, strict=True):
                terms.append(weight * self._composition(*aligned(ours, hint)))
        return Losses(task=task, distill={"distiller": torch.stack(terms).sum()})

    def task_losses(self, batch: Any) -> Losses:
        """The task's own terms alone."""
        return Losses(task=self._own(batch)[0])

    def _own(self, batch: Any) -> tuple[dict[str, Tensor], Any, Any]:
        """The task's terms, the student's answer (None where the task asks it otherwise), and what was tapped."""
        plain = self._plain[0]
        if plain is not None:
            losses, features = self._student_with.during(lambda: plain.losses(batch))
            return dict(losses.terms), None, features
        logits_BC, features = self._student_with(batch.inputs)
        return {"ce": cross_entropy(at_least_float32(logits_BC), batch.labels)}, logits_BC, features

    def predict(self, batch: Any) -> Any:
        """The student's answer."""
        return self.student(batch.inputs) if self._plain[0] is None else self._plain[0].predict(batch)


def features_of(tapped: Any) -> list[Tensor]:
    """The maps [N, C, H, W] in what was tapped, in their order: tokens as maps without what stands before them, vectors as maps of one
    position."""
    return [_as_map(leaf) for leaf in tree_leaves(tapped) if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 1]


def _as_map(features: Tensor) -> Tensor:
    if features.ndim == 4:
        return features
    if features.ndim == 2:
        return features[:, :, None, None]
    if features.ndim == 3:
        length = features.shape[1]
        for before in range(min(length, _MOST_BEFORE)):
            side = math.isqrt(length - before)
            if side * side == length - before:
                return features[:, before:].transpose(1, 2).unflatten(2, (side, side))
    raise InputError("student_layer", f"features of shape {list(features.shape)}", "maps [B, C, H, W], tokens [B, L, C] or vectors [B, C]")


def _paths(layers: str) -> list[str]:
    return [path for path in layers.split("+") if path]


def build(
    student: nn.Module,
    teacher: Teacher,
    data: Any,
    *,
    distiller: str = DISTILLER,
    student_layer: str | None = None,
    teacher_layer: str | None = None,
    layer_weights: LayerWeights = "training-free",
) -> Searched:
    """The distiller for `data`, for this recipe and those that host other methods.

    Args:
        student, teacher, data: what learns, what teaches, on what.
        distiller: the composition, such as ``satt>local4>channel>kl4*10``: what is done to both networks' features, how they are compared,
            and the weight; the page of the method lists the words.
        student_layer: module path in the student; of its last features by default (of a detector its pyramid), or several with + between.
        teacher_layer: module path in the teacher; likewise, as many.
        layer_weights: how several layers and teachers are weighed: ``training-free``, by their similarity to the untrained student, or
            ``equal``.
    """
    return make_searched(student, [teacher], data, distiller, student_layer, teacher_layer, layer_weights)


def make_searched(
    student: nn.Module,
    teachers: Sequence[Teacher],
    data: Any,
    distiller: str,
    student_layer: str | None = None,
    teacher_layer: str | None = None,
    layer_weights: LayerWeights = "training-free",
    kind: Callable[..., Searched] = Searched,
) -> Searched:
    """A student under the distiller, for one teacher or several; see `build`. `kind` makes it."""
    one_of("layer_weights", layer_weights, get_args(LayerWeights))
    student_layer = student_layer or find_layer(student, data, "student_layer")
    layers = [teacher_layer or teacher_layer_of(teacher, data) for teacher in teachers]
    weights = None
    if layer_weights == "training-free" and not Composition.read(distiller).logits:
        weights = weigh(student, student_layer, list(zip(teachers, layers, strict=True)), data)
    return kind(
        student,
        teachers[0],
        distiller=distiller,
        student_layer=student_layer,
        teacher_layer=layers[0],
        example=data.example_inputs(),
        more_teachers=list(zip(teachers[1:], layers[1:], strict=True)),
        weights=weights,
        plain=None if data.task.name == "classification" else data.task.supervised(student),
    )


def find_layer(network: nn.Module, data: Any, argument: str) -> str:
    """The default layer: the last features that have places, of a detector the maps that its head reads."""
    if data.task.name != "detection":
        return dense_layer(network, data.example_inputs(), argument)
    paths = module_paths(network)
    if found := next((path for path in PYRAMIDS if path in paths), None):
        return found
    raise InputError(argument, "nothing", f"the module path of the maps that the head of {type(network).__name__} reads")


def teacher_layer_of(teacher: Teacher, data: Any) -> str:
    """A teacher's default layer; of a cache the features that are stored in it."""
    if isinstance(teacher, CachedTeacher) and teacher.stored:
        return "+".join(teacher.stored)
    return find_layer(teacher.networks[0], data, "teacher_layer")


def weigh(student: nn.Module, student_layer: str, teachers: Sequence[tuple[Teacher, str]], data: Any) -> list[list[float]]:
    """lambda mu for each teacher's layers, before any training: by the similarity of their features to those of the student as it is and
    of two copies with other random weights, on some training images. The student is left as it is."""
    example, first = data.example_inputs(), teachers[0][0]
    with probing(student, example):
        features = len(features_of(tap(student, *_paths(student_layer), argument="student_layer")(example)[1]))
    if features == len(teachers) == 1:
        return [[1.0]]
    shown = data.replaying(first.views) if isinstance(first, CachedTeacher) and data.views is None else data
    batch = shown.train_loader(seed=0).first(_COMPARED if data.task.name == "classification" else data.batch_size)
    with probing(student, batch.inputs):
        seen = [features_of(tap(one, *_paths(student_layer))(batch.inputs)[1]) for one in _initialisations(student)]
        told = [features_of(one.tap(*_paths(layer), argument="teacher_layer")(batch)[1]) for one, layer in teachers]
        found = similarities(seen, told)
    layers_ML, teachers_M = layer_and_teacher_weights(found.float(), TAU_W)
    return [[round(float(weight), 6) for weight in row] for row in layers_ML * teachers_M[:, None]]


def _initialisations(student: nn.Module) -> list[nn.Module]:
    """The student, and copies whose modules have drawn their weights anew; in eval mode."""
    copies = [copy.deepcopy(student) for _ in range(_INITIALISATIONS - 1)]
    for number, one in enumerate(copies):
        torch.manual_seed(number)  # inside `probing`, which puts the generators back
        for module in one.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return [student, *(one.eval() for one in copies)]
