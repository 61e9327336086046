"""Plain training on boxes, and what all detection training has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from stillroom.engine import Distiller, Losses, Teacher
from stillroom.errors import InputError
from stillroom.tasks.detection.data import DetectionBatch
from stillroom.tasks.detection.dense import DenseOutputs, DenseTargets
from stillroom.tasks.detection.detector import DenseDetector
from stillroom.tasks.detection.metrics import Detections


class DetectionDistiller(Distiller):
    """A dense student trained on boxes; a method adds `distillation` terms.

    Args:
        student: the detector.
        teacher: a detector of the same layout (levels, positions, classes), or none.
        regions: whether targets tell LD's valuable localisation region.
    """

    student: DenseDetector

    def __init__(self, student: DenseDetector, teacher: Teacher | nn.Module | None = None, *, regions: bool = False) -> None:
        super().__init__(student, teacher)
        self.regions = regions

    def losses(self, batch: DetectionBatch) -> Losses:
        """The detector's own losses, and the method's."""
        outputs = self.student.raw(batch.images, batch.sizes)
        boxes, labels = self.prepare_targets(batch, outputs)
        targets = self.student.targets(outputs, boxes, labels, regions=self.regions)
        distill = {} if self.teacher is None else self.distillation(outputs, self.answers(batch, outputs), targets)
        return Losses(task=self.student.task_losses(outputs, targets), distill=distill)

    def prepare_targets(self, batch: DetectionBatch, outputs: DenseOutputs) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Boxes and labels of each image to train on: the annotated ones that are no crowd. Methods replace or extend them here."""
        return batch.objects()

    def distillation(self, student: DenseOutputs, teacher: DenseOutputs, targets: DenseTargets) -> dict[str, Tensor]:
        """The method's terms, scalars by name."""
        return {}

    def answers(self, batch: DetectionBatch, outputs: DenseOutputs) -> DenseOutputs:
        """The teacher's scores and boxes at the student's positions.

        Raises:
            InputError: its levels, positions or classes are others.
        """
        assert self.teacher is not None
        told = self.teacher(batch)
        for name in ("logits", "boxes"):
            mine, theirs = ([tuple(level.shape) for level in levels] for levels in (getattr(outputs, name), told[name]))
            if mine != theirs:
                raise InputError(
                    "teacher", f"a detector with {name} of shapes {theirs}", f"the student's, {mine}: levels, positions, classes"
                )
        return replace(outputs, logits=tuple(told["logits"]), boxes=tuple(told["boxes"]), bins=tuple(told.get("bins", ())), head={})

    def predict(self, batch: DetectionBatch) -> list[Detections]:
        """The student's detections of each image."""
        return self.student.detect(batch.images, batch.sizes)


def check_layout(student: DenseDetector, teacher: nn.Module) -> None:
    """Refuses a teacher whose positions are not the student's.

    Raises:
        InputError: the strides or the classes differ, or it is no dense detector.
    """
    if not isinstance(teacher, DenseDetector):
        raise InputError("teacher", type(teacher).__name__, "a dense detector")
    if teacher.strides != student.strides:
        raise InputError("teacher", f"strides {list(teacher.strides)}", f"the student's, {list(student.strides)}")
    if teacher.num_classes != student.num_classes:
        raise InputError("teacher", f"{teacher.num_classes} classes", f"the student's, {student.num_classes}")


Supervised = DetectionDistiller
