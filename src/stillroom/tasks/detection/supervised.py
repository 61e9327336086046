"""Plain training on boxes, and what all detection training has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from stillroom.engine import Distiller, Losses, Teacher
from stillroom.errors import InputError
from stillroom.tasks.detection.data import DetectionBatch
from stillroom.tasks.detection.dense import DenseOutputs, DenseTargets
from stillroom.tasks.detection.detector import DenseDetector, Detector
from stillroom.tasks.detection.metrics import Detections
from stillroom.tasks.detection.outputs import Objects


class DetectionDistiller(Distiller):
    """A detector of any kind trained on boxes; a method adds `taught` terms.

    Boxes that are known before the step (a teacher's, beside the annotated ones) are put into the batch,
    ``super().losses(batch._replace(boxes=..., labels=...))``; those that follow from the student's own answers come from `prepare_targets`.

    Args:
        student: the detector.
        teacher: whatever the method asks, or none.
    """

    student: Detector[Any, Any]

    def __init__(self, student: Detector[Any, Any], teacher: Teacher | nn.Module | None = None) -> None:
        super().__init__(student, teacher)

    def losses(self, batch: DetectionBatch) -> Losses:
        """The detector's own losses, and the method's."""
        outputs = self.student.raw(batch.images, batch.sizes, batch.objects())
        targets = self.targets(outputs, *self.prepare_targets(batch, outputs))
        return Losses(task=self.student.task_losses(outputs, targets), distill=self.taught(batch, outputs, targets))

    def prepare_targets(self, batch: DetectionBatch, outputs: Any) -> Objects:
        """Boxes and labels of each image to train on: the annotated ones that are no crowd. Methods replace or extend them here."""
        return batch.objects()

    def targets(self, outputs: Any, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Any:
        """What the student is to answer, by its own rule."""
        return self.student.targets(outputs, boxes, labels)

    def taught(self, batch: DetectionBatch, outputs: Any, targets: Any) -> dict[str, Tensor]:
        """The method's terms, scalars by name."""
        return {}

    def predict(self, batch: DetectionBatch) -> list[Detections]:
        """The student's detections of each image."""
        return self.student.detect(batch.images, batch.sizes)


class DenseDistiller(DetectionDistiller):
    """A dense student and a dense teacher, compared position by position; a method says how in `distillation`.

    Args:
        student: the detector.
        teacher: a detector of the same layout (levels, positions, classes).
        regions: whether targets tell LD's valuable localisation region.

    Raises:
        InputError: student or teacher is no dense detector, or the strides or the classes differ.
    """

    student: DenseDetector
    teacher: Teacher

    def __init__(self, student: DenseDetector, teacher: Teacher | nn.Module, *, regions: bool = False) -> None:
        super().__init__(_dense(student, "student"), teacher)
        self.regions = regions
        # A network is looked at now; a cache of answers shows itself at the first step.
        for network in getattr(self.teacher, "networks", ()):
            check_layout(student, network)

    def targets(self, outputs: DenseOutputs, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> DenseTargets:
        """What the positions are to answer, with LD's regions if the method asks for them."""
        return self.student.targets(outputs, boxes, labels, regions=self.regions)

    def taught(self, batch: DetectionBatch, outputs: DenseOutputs, targets: DenseTargets) -> dict[str, Tensor]:
        """`distillation`, with the teacher's answers."""
        return self.distillation(outputs, self.told(batch, outputs), targets)

    def distillation(self, student: DenseOutputs, teacher: DenseOutputs, targets: DenseTargets) -> dict[str, Tensor]:
        """The method's terms, scalars by name."""
        return {}

    def told(self, batch: DetectionBatch, outputs: DenseOutputs) -> DenseOutputs:
        """The teacher's scores and boxes at the student's positions.

        Raises:
            InputError: its levels, positions or classes are others.
        """
        told: Any = self.teacher(batch)
        for name in ("logits", "boxes"):
            mine, theirs = ([tuple(level.shape) for level in levels] for levels in (getattr(outputs, name), told[name]))
            if mine != theirs:
                raise InputError(
                    "teacher", f"a detector with {name} of shapes {theirs}", f"the student's, {mine}: levels, positions, classes"
                )
        told = {name: tuple(told.get(name, ())) for name in ("logits", "boxes", "bins")}
        return replace(outputs, **told, features=(), centerness=(), head={})


def check_layout(student: nn.Module, teacher: nn.Module) -> None:
    """Refuses detectors that cannot be compared position by position.

    Raises:
        InputError: the strides or the classes differ, or one is no dense detector.
    """
    student, teacher = _dense(student, "student"), _dense(teacher, "teacher")
    if teacher.strides != student.strides:
        raise InputError("teacher", f"strides {list(teacher.strides)}", f"the student's, {list(student.strides)}")
    if teacher.num_classes != student.num_classes:
        raise InputError("teacher", f"{teacher.num_classes} classes", f"the student's, {student.num_classes}")


def _dense(network: nn.Module, argument: str) -> DenseDetector:
    if not isinstance(network, DenseDetector):
        kind = type(getattr(network, "model", network)).__name__
        raise InputError(argument, kind, "a dense detector (GFL, ATSS, RetinaNet, FCOS): this method compares answers at every position")
    return network
