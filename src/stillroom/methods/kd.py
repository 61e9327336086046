"""KD - Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean 2015).

A student matches the teacher's softened class probabilities besides the labels:

    L = w_task * CE(z_s, y) + w_kd * T^2 * KL( softmax(z_t / T) || softmax(z_s / T) )

T^2 keeps the gradient's size independent of the temperature (section 2 of the paper). Of images that nobody labelled there is the second
term alone: the paper speaks of such a "transfer set" in section 2.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Experiment, Lab, Losses, Networks, Report, Room, Teacher, Training
from stillroom.engine.study.space import Float
from stillroom.errors import at_least_zero, positive
from stillroom.losses.logits import kd_loss
from stillroom.losses.precision import at_least_float32
from stillroom.tasks.classification import CIFAR100, CONVNETS, DIGITS, IMAGENET, PHOTOS, SHAPES, TINY_IMAGENET, Batch, ImageData
from stillroom.tasks.images.unlabelled import NO_LABEL


class KD(Distiller):
    """Student trained on labels and on a frozen teacher's logits.

    Args:
        student: network from images [B, 3, H, W] to logits [B, C].
        teacher: the same signature; a network or a cache of its answers.
        temperature: temperature of softened class probabilities, T > 0; larger shows more of the teacher's ranking of wrong classes.
        task_weight: w_task, weight of the cross-entropy.
        kd_weight: w_kd, weight of the distillation loss.

    Raises:
        InputError: the temperature is not above 0, or a weight is below it.
    """

    teacher: Teacher

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | nn.Module,
        *,
        temperature: float = 4.0,
        task_weight: float = 0.1,
        kd_weight: float = 0.9,
    ) -> None:
        super().__init__(student, teacher)
        self.labelled_share = 1.0  # of the images; below 1 labels of -1 stand for none
        self.temperature = positive("temperature", temperature)
        self.task_weight, self.kd_weight = at_least_zero("task_weight", task_weight), at_least_zero("kd_weight", kd_weight)

    def losses(self, batch: Batch) -> Losses:
        """Cross-entropy, averaged over the images with a label, and the divergence from the teacher, averaged over all.

        A batch has as many labelled images as chance gives it; the average is over their number in the mean batch, so that processes need
        not ask each other for it.
        """
        teacher_BC = self.teacher(batch)  # first: its working memory is free again
        logits_BC = self.student(batch.images)
        if self.labelled_share < 1:
            total = cross_entropy(at_least_float32(logits_BC), batch.labels, ignore_index=NO_LABEL, reduction="sum")
            ce = total / (len(logits_BC) * self.labelled_share)
        else:
            ce = cross_entropy(at_least_float32(logits_BC), batch.labels)
        return Losses(
            task={"ce": self.task_weight * ce},
            distill={"kd": self.kd_weight * kd_loss(logits_BC, teacher_BC, self.temperature)},
        )


def build(student: nn.Module, teacher: Teacher, data: ImageData, **options: Any) -> KD:
    """The distiller for `data`, for this recipe and those that host other methods; the options are those of `KD`."""
    made = KD(student, teacher, **options)
    made.labelled_share = data.train_size / (data.train_size + data.unlabelled)
    return made


def recipe(lab: Lab, data: ImageData, plan: Training = DIGITS, networks: Networks = CONVNETS, **options: Any) -> Report:
    """Train (or load) a teacher, a student alone, and the same student with KD; compare them.

    Args:
        lab, data, plan, networks: where to run, on what, how to train, and which networks; see `Room`.
        options: those of `KD`.
    """

    def distiller(network: nn.Module, taught: Teacher) -> KD:
        return build(network, taught, data, **options)

    return Experiment(lab, data, plan, networks).run("kd", {"distilled": distiller})


PRESETS = {
    "paper": CIFAR100,
    "paper:tiny-imagenet": TINY_IMAGENET,
    "paper:imagenet": {**IMAGENET, "temperature": 1.0, "task_weight": 0.5, "kd_weight": 0.5},
    "photos": PHOTOS,
}

ROOM = Room(
    recipe,
    tasks=("classification",),
    presets=PRESETS,
    default={**SHAPES, "seeds": 3},
    expect="A clear gain, since the teacher was trained on ten times as many pictures: +17.7 +- 2.8 points over the student alone "
    "(3 seeds).",
    build=build,
    space={"temperature": Float(1.0, 16.0, log=True), "task_weight": Float(0.01, 1.0, log=True), "kd_weight": Float(0.1, 10.0, log=True)},
    unlabelled=True,
)
