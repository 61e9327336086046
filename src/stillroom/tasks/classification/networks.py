"""Which classifiers teach and learn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stillroom.engine import Distiller, Networks
from stillroom.engine.inference.network import Layout


@dataclass(frozen=True)
class ClassifierNetworks(Networks):
    """Which networks teach and learn.

    Args:
        teacher: network, optionally with weights after ``@``; without weights it is trained first. Or the folder of an earlier run, or
            ``cache:FOLDER``, or a file that is a whole network, ``onnx:FILE.onnx`` or ``openvino:FILE.xml``.
        student: network, as above.
        teacher_epochs: epochs of the teacher, where it has to be trained; by default as many as the student's.
        teacher_lr: learning rate of the teacher; by default the student's.
        teacher_head_only: of a teacher whose weights answer for other classes than the data's, train the new head alone, all else
            staying as it is. By default all else learns at a tenth of the head's rate.
        accept_teacher: go on with a teacher that is no better than chance, or far worse than the student alone.
        teacher_classes: file with the names of the teacher's classes in the order of its answers, one a line or as a JSON list, for one
            that knows more classes than the data or in another order; the data's are picked by their names. By default what its run or
            its configuration says.
        teacher_answers: what the teacher answers with: logits, or probabilities, of which the logarithm is taken.
        teacher_layout: of the images that a teacher reads which is only a file: nchw, nhwc, or auto: where the file has three channels.
    """

    teacher_head_only: bool = False
    teacher_classes: Path | None = None
    teacher_answers: Literal["logits", "probabilities"] = "logits"
    teacher_layout: Layout = "auto"

    def begin(self, made: Distiller, new: tuple[str, ...]) -> None:
        """As `Networks.begin`."""
        super().begin(made, new)
        made.head_only = self.teacher_head_only
        made.train()  # what is not to learn stays in eval mode
