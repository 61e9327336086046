"""MTL-CS's distiller: a student of several targets on their truth and on a teacher's answers to them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stillroom.engine import Losses, Teacher
from stillroom.errors import InputError
from stillroom.methods.mtl_cs.loss import Kind, Match
from stillroom.tasks.multitask import DenseBatch, MultiTaskDistiller, Target

KINDS: Mapping[str, Kind] = {"classes": "classes", "saliency": "classes", "edges": "binary", "depth": "scalar", "normals": "direction"}


class MTLCS(MultiTaskDistiller):
    """Student of several dense targets, whose answers are matched with a teacher's at their own resolution.

        L = sum_t w_t L_t + beta (L_inter + L_intra)

    The student's answers are resized to the teacher's where they differ. All positions take part, but for those that are padding.

    Args:
        student: network from images [B, 3, H, W] to raw answers {target: [B, C, h, w]}, with its `targets`.
        teacher: answers likewise, to these targets at least.
        match: what is matched, and how.
    """

    def __init__(self, student: nn.Module, teacher: Teacher | nn.Module | None, match: Match) -> None:
        super().__init__(student, teacher)
        self.match = match
        self.kinds = {target.name: KINDS[target.kind] for target in self.targets}

    def losses(self, batch: DenseBatch) -> Losses:
        """The loss of each target; ``inter`` and ``intra``, or ``kl``, times beta.

        Raises:
            InputError: the teacher lacks one of the targets, has other channels, or answers with what is no number.
        """
        raw = self.student(batch.inputs)
        taught: Mapping[str, Tensor] = self.teacher(batch)  # type: ignore[misc, assignment]
        checked(taught, raw, self.targets)
        resized = {name: _resized(raw[name], taught[name]) for name in self.kinds}
        maps = list(self.match.maps(resized, taught, self.kinds).values())
        with torch.autocast(raw[self.targets[0].name].device.type, enabled=False):
            terms = self.match.terms(maps, _valid(batch, maps[0][0]))
        return Losses(self.task_terms(raw, batch), {name: self.match.beta * term for name, term in terms.items()})


def checked(taught: Mapping[str, Tensor], raw: Mapping[str, Tensor], targets: tuple[Target, ...]) -> None:
    """Whether a teacher answers to the student's targets.

    Raises:
        InputError: it lacks one or has other channels (both lists are named), or an answer is no number.
    """
    channels = [{name: int(one.shape[1]) for name, one in answers.items()} for answers in (taught, raw)]
    if any(channels[0].get(target.name) != channels[1][target.name] for target in targets):
        raise InputError("teacher", f"a network that answers to {channels[0]} (channels by target)", f"the student's {channels[1]}")
    for target in targets:
        if not bool(taught[target.name].isfinite().all()):
            raise InputError("teacher", f"answers to {target.name} that are no numbers", "finite ones")


def _resized(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    size = teacher_BCHW.shape[2:]
    return student_BCHW if student_BCHW.shape[2:] == size else interpolate(student_BCHW, size, mode="bilinear", align_corners=False)


def _valid(batch: DenseBatch, map_BKHW: Tensor) -> Tensor | None:
    """Where there is a picture and no padding, at the answers' resolution; None where a batch does not say."""
    return None if batch.valid is None else interpolate(batch.valid.float(), map_BKHW.shape[2:], mode="nearest").to(map_BKHW.dtype)
