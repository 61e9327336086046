"""L2D's student: labels, logits label by label, and the structure of label-wise embeddings."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import kl_div

from stillroom.engine import Losses, Teacher, tap
from stillroom.engine.distributed import whole_batch, world_size
from stillroom.errors import at_least_zero, one_of
from stillroom.losses.precision import in_one_type
from stillroom.methods.l2d.loss import led_losses, mld_loss, partial_softmax_loss
from stillroom.tasks.multilabel import EMBEDDINGS, Batch, MultiLabelDistiller, summed_bce


class L2D(MultiLabelDistiller):
    """Student trained on labels and on a frozen teacher's logits and label-wise embeddings.

        L = BCE + lambda_logits * L_MLD + lambda_LE * ( lambda_CD * L_CD + lambda_ID * L_ID )

    BCE is summed over batch and labels, MLD averaged over the batch, CD summed over labels, ID over images: the weights make sense with
    these reductions only. Over several processes all are those of the whole batch, and CD compares embeddings of all processes; the
    gradient reaches each process's own, as the released code's data-parallel loss on the gathered batch does.

    Args:
        student: network from images [B, 3, H, W] to logits [B, K], with label-wise embeddings [B, K, D] at `embeddings`.
        teacher: the same, with embeddings of any length.
        logits_weight: lambda_logits, weight of the logits' distance.
        embedding_weight: lambda_LE, weight of the embeddings' structure.
        class_aware_weight: lambda_CD, within it, of the images that share a label.
        instance_aware_weight: lambda_ID, within it, of the labels that share an image.
        logits_loss: ``mld``; or, to compare, ``psm`` (partial softmax) or ``softmax`` (KL of the softmax over labels, mean over the batch).
        embeddings: module path of the student's label-wise embeddings.
        teacher_embeddings: the teacher's, likewise.

    Raises:
        InputError: a weight below 0, an unknown loss, or no such module.
    """

    teacher: Teacher

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | nn.Module,
        *,
        logits_weight: float = 10.0,
        embedding_weight: float = 1.0,
        class_aware_weight: float = 100.0,
        instance_aware_weight: float = 1000.0,
        logits_loss: Literal["mld", "psm", "softmax"] = "mld",
        embeddings: str = EMBEDDINGS,
        teacher_embeddings: str = EMBEDDINGS,
    ) -> None:
        super().__init__(student, teacher)
        self.logits_weight = at_least_zero("logits_weight", logits_weight)
        self.embedding_weight = at_least_zero("embedding_weight", embedding_weight)
        self.class_aware_weight = at_least_zero("class_aware_weight", class_aware_weight)
        self.instance_aware_weight = at_least_zero("instance_aware_weight", instance_aware_weight)
        one_of("logits_loss", logits_loss, ("mld", "psm", "softmax"))
        self.logits_loss = logits_loss
        self.embeddings, self.teacher_embeddings = embeddings, teacher_embeddings
        self._student_with_embeddings = tap(student, embeddings, argument="embeddings")
        self._teacher_with_embeddings = self.teacher.tap(teacher_embeddings, argument="teacher_embeddings")

    def losses(self, batch: Batch) -> Losses:
        """The terms of the whole batch, of all processes together, weighted."""
        logits_BK, features = self._student_with_embeddings(batch.inputs)
        teacher_BK, embeddings_BKE = self.taught(batch)
        cd, id_ = self.structure(features[self.embeddings], embeddings_BKE, batch.labels)
        return Losses(
            task={"bce": world_size() * summed_bce(logits_BK, batch.labels)},
            distill={
                self.logits_loss: self.logits_weight * self.logits_term(logits_BK, teacher_BK, batch.labels),
                "cd": self.embedding_weight * self.class_aware_weight * cd,
                "id": self.embedding_weight * self.instance_aware_weight * id_,
            },
        )

    def taught(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's logits [B, K] and label-wise embeddings [B, K, E]."""
        logits_BK, hints = self._teacher_with_embeddings(batch)
        return logits_BK, hints[self.teacher_embeddings]

    def logits_term(self, logits_BK: Tensor, teacher_BK: Tensor, labels_BK: Tensor) -> Tensor:
        """The distance of the logits, averaged over the batch."""
        if self.logits_loss == "mld":
            return mld_loss(logits_BK, teacher_BK)
        if self.logits_loss == "psm":
            return partial_softmax_loss(logits_BK, teacher_BK, labels_BK)
        log_q_BK, log_p_BK = (each.log_softmax(1) for each in in_one_type(logits_BK, teacher_BK.detach()))
        return kl_div(log_q_BK, log_p_BK, log_target=True, reduction="batchmean")

    def structure(self, student_BKD: Tensor, teacher_BKE: Tensor, labels_BK: Tensor) -> tuple[Tensor, Tensor]:
        """L_CD and L_ID of the batch of all processes."""
        return led_losses(whole_batch(student_BKD), whole_batch(teacher_BKE), whole_batch(labels_BK))
