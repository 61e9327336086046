"""CRD - Contrastive Representation Distillation (Tian, Krishnan, Isola, ICLR 2020).

The student's representation S(x) of an image should say as much as possible about the teacher's T(x). A critic tells pairs of the
same image from pairs of different ones; driving it up raises a lower bound of the mutual information of the two (section 3.1):

    h(T, S) = exp(g_T(T)' g_S(S) / tau) / ( exp(g_T(T)' g_S(S) / tau) + N/M )

    max over S, g_T, g_S of   E_joint[ log h(T, S) ] + N E_product[ log(1 - h(T, S)) ]

with g_T and g_S linear maps to the unit sphere, N negatives for each positive and M training images. It is asked in both directions:
the student's embedding as anchor against the teacher's memory, and the teacher's against the student's. Training minimises

    L = w_task * CE(z_s, y) + w * ( L_student_anchor + L_teacher_anchor )

Paper and practice: in the paper exp(. / tau) enters the critic as it is. Here, as in the practice that published figures come from, it is
first divided by a constant estimated on the first batch, one for each direction (Wu et al. 2018; see
`stillroom.modules.contrast_memory`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Experiment, Lab, Losses, Networks, Report, Room, Teacher, Training, tap
from stillroom.engine.study.space import Float
from stillroom.errors import InputError, at_least_zero, positive
from stillroom.losses.contrast import crd_loss
from stillroom.losses.precision import at_least_float32
from stillroom.modules.contrast_memory import ContrastMemory
from stillroom.modules.projectors import LinearEmbedding, probing
from stillroom.tasks.classification import CIFAR100, CONVNETS, DIGITS, IMAGENET, PHOTOS, SHAPES, Batch, ImageData, pooled_layer


class CRD(Distiller):
    """Student trained on labels and on a contrast between its features and a frozen teacher's.

    The two embeddings learn with the student and are no part of it. They get gradient from the contrast only, and the student's layers
    behind `student_layer` from the labels only. `batch.ids` count the set of `train_labels`; in eval mode the memory stays as it is.

    Args:
        student: network from images [B, 3, H, W] to logits [B, C].
        teacher: the same signature.
        student_layer, teacher_layer: module paths of the pooled features, [B, D] or a map [B, D, H, W], which is averaged over its pixels.
        train_labels: [M] class of each training image by id: negatives come from other classes. With ``torch.arange(M)`` every other
            image may be one.
        example: a few inputs [B, 3, H, W], run once through both networks in eval mode to learn the features' widths.
        embed_dim: length of the embeddings; in which the features meet.
        contrast_temperature: temperature of the contrast; tau > 0 of the critic.
        momentum: share of the old row when the memory moves on, in [0, 1).
        negatives: N for each image and direction.
        task_weight: w_task, weight of the cross-entropy.
        contrast_weight: weight of the contrast, w.

    Raises:
        InputError: a number is out of its range, or a layer does not answer with features of this form.
    """

    teacher: Teacher

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | nn.Module,
        *,
        student_layer: str,
        teacher_layer: str,
        train_labels: Tensor,
        example: Tensor,
        embed_dim: int = 128,
        contrast_temperature: float = 0.07,
        momentum: float = 0.5,
        negatives: int = 16384,
        task_weight: float = 1.0,
        contrast_weight: float = 0.8,
    ) -> None:
        super().__init__(student, teacher)
        self.task_weight = at_least_zero("task_weight", task_weight)
        self.contrast_weight = at_least_zero("contrast_weight", contrast_weight)
        self.student_layer, self.teacher_layer = student_layer, teacher_layer
        self._student_with_features = tap(student, student_layer, argument="student_layer")
        self._teacher_with_features = self.teacher.tap(teacher_layer, argument="teacher_layer")
        with probing(student, example):
            student_BD = _pooled(self._student_with_features(example)[1][student_layer], "student_layer")
            teacher_BD = _pooled(self._teacher_with_features(example)[1][teacher_layer], "teacher_layer")
        self.student_embedding = LinearEmbedding(student_BD.shape[1], embed_dim)
        self.teacher_embedding = LinearEmbedding(teacher_BD.shape[1], embed_dim)
        self.memory = ContrastMemory(
            len(train_labels),
            embed_dim,
            negatives=negatives,
            temperature=positive("contrast_temperature", contrast_temperature),
            momentum=momentum,
            labels=train_labels,
        )

    def losses(self, batch: Batch) -> Losses:
        """Cross-entropy, and the contrast in both directions. In train mode the memory takes in the batch afterwards."""
        _, teacher_features = self._teacher_with_features(batch)  # first: its working memory is free again
        logits_BC, student_features = self._student_with_features(batch.inputs)
        student_BE = self.student_embedding(_pooled(student_features[self.student_layer], "student_layer"))
        teacher_BE = self.teacher_embedding(_pooled(teacher_features[self.teacher_layer], "teacher_layer"))
        by_student_BK1, by_teacher_BK1 = self.memory(student_BE, teacher_BE, batch.ids)
        contrast = crd_loss(by_student_BK1, self.memory.num_samples) + crd_loss(by_teacher_BK1, self.memory.num_samples)
        if self.training:
            self.memory.update(student_BE, teacher_BE, batch.ids)
        return Losses(
            task={"ce": self.task_weight * cross_entropy(at_least_float32(logits_BC), batch.labels)},
            distill={"crd": self.contrast_weight * contrast},
        )


def _pooled(features: Tensor, argument: str) -> Tensor:
    """[B, D] from [B, D] or, averaged over pixels, from [B, D, H, W]."""
    if features.ndim not in (2, 4):
        raise InputError(argument, f"features of shape {tuple(features.shape)}", "pooled features [B, D] or a map [B, D, H, W]")
    return features if features.ndim == 2 else features.mean((2, 3))


def build(
    student: nn.Module,
    teacher: Teacher,
    data: ImageData,
    *,
    student_layer: str | None = None,
    teacher_layer: str | None = None,
    momentum_of_memory: float = 0.5,
    negatives: int = 1024,
    **options: Any,
) -> CRD:
    """The distiller for `data`, for this recipe and those that host other methods.

    Args:
        student, teacher, data: what learns, what teaches, on what.
        student_layer: module path in the student; of its features, by default the pooled ones. ``PATH:input`` is what a
            module is given.
        teacher_layer: module path in the teacher; likewise.
        momentum_of_memory: share of the old embedding when the memory moves on, from 0 and below 1.
        negatives: other images that each image is contrasted with, in each direction (the paper: 16384).
        options: those of `CRD`.
    """
    example = data.example_inputs()
    return CRD(
        student,
        teacher,
        student_layer=student_layer or pooled_layer(student, example, "student_layer"),
        teacher_layer=teacher_layer or pooled_layer(teacher.networks[0], example, "teacher_layer"),
        train_labels=data.train_labels,
        example=example,
        momentum=momentum_of_memory,
        negatives=negatives,
        **options,
    )


def recipe(lab: Lab, data: ImageData, plan: Training = DIGITS, networks: Networks = CONVNETS, **options: Any) -> Report:
    """Train (or load) a teacher, a student alone, and the same student with CRD; compare them.

    Args:
        lab, data, plan, networks: where to run, on what, how to train, and which networks; see `Room`.
        options: those of `build`.
    """

    def distiller(network: nn.Module, taught: Teacher) -> CRD:
        return build(network, taught, data, **options)

    return Experiment(lab, data, plan, networks).run("crd", {"distilled": distiller})


PRESETS = {
    "paper": {**CIFAR100, "negatives": 16384},
    "paper:imagenet": {**IMAGENET, "negatives": 16384},
    "photos": PHOTOS,
}

ROOM = Room(
    recipe,
    tasks=("classification",),
    presets=PRESETS,
    default={**SHAPES, "seeds": 3},
    expect="A gain, since the teacher was trained on ten times as many pictures: +6.9 +- 2.2 points over the student alone (3 seeds), less "
    "than KD's; the paper sees it above KD.",
    build=build,
    space={"contrast_weight": Float(0.08, 8.0, log=True), "contrast_temperature": Float(0.03, 0.3, log=True)},
)
