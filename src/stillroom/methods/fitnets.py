"""FitNets: Hints for Thin Deep Nets (Romero, Ballas, Kahou, Chassang, Gatta, Bengio, ICLR 2015).

An intermediate layer of the student, the guided layer v_g, is led by one of the teacher's, the hint u_h. As the two differ in channels
and size, a convolutional regressor r stands between them and learns along (section 2.2, eq. 3):

    L_HT = 1/2 || u_h(x) - r(v_g(x)) ||^2

Paper and practice: the paper trains in two stages, first the layers up to the guided one with L_HT alone, then the whole student with
KD. Later benchmarks train once on both terms, with the mean over elements in the place of half the sum, and so does this file:

    L = w_task * CE(z_s, y) + w_hint * mean( (u_h(x) - r(v_g(x)))^2 )

For the paper's two stages train FitNets with ``task_weight=0`` first and then KD from the student it leaves.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Experiment, Lab, Losses, Networks, Report, Room, Teacher, Training, tap
from stillroom.engine.study.space import Float
from stillroom.errors import InputError, at_least_zero
from stillroom.losses.features import hint_loss
from stillroom.losses.precision import at_least_float32
from stillroom.modules.projectors import ConvRegressor, probing
from stillroom.tasks.classification import CIFAR100, CONVNETS, DIGITS, IMAGENET, PHOTOS, SHAPES, Batch, ImageData, middle_layer


class FitNets(Distiller):
    """Student trained on labels and on one intermediate layer of a frozen teacher.

    The regressor learns with the student and is no part of it. The student's layers behind `student_layer` learn from the labels only.

    Args:
        student: network from images [B, 3, H, W] to logits [B, C].
        teacher: the same signature.
        student_layer: module path of the guided layer, a map [B, C, H, W].
        teacher_layer: module path of the hint layer, a map [B, C', H', W'].
        example: a few inputs [B, 3, H, W], run once through both networks in eval mode to learn the maps' shapes.
        relu: True for a hint read behind a ReLU, False for one read before it; the regressor ends in the same non-linearity.
        task_weight: w_task, weight of the cross-entropy.
        hint_weight: w_hint, weight of the hint.

    Raises:
        InputError: a weight is out of its range, a layer does not answer with a map, or the two maps cannot be joined.
    """

    teacher: Teacher

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | nn.Module,
        *,
        student_layer: str,
        teacher_layer: str,
        example: Tensor,
        relu: bool = True,
        task_weight: float = 1.0,
        hint_weight: float = 100.0,
    ) -> None:
        super().__init__(student, teacher)
        self.task_weight, self.hint_weight = at_least_zero("task_weight", task_weight), at_least_zero("hint_weight", hint_weight)
        self.student_layer, self.teacher_layer = student_layer, teacher_layer
        self._student_with_guided = tap(student, student_layer, argument="student_layer")
        self._teacher_with_hint = self.teacher.tap(teacher_layer, argument="teacher_layer")
        with probing(student, example):
            guided = self._student_with_guided(example)[1][student_layer]
            hint = self._teacher_with_hint(example)[1][teacher_layer]
        for name, features in (("student_layer", guided), ("teacher_layer", hint)):
            if features.ndim != 4:
                raise InputError(name, f"features of shape {tuple(features.shape)}", "a map [B, C, H, W]")
        self.regressor = ConvRegressor(guided.shape[1:], hint.shape[1:], relu=relu)

    def losses(self, batch: Batch) -> Losses:
        """Cross-entropy, and the distance of the regressed guided layer to the hint."""
        _, hint = self._teacher_with_hint(batch)  # first: its working memory is free again
        logits_BC, guided = self._student_with_guided(batch.inputs)
        regressed_BCHW = self.regressor(guided[self.student_layer])
        return Losses(
            task={"ce": self.task_weight * cross_entropy(at_least_float32(logits_BC), batch.labels)},
            distill={"hint": self.hint_weight * hint_loss(regressed_BCHW, hint[self.teacher_layer])},
        )


def build(
    student: nn.Module,
    teacher: Teacher,
    data: ImageData,
    *,
    student_layer: str | None = None,
    teacher_layer: str | None = None,
    **options: Any,
) -> FitNets:
    """The distiller for `data`, for this recipe and those that host other methods.

    Args:
        student, teacher, data: what learns, what teaches, on what.
        student_layer: module path in the student; of the guided layer, by default a middle one (see `middle_layer`).
        teacher_layer: module path in the teacher; of the hint layer, likewise.
        options: those of `FitNets`.
    """
    example = data.example_inputs()
    return FitNets(
        student,
        teacher,
        student_layer=student_layer or middle_layer(student, example, "student_layer"),
        teacher_layer=teacher_layer or middle_layer(teacher.networks[0], example, "teacher_layer"),
        example=example,
        **options,
    )


def recipe(lab: Lab, data: ImageData, plan: Training = DIGITS, networks: Networks = CONVNETS, **options: Any) -> Report:
    """Train (or load) a teacher, a student alone, and the same student with hints; compare them.

    Args:
        lab, data, plan, networks: where to run, on what, how to train, and which networks; see `Room`.
        options: those of `build`.
    """

    def distiller(network: nn.Module, taught: Teacher) -> FitNets:
        return build(network, taught, data, **options)

    return Experiment(lab, data, plan, networks).run("fitnets", {"distilled": distiller})


PRESETS = {
    "paper": CIFAR100,
    "paper:imagenet": {**IMAGENET, "student_layer": "layer2", "teacher_layer": "layer2"},
    "photos": PHOTOS,
}

ROOM = Room(
    recipe,
    tasks=("classification",),
    presets=PRESETS,
    default={**SHAPES, "seeds": 3},
    expect="Within noise here: +3.4 +- 6.6 points over the student alone (3 seeds), where KD gains clearly; the paper sees the student "
    "above its teacher.",
    build=build,
    space={"hint_weight": Float(1.0, 1000.0, log=True)},
)
