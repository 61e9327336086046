"""One step of incremental detection: the step before teaches what it knows, in the images in which only the new classes are annotated."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from stillroom.engine import Losses, Teacher
from stillroom.errors import InputError, at_least, at_least_zero, one_of, share
from stillroom.methods.iod.loss import (
    Distance,
    Interaction,
    PseudoObjects,
    distance_matrix_distillation,
    foreground,
    instance_pairs,
    interactive_feature_distillation,
    pseudo_objects,
)
from stillroom.tasks.detection.data import DetectionBatch
from stillroom.tasks.detection.dense import averaged_count
from stillroom.tasks.detection.outputs import Objects
from stillroom.tasks.detection.queries import QueryDetector, QueryOutputs, QueryTargets, relative_boxes
from stillroom.tasks.detection.supervised import DetectionDistiller

Maps = Literal["encoder", "backbone"]
_SLOW = ("backbone", "sampling_offsets", "reference_points")  # parts of parameters' names


class Answers(nn.Module):
    """A detector of the DETR family that is asked for what this method reads of a teacher.

    Args:
        detector: the one that is asked.
        maps: which maps: the ``encoder``'s, or those that it is given, the ``backbone``'s after their projection.
    """

    def __init__(self, detector: QueryDetector, maps: Maps = "encoder") -> None:
        super().__init__()
        self.detector, self.maps = detector, maps

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """Of (images, sizes) the last decoder layer's ``scores`` [B, Q, K], relative ``boxes`` [B, Q, 4] and ``queries`` [B, Q, d], the
        ``frames`` [B, 2] of these boxes, and ``maps``, per level [B, C, h, w]."""
        outputs, maps = asked(self.detector, self.maps, *batch)
        return {
            "scores": self.detector.scores(outputs.logits[-1]),
            "boxes": outputs.relative_boxes[-1],
            "queries": outputs.queries[-1],
            "frames": outputs.frames,
            "maps": list(maps),
        }


def asked(
    detector: QueryDetector, kind: Maps, images: Tensor, sizes: Tensor, objects: Objects | None = None
) -> tuple[QueryOutputs, tuple[Tensor, ...]]:
    """The raw answers of a detector, with the maps that are distilled."""
    if kind == "encoder":
        outputs = detector.raw(images, sizes, objects)
        return outputs, outputs.features
    caught: list[Tensor] = []
    handles = [module.register_forward_hook(lambda _, __, output: caught.append(output)) for module in detector.projections()]
    try:
        return detector.raw(images, sizes, objects), tuple(caught)
    finally:
        for handle in handles:
            handle.remove()


class IOD(DetectionDistiller):
    """A detector of the DETR family that learns new classes and keeps the old ones; without a teacher, plain training.

        L = L_det(annotations and pseudo objects) + w_D L_DMD + w_I L_IFD

    Args:
        student: knows old and new classes; mostly a copy of the teacher that grew.
        teacher: the detector of the step before, whose classes are the student's first ones.
        dmd_weight: w_D, of the distances between class means, of queries and of features; 0 leaves them out.
        ifd_weight: w_I, of the differences of single instances; 0 leaves them out.
        score_threshold: a detection of the teacher with a score above it may be a pseudo object.
        nms_iou: an overlap above it with a better one of its class drops a pseudo object.
        duplicate_iou: an overlap above it with an annotated box drops one.
        class_distance: of class means: euclidean, manhattan or cosine.
        interaction: of an instance's semantic and feature difference: their product; guided, in which the semantic one is a weight without
            gradient; or their sum.
        feature_maps: which maps features are read from: the encoder's, or the backbone's as the encoder is given them.
        region_bins: bins on each side of an object's features.
        across_processes: take class means over the batches of all processes, as one process would; by default each takes its own.
        slow_rate: share of the learning rate at which the backbone, sampling offsets and reference points learn.

    Raises:
        InputError: a student or teacher that is no detector of the DETR family, a teacher with as many classes as the student or more, a
            number or a word that cannot be used.
    """

    student: QueryDetector

    def __init__(
        self,
        student: QueryDetector,
        teacher: QueryDetector | Teacher | None = None,
        *,
        dmd_weight: float = 1.0,
        ifd_weight: float = 1.0,
        score_threshold: float = 0.3,
        nms_iou: float = 0.7,
        duplicate_iou: float = 0.7,
        class_distance: Distance = "euclidean",
        interaction: Interaction = "product",
        feature_maps: Maps = "encoder",
        region_bins: int = 7,
        across_processes: bool = False,
        slow_rate: float = 1.0,
    ) -> None:
        if isinstance(teacher, QueryDetector):
            teacher = Teacher(Answers(teacher, feature_maps))
        super().__init__(of_queries(student, "student"), teacher)
        self.dmd_weight, self.ifd_weight = at_least_zero("dmd_weight", dmd_weight), at_least_zero("ifd_weight", ifd_weight)
        self.score_threshold, self.slow_rate = share("score_threshold", score_threshold), share("slow_rate", slow_rate)
        self.nms_iou, self.duplicate_iou = share("nms_iou", nms_iou), share("duplicate_iou", duplicate_iou)
        self.class_distance: Distance = one_of("class_distance", class_distance, get_args(Distance))  # type: ignore[assignment]
        self.interaction: Interaction = one_of("interaction", interaction, get_args(Interaction))  # type: ignore[assignment]
        self.feature_maps: Maps = one_of("feature_maps", feature_maps, get_args(Maps))  # type: ignore[assignment]
        self.region_bins, self.across_processes = at_least("region_bins", region_bins, 1), across_processes
        self.queries_map: nn.Module = nn.Identity()
        self.features_map: nn.Module = nn.Identity()
        if self.teacher is not None:
            self._match(of_queries(getattr(self.teacher.networks[0], "detector", self.teacher.networks[0]), "teacher"))

    def _match(self, teacher: QueryDetector) -> None:
        """Looks at the teacher; where its queries or maps are of another width, the student's are mapped onto them."""
        if teacher.num_classes >= self.student.num_classes:
            got = f"a detector of {teacher.num_classes} classes"
            raise InputError("teacher", got, f"one of fewer than the student's {self.student.num_classes}: it knows the old classes alone")
        (queries, maps), (their_queries, their_maps) = _widths(self.student), _widths(teacher)
        if queries != their_queries and self.ifd_weight:
            self.queries_map = nn.Linear(queries, their_queries)
        if maps != their_maps and self.ifd_weight:
            self.features_map = nn.Conv2d(maps, their_maps, 1)

    def losses(self, batch: DetectionBatch) -> Losses:
        """The detector's own losses on annotations and pseudo objects, and ``dmd`` and ``ifd``."""
        if self.teacher is None:
            return super().losses(batch)
        told: Any = self.teacher((batch.images, batch.sizes))
        pseudo = self.pseudo(batch, told)
        boxes, labels = self.extended(batch, pseudo, told["frames"])
        outputs, maps = asked(self.student, self.feature_maps, batch.images, batch.sizes, (boxes, labels))
        targets = self.targets(outputs, boxes, labels)
        return Losses(task=self.student.task_losses(outputs, targets), distill=self._distilled(batch, told, pseudo, outputs, maps, targets))

    def pseudo(self, batch: DetectionBatch, told: dict[str, Any]) -> PseudoObjects:
        """What the teacher finds in the batch, but for what is annotated; boxes that are difficult or a crowd count as annotated."""
        new_boxes = relative_boxes(batch.boxes, told["frames"])
        limits = {name: getattr(self, name) for name in ("score_threshold", "nms_iou", "duplicate_iou")}
        return pseudo_objects(told["scores"], told["boxes"], new_boxes, **limits)

    def extended(self, batch: DetectionBatch, pseudo: PseudoObjects, frames: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The annotated objects of each image, behind them the pseudo objects."""
        boxes, labels = batch.objects()
        found = box_convert(pseudo.boxes, "cxcywh", "xyxy") * frames.flip(1).repeat(1, 2)[pseudo.images]
        counts = torch.bincount(pseudo.images, minlength=len(boxes)).tolist()
        more_boxes, more_labels = found.split(counts), pseudo.labels.split(counts)
        both = (zip(mine, more, strict=True) for mine, more in ((boxes, more_boxes), (labels, more_labels)))
        boxes, labels = ([torch.cat(pair) for pair in pairs] for pairs in both)
        return boxes, labels

    def _distilled(
        self,
        batch: DetectionBatch,
        told: dict[str, Any],
        pseudo: PseudoObjects,
        outputs: QueryOutputs,
        maps: tuple[Tensor, ...],
        targets: QueryTargets,
    ) -> dict[str, Tensor]:
        """``dmd`` and ``ifd`` over the pseudo objects that found a query of the student in the last layer's matching."""
        if not self.dmd_weight and not self.ifd_weight:
            return {}
        annotated = [len(labels) for labels in batch.objects()[1]]
        images, queries, objects = (part.to(outputs.frames.device) for part in instance_pairs(targets.matches[""], annotated))
        firsts = torch.searchsorted(pseudo.images, torch.arange(len(annotated), device=images.device))
        which = firsts[images] + objects  # among all pseudo objects of the batch
        student_q, teacher_q = outputs.queries[-1][images, queries], told["queries"][images, pseudo.queries[which]]
        # Of both networks' maps the same places, relative to the padded batch that both were given.
        height, width = batch.images.shape[-2:]
        scale_B2 = told["frames"] / told["frames"].new_tensor([height, width])
        boxes = pseudo.boxes[which] * scale_B2.flip(1).repeat(1, 2)[images]
        student_f, teacher_f = (foreground(levels, boxes, images, self.region_bins) for levels in (maps, told["maps"]))
        found: dict[str, Tensor] = {}
        if self.dmd_weight:
            terms = [
                distance_matrix_distillation(
                    student.flatten(1),
                    teacher.flatten(1),
                    pseudo.labels[which],
                    distance=self.class_distance,
                    across_processes=self.across_processes,
                    classes=told["scores"].shape[-1],
                ).loss
                for student, teacher in ((student_q, teacher_q), (student_f, teacher_f))
            ]
            found["dmd"] = self.dmd_weight * (terms[0] + terms[1])
        if self.ifd_weight:
            count = averaged_count(outputs.frames.new_tensor(float(len(images))))
            pairs = self.queries_map(student_q), teacher_q, self.features_map(student_f), teacher_f
            found["ifd"] = self.ifd_weight * interactive_feature_distillation(*pairs, interaction=self.interaction, count=count).loss
        return found

    def parameter_groups(self) -> list[dict[str, Any]]:
        """As every method's; with `slow_rate` what a Deformable DETR trains slowly apart."""
        if self.slow_rate == 1:
            return super().parameter_groups()
        learning = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        slow = [parameter for name, parameter in learning if any(part in name for part in _SLOW)]
        rest = [parameter for name, parameter in learning if not any(part in name for part in _SLOW)]
        return [{"params": rest}, {"params": slow, "lr": self.plan.lr * self.slow_rate}]


def of_queries(network: Any, argument: str) -> QueryDetector:
    """A detector of the DETR family.

    Raises:
        InputError: it is none.
    """
    if not isinstance(network, QueryDetector):
        kind = type(getattr(network, "model", network)).__name__
        raise InputError(argument, kind, "a detector of the DETR family (Deformable DETR, RT-DETR, DETR): this method follows its queries")
    return network


def _widths(detector: QueryDetector) -> tuple[int, int]:
    """Channels of the queries and of the maps."""
    config = detector.model.config
    return config.d_model, getattr(config, "encoder_hidden_dim", config.d_model)
