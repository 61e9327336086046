"""KD^3's training: which images an epoch shows (part 1), and what a step minimises (parts 2, 3a and 3b)."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from stillroom.engine import Distiller, Losses, Teacher
from stillroom.engine.distributed import gather_rows, rank, world_size
from stillroom.engine.run.written import write_atomic
from stillroom.errors import InputError, at_least_zero, one_of, positive
from stillroom.losses.contrast import nt_xent
from stillroom.losses.logits import kd_loss
from stillroom.methods.kd3.loss import disagreement_weight, weighted_feature_loss
from stillroom.methods.kd3.mixdistribution import MixDistribution, Partners
from stillroom.methods.kd3.selection import Selection, blended_prediction, keep_enough, teacher_weight
from stillroom.methods.kd3.shared_classifier import SharedClassifier, shrunk
from stillroom.methods.kd3.web import WebData
from stillroom.modules.projectors import LinearEmbedding
from stillroom.tasks.classification import Batch, ImageData

logger = logging.getLogger(__name__)

Scoring = Literal["changed", "plain"]
Contrast = Literal["separate", "cross"]


class KD3(Distiller):
    """A student that learns from unlabelled images only, those of each epoch chosen by teacher and student together.

        L = L_feat + gamma * L_con        L_con = C(a_s, b_s) + C(a_t, b_t)

    a, b are the embeddings of an image and of its view in another style. The embeddings learn with the student and are no part of it; the
    teacher's term trains the teacher's embedding alone. Negatives are those of each process.

    Args:
        student: ends in the teacher's classifier (`share_classifier`).
        teacher: from images [B, 3, H, W] to logits [B, K].
        web: the images to learn from.
        teacher_layer: module path of the teacher's last map before the pooling.
        selection: choose each epoch's images; else every epoch shows all.
        cutoff: tau.
        switch_off: E_max in epochs; by default half of the run.
        offset: c in epochs; by default two thirds of the run.
        steepness: s.
        scoring: ``changed``: the images are scored changed as in training, which makes the choice random as in the released code;
            ``plain``: as in evaluation.
        weighted: weigh images by w in L_feat.
        mix_beta: a > 0 of MixDistribution's lambda ~ Beta(a, a).
        mix_probability: how often a batch is mixed.
        partners: ``random`` or ``crossdomain``, see `MixDistribution`.
        contrast_weight: weight of the contrast, gamma; 0 for no contrast, and then no second view.
        contrast: ``separate``, as released; ``cross`` adds C(a_s, sg[b_t]) + C(sg[a_t], b_s) [inferred].
        contrast_temperature: temperature of the contrast; t > 0.
        embed_dim: length of the embeddings; D.

    Raises:
        InputError: a number is out of its range, or there is no such layer.
    """

    teacher: Teacher
    student: SharedClassifier

    def __init__(
        self,
        student: SharedClassifier,
        teacher: Teacher,
        web: WebData,
        *,
        teacher_layer: str,
        selection: bool = True,
        cutoff: float = 0.95,
        switch_off: float | None = None,
        offset: float | None = None,
        steepness: float = 5.0,
        scoring: Scoring = "changed",
        weighted: bool = True,
        mix_beta: float = 0.1,
        mix_probability: float = 1.0,
        partners: Partners = "random",
        contrast_weight: float = 0.001,
        contrast: Contrast = "separate",
        contrast_temperature: float = 0.3,
        embed_dim: int = 128,
    ) -> None:
        super().__init__(student, teacher)
        self.teacher_layer = teacher_layer
        self.selection, self.weighted = selection, weighted
        if not 0 < cutoff <= 1:
            raise InputError("cutoff", cutoff, "a number above 0 and up to 1")
        self.cutoff, self.steepness = cutoff, positive("steepness", steepness)
        self.switch_off = None if switch_off is None else positive("switch_off", switch_off)
        self.offset = None if offset is None else positive("offset", offset)
        for name, value, known in (("scoring", scoring, ("changed", "plain")), ("contrast", contrast, ("separate", "cross"))):
            one_of(name, value, known)
        self.scoring, self.contrast = scoring, contrast
        self.contrast_weight = at_least_zero("contrast_weight", contrast_weight)
        self.contrast_temperature = positive("contrast_temperature", contrast_temperature)
        self.mix = MixDistribution(positive("mix_beta", mix_beta), probability=mix_probability, partners=partners)
        if contrast_weight:  # without the contrast they would be parameters that nothing trains
            self.student_embedding = LinearEmbedding(student.connector.in_channels, embed_dim)
            self.teacher_embedding = LinearEmbedding(student.connector.channels, embed_dim)
        self._web = web
        self._teacher_with_map = self.teacher.tap(teacher_layer, argument="teacher_layer")

    def training_data(self, data: ImageData) -> WebData:
        """The web images; validation stays."""
        return self._web

    def setup(self, stage: str) -> None:
        """Refuses sharded parameters: the student's parts are run outside of its forward pass."""
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise InputError("strategy", "fsdp", "ddp or one device: KD^3 runs parts of its student by themselves")

    def losses(self, batch: Batch) -> Losses:
        """The weighted alignment of the clean view, and the contrast of both views."""
        map_BCHW = self.student.map(batch.images)
        connected_BCHW, logits_BK = self.student.connected(map_BCHW)
        teacher_BK, features = self._teacher_with_map(batch)
        teacher_BCHW = features[self.teacher_layer]
        weight_B = disagreement_weight(logits_BK, teacher_BK)[1] if self.weighted else None
        feature = weighted_feature_loss(connected_BCHW, shrunk(teacher_BCHW, connected_BCHW.shape[2:]), weight_B)
        if not self.contrast_weight:
            return Losses(task={}, distill={"feature": feature})
        mixed_BCHW = self.mix(batch.images)
        # Two passes: batch norm's statistics are not shared between the views.
        student = [self.student_embedding(maps.mean((2, 3))) for maps in (map_BCHW, self.student.map(mixed_BCHW))]
        mixed_teacher_BCHW = self._teacher_with_map(mixed_BCHW)[1][self.teacher_layer]
        teacher = [self.teacher_embedding(maps.mean((2, 3))) for maps in (teacher_BCHW, mixed_teacher_BCHW)]
        return Losses(task={}, distill={"feature": feature, "contrast": self.contrast_weight * self.contrasts(*student, *teacher)})

    def contrasts(self, a_s_BD: Tensor, b_s_BD: Tensor, a_t_BD: Tensor, b_t_BD: Tensor) -> Tensor:
        """L_con of the embeddings of clean (a) and mixed (b) views, of student and teacher; a scalar."""
        t = self.contrast_temperature
        own = nt_xent(a_s_BD, b_s_BD, t) + nt_xent(a_t_BD, b_t_BD, t)
        return own if self.contrast == "separate" else own + nt_xent(a_s_BD, b_t_BD.detach(), t) + nt_xent(a_t_BD.detach(), b_s_BD, t)

    def alpha(self) -> float:
        """The teacher's share in this epoch's choice."""
        epochs = self.progress.epochs
        switch_off = epochs / 2 if self.switch_off is None else self.switch_off
        offset = 2 * epochs / 3 if self.offset is None else self.offset
        return teacher_weight(self.progress.epoch, switch_off=switch_off, offset=offset, steepness=self.steepness)

    def select(self) -> Tensor | None:
        """The web images that teacher and student are sure of, int64 [M], the same in every process."""
        if not self.selection:
            return None
        alpha, world = self.alpha(), world_size()
        seed = int(torch.randint(2**62, ()))  # the generators are seeded from the run's seed and the epoch
        loader = self._web.scoring_loader(seed=seed, plain=self.scoring == "plain", rank=rank(), world=world)
        try:
            scored = [self._score(batch, alpha) for batch in loader if len(batch.ids)]
        finally:
            loader.end_workers()
        empty = [torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0, dtype=torch.int64)]
        columns = [gather_rows(torch.cat(column)) for column in zip(empty, *scored, strict=True)]
        order = columns[0].argsort()
        confidence_N, labels_N = (column[order] for column in columns[1:])
        found = keep_enough(
            confidence_N,
            labels_N,
            self._web.data.num_classes,
            cutoff=self.cutoff,
            fewest=min(2 * world, len(order)),
            instead=self._web.batch_size,
        )
        self._note(alpha, found, labels_N)
        return found.kept

    def _score(self, batch: Batch, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, confidence and pseudo-labels of a batch, on the CPU."""
        images = batch.images.to(self.device)
        student_BK = self.student(images)
        teacher_BK = self.teacher(images) if alpha else student_BK  # without a say it is not asked
        confidence_B, labels_B = blended_prediction(teacher_BK, student_BK, alpha)
        return batch.ids, confidence_B.cpu(), labels_B.cpu()

    def _note(self, alpha: float, found: Selection, labels_N: Tensor) -> None:
        """Keeps the choice in figures, `selection.json` in the stage's folder: one entry for each epoch."""
        if found.short:
            logger.warning("epoch %d: no web image was sure enough; the %d surest are shown", self.progress.epoch, len(found.kept))
        if self._trainer is None or not self.trainer.is_global_zero:  # in a loop of one's own there is no folder
            return
        classes = self._web.data.num_classes
        entry: dict[str, Any] = {
            "alpha": alpha,
            "kept": len(found.kept),
            "of": len(labels_N),
            "taken for": labels_N.bincount(minlength=classes).tolist(),
            "kept as": labels_N[found.kept].bincount(minlength=classes).tolist(),
            "thresholds": [round(value, 4) for value in found.thresholds_K.tolist()],
        }
        path = Path(self.trainer.default_root_dir) / "selection.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        write_atomic(path, json.dumps({**before, str(self.progress.epoch): entry}, indent=1))
        if self.trainer.logger is not None:
            self.trainer.logger.log_metrics({"selection/alpha": alpha, "selection/kept": entry["kept"]}, self.progress.step)


class WebKD(Distiller):
    """The yardstick: plain distillation of logits on every web image, without labels. T^2 KL(teacher || student).

    Args:
        student: from images [B, 3, H, W] to logits [B, K].
        teacher: the same signature.
        web: the images to learn from.
        temperature: T > 0.
    """

    teacher: Teacher

    def __init__(self, student: torch.nn.Module, teacher: Teacher, web: WebData, *, temperature: float = 4.0) -> None:
        super().__init__(student, teacher)
        self.temperature = positive("temperature", temperature)
        self._web = web

    def training_data(self, data: ImageData) -> WebData:
        """The web images; validation stays."""
        return self._web

    def losses(self, batch: Batch) -> Losses:
        """The divergence from the teacher, averaged over the batch."""
        return Losses(task={}, distill={"kd": kd_loss(self.student(batch.images), self.teacher(batch), self.temperature)})
