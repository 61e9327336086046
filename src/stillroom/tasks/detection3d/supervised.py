"""Plain training on boxes in three dimensions, and what all training of such detectors has in common."""

from __future__ import annotations

from torch import Tensor, nn

from stillroom.engine import Distiller, Losses, Teacher
from stillroom.tasks.detection3d.networks import MapDetector, MapOutputs
from stillroom.tasks.points.center_head import Detections
from stillroom.tasks.points.frames import FrameBatch


class Detection3dDistiller(Distiller):
    """A detector trained on boxes; a method adds `taught` terms.

    Args:
        student: the detector.
        teacher: whatever the method asks, or none.
    """

    student: MapDetector

    def __init__(self, student: MapDetector, teacher: Teacher | nn.Module | None = None) -> None:
        super().__init__(student, teacher)

    def losses(self, batch: FrameBatch) -> Losses:
        """The detector's own losses, and the method's."""
        outputs = self.student.raw(batch.inputs, batch.previous)
        return Losses(task=self.student.task_losses(outputs, batch), distill=self.taught(batch, outputs))

    def taught(self, batch: FrameBatch, outputs: MapOutputs) -> dict[str, Tensor]:
        """The method's terms, scalars by name."""
        return {}

    def predict(self, batch: FrameBatch) -> list[Detections]:
        """The student's boxes in each frame, best first."""
        return self.student.detect(batch.inputs, batch.previous)
