"""Editing as a task: its default job, and what the Lab and the commands ask of it. There is no plain training on labels here."""

from __future__ import annotations

from dataclasses import dataclass

from stillroom.engine import Networks, Report, Training
from stillroom.engine.task import Built, Usual
from stillroom.tasks.editing import loaded, pages
from stillroom.tasks.editing.data import EditingData
from stillroom.tasks.editing.metrics import METRICS
from stillroom.tasks.editing.networks import TASK as NAME
from stillroom.tasks.editing.networks import build_editing
from stillroom.tasks.editing.pages import editing_remarks

# The specification's small experiment: 400 steps of 32 pictures.
EDITOR = Training(epochs=4, optimizer="adamw", lr=2e-3, weight_decay=2e-3, schedule="constant")
DENOISER = Training(epochs=20, optimizer="adam", lr=3e-3, weight_decay=0.0, schedule="onecycle")


@dataclass(frozen=True)
class EditingNetworks(Networks):
    """Which networks teach and learn.

    Args:
        teacher: network, the denoiser that teaches where no pipeline does: ``stillroom/denoiserN``, N its channels, optionally with weights
            after ``@``; without them it is trained first, on the pictures and their classes. Or the stage ``teacher`` of an earlier run.
        student: network, the editor: ``stillroom/editorN``, or one of your own, ``file.py:function``; optionally with weights.
        teacher_epochs: epochs of the teacher, where it has to be trained.
        teacher_lr: learning rate of the teacher; the highest of its cycle.
        accept_teacher: go on with a teacher that is no better than chance, or hardly: whose denoising error is near the noise itself.
        teacher_batch_size: pictures in a batch of the denoiser's training.
        pipeline: folder of a diffusers pipeline (Stable Diffusion 1.x, 2.x) that teaches instead; ``hub:NAME`` fetches one.
    """

    teacher_batch_size: int = 64
    pipeline: str | None = None


class Editing(Usual):
    """Pictures to edited pictures; see `engine.task.Task`. It has neither plain training on labels nor a cache of answers."""

    name = NAME
    data = EditingData
    plan = sgd = EDITOR
    networks = EditingNetworks("stillroom/denoiser24", "stillroom/editor24")
    kinds = ("colours", "photos")
    metric_formats = METRICS
    sections = staticmethod(pages.editing_sections)
    ship = staticmethod(loaded.ship)
    load = staticmethod(loaded.load)

    def build(self, spec: str, data: EditingData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The denoiser, where `argument` is "teacher"; else the editor.

        Raises:
            InputError: it cannot be built, or is of other classes.
        """
        kind = "denoiser" if argument == "teacher" else "editor"
        built = build_editing(
            spec, kind=kind, num_classes=data.num_classes, image_size=data.image_size, trust_pickle=trust_pickle, argument=argument
        )
        return built.of_classes(data.classes, spec, argument) if kind == "denoiser" else built

    def remarks(self, report: Report, data: EditingData) -> list[str]:
        """What edits cost."""
        return editing_remarks(report)


TASK = Editing()
EditingData.task = TASK  # type: ignore[assignment]
