"""CrKD's two stages as distillers: supervised pre-training on the known classes, and discovery under the supervised model's relations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Losses, Teacher
from stillroom.engine.distributed import averaged
from stillroom.errors import InputError, at_least, at_least_zero, one_of, positive
from stillroom.losses.precision import at_least_float32
from stillroom.methods.crkd.loss import Divergence, Weighting, discovery_targets, joint_logits, relation_loss, swapped_prediction
from stillroom.methods.crkd.networks import DiscoveryNetwork, train_only
from stillroom.methods.crkd.novel import KnownClassifier
from stillroom.tasks.images.views import ViewBatch


class Answers(NamedTuple):
    """A discovery network's answer at evaluation.

    Attributes:
        logits: [H, B, L + U] of every head.
        head_losses: S [H], the smallest of which says which head is best.
    """

    logits: Tensor
    head_losses: Tensor


class Pretraining(Distiller):
    """Stage 1: backbone and known head learn the known classes from their labels.

        L = mean over all views of CE(l / tau, label)

    Args:
        student: backbone and known head.
        trained_layers: module paths of the backbone that are trained, besides the head; all if none is named.
    """

    student: KnownClassifier

    def __init__(self, student: KnownClassifier, *, trained_layers: Sequence[str] = ()) -> None:
        super().__init__(student)
        self.trained_layers = tuple(trained_layers)
        train_only(student.backbone, self.trained_layers, "trained_layers")

    def losses(self, batch: ViewBatch) -> Losses:
        """Cross-entropy, averaged over the batch and over the views, each of which is a forward pass of its own."""
        if self.training:
            self.student.known.normalise()
        by_view = [cross_entropy(at_least_float32(self.student(view)), batch.labels) for view in batch.views]
        return Losses(task={"ce": torch.stack(by_view).mean()})


class Discovery(Distiller):
    """Stage 2: known classes are kept, novel ones found, and what the novel resemble among the known is what the supervised model says.

        L = mean over heads of L_cl + alpha * mean over heads of L_rel

    An image whose label is a known class (0 .. L-1) is labelled; every other label means unlabelled, and is not looked at.

    Over several processes the pseudo-labels are balanced over the images of all of them, and the heads' sums are averaged. The means of
    L_rel and of its weight are those of each process: an inference, as the released code runs in one.

    Args:
        student: the discovery network.
        teacher: the supervised network; answers with its known logits divided by its temperature.
        large_views: V, how many of a batch's views are large crops; they come first.
        relation_weight: alpha, weight of L_rel; with 0 this is UNO, and the teacher is not asked.
        temperature: temperature of softened class probabilities, T > 0; of the class relations, on top of the student's tau.
        weighting: of the unlabelled images in the distillation: learnable (the paper's) or constant.
        divergence: cross-entropy (the released code's) or kl (the paper's).
        sinkhorn_epsilon: of Sinkhorn; smaller makes harder pseudo-labels.
        sinkhorn_iterations: of its two normalisations.
        trained_layers: module paths of the backbone that discovery trains besides the heads, e.g. ``[blocks.11]``; all by default.

    Raises:
        InputError: a number is out of its range.
    """

    student: DiscoveryNetwork
    teacher: Teacher

    def __init__(
        self,
        student: DiscoveryNetwork,
        teacher: Teacher | nn.Module,
        *,
        large_views: int = 2,
        relation_weight: float = 0.1,
        temperature: float = 4.0,
        weighting: Weighting = "learnable",
        divergence: Divergence = "cross-entropy",
        sinkhorn_epsilon: float = 0.05,
        sinkhorn_iterations: int = 3,
        trained_layers: Sequence[str] = (),
    ) -> None:
        super().__init__(student, teacher)
        self.trained_layers = tuple(trained_layers)
        train_only(student.backbone, self.trained_layers, "trained_layers")
        self.large_views = at_least("large_views", large_views, 1)
        self.relation_weight = at_least_zero("relation_weight", relation_weight)
        self.cosine_temperature, self.temperature = student.temperature, positive("temperature", temperature)
        for name, choice, known in (("weighting", weighting, Weighting), ("divergence", divergence, Divergence)):
            one_of(name, choice, get_args(known))
        self.sinkhorn_iterations = at_least("sinkhorn_iterations", sinkhorn_iterations, 1)
        self.weighting, self.divergence = weighting, divergence
        self.sinkhorn_epsilon = positive("sinkhorn_epsilon", sinkhorn_epsilon)

    def shipped(self) -> nn.Module:
        """The classifier of the best head."""
        return self.student.best()

    def losses(self, batch: ViewBatch) -> Losses:
        """Swapped predictions and class relations, averaged over the heads; in train mode the heads' losses enter their sums."""
        views, large = batch.views, self.large_views
        if len(views) < large:
            raise InputError("large_views", large, f"at most the {len(views)} views of a batch")
        if self.training:
            if len(batch.ids) < 2:
                raise InputError("batch_size", len(batch.ids), "at least 2 images in each process: the heads' batch norm needs them")
            self.student.normalise_prototypes()
        known, novel = zip(*[self.student.cosines(view) for view in views], strict=True)  # batch norm sees each view by itself
        known_WBL, novel_WHBU = torch.stack(known), torch.stack(novel)
        logits_WHBK = joint_logits(known_WBL, novel_WHBU)
        known_classes = known_WBL.shape[-1]
        labelled_B = (batch.labels >= 0) & (batch.labels < known_classes)
        targets_VHBK = discovery_targets(
            novel_WHBU[:large],
            batch.labels,
            labelled_B,
            known_classes,
            epsilon=self.sinkhorn_epsilon,
            iterations=self.sinkhorn_iterations,
            over_processes=True,
        )
        cluster_H = swapped_prediction(logits_WHBK, targets_VHBK, self.cosine_temperature)
        if self.training:  # S_h: over the whole training, as the released code has it, and equal in all processes
            self.student.head_losses += averaged(cluster_H)
        task = {"cluster": cluster_H.mean()}
        if not self.relation_weight:
            return Losses(task)
        answers_NL = self.teacher(torch.cat(views[:large])) * self.cosine_temperature
        relation_H = relation_loss(
            logits_WHBK[:large],
            answers_NL.view(large, 1, -1, known_classes),
            labelled_B,
            cosine_temperature=self.cosine_temperature,
            temperature=self.temperature,
            weighting=self.weighting,
            divergence=self.divergence,
        )
        return Losses(task, distill={"relation": self.relation_weight * relation_H.mean()})

    def predict(self, batch: Any) -> Answers:
        """Every head's logits, and what says which head is best."""
        return Answers(self.student(batch.inputs), self.student.head_losses)
