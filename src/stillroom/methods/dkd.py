"""DKD - Decoupled Knowledge Distillation (Zhao, Cui, Song, Qiu, Liang, CVPR 2022).

KD's divergence splits into how sure the teacher is of the target (TCKD) and how it ranks the other classes (NCKD). KD couples the
second to 1 - p_y, so it vanishes where the teacher is sure; DKD weighs the two freely:

    L = w_task * CE(z_s, y) + min(epoch / warmup, 1) * ( alpha * TCKD + beta * NCKD )

    TCKD = T^2 * KL( (p^t_y, 1 - p^t_y) || (p^s_y, 1 - p^s_y) )        NCKD = T^2 * KL( q^t || q^s ), q over the classes c != y
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Experiment, Lab, Losses, Networks, Report, Room, Teacher, Training
from stillroom.engine.study.space import Float
from stillroom.errors import at_least_zero, positive
from stillroom.losses.logits import dkd_loss
from stillroom.losses.precision import at_least_float32
from stillroom.tasks.classification import CIFAR100, CONVNETS, DIGITS, IMAGENET, PHOTOS, SHAPES, Batch, ImageData


class DKD(Distiller):
    """Student trained on labels and on the two decoupled parts of a frozen teacher's logits.

    Args:
        student: network from images [B, 3, H, W] to logits [B, C].
        teacher: the same signature; a network or a cache of its answers.
        alpha: weight of the target-class part.
        beta: weight of the non-target part; larger for a teacher that is sure of its answers (the paper: 8 by default; 2 for res56 to
            res20 and res110 to res32, 6 for VGG and WRN pairs).
        temperature: temperature of softened class probabilities, T > 0; larger shows more of the teacher's ranking of wrong classes.
        task_weight: w_task, weight of the cross-entropy.
        warmup: epochs over which the distillation loss grows to its weight; 0 for none.

    Raises:
        InputError: the temperature is not above 0, or another number is below it.
    """

    teacher: Teacher

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | nn.Module,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        task_weight: float = 1.0,
        warmup: float = 20,
    ) -> None:
        super().__init__(student, teacher)
        self.alpha, self.beta = at_least_zero("alpha", alpha), at_least_zero("beta", beta)
        self.temperature = positive("temperature", temperature)
        self.task_weight, self.warmup = at_least_zero("task_weight", task_weight), at_least_zero("warmup", warmup)

    def losses(self, batch: Batch) -> Losses:
        """Cross-entropy and the decoupled divergences, each averaged over the batch."""
        teacher_BC = self.teacher(batch)  # first: its working memory is free again
        logits_BC = self.student(batch.images)
        dkd = dkd_loss(logits_BC, teacher_BC, batch.labels, alpha=self.alpha, beta=self.beta, temperature=self.temperature)
        return Losses(
            task={"ce": self.task_weight * cross_entropy(at_least_float32(logits_BC), batch.labels)},
            distill={"dkd": self.ramp(self.warmup) * dkd},
        )


def build(student: nn.Module, teacher: Teacher, data: ImageData, **options: Any) -> DKD:
    """The distiller for `data`, for this recipe and those that host other methods; the options are those of `DKD`."""
    return DKD(student, teacher, **options)


def recipe(lab: Lab, data: ImageData, plan: Training = DIGITS, networks: Networks = CONVNETS, **options: Any) -> Report:
    """Train (or load) a teacher, a student alone, and the same student with DKD; compare them.

    Args:
        lab, data, plan, networks: where to run, on what, how to train, and which networks; see `Room`.
        options: those of `DKD`.
    """

    def distiller(network: nn.Module, taught: Teacher) -> DKD:
        return build(network, taught, data, **options)

    return Experiment(lab, data, plan, networks).run("dkd", {"distilled": distiller})


PRESETS = {
    "paper": CIFAR100,
    "paper:imagenet": {**IMAGENET, "alpha": 1.0, "beta": 0.5, "temperature": 1.0, "warmup": 1},
    "photos": PHOTOS,
}

ROOM = Room(
    recipe,
    tasks=("classification",),
    presets=PRESETS,
    default={**SHAPES, "seeds": 3},
    expect="A clear gain, since the teacher was trained on ten times as many pictures: +18.2 +- 2.5 points over the student alone "
    "(3 seeds), level with KD; the paper sees it above KD.",
    build=build,
    space={"alpha": Float(0.1, 10.0, log=True), "beta": Float(0.5, 16.0, log=True), "temperature": Float(1.0, 16.0, log=True)},
)
