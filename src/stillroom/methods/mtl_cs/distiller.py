"""MTL-CS's distiller: a student of several targets on their truth and on a teacher's answers to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from stillroom.engine import Losses, Teacher
from stillroom.errors import InputError, share
from stillroom.methods.mtl_cs.loss import Kind, Match
from stillroom.tasks.multitask import DenseBatch, MultiTaskDistiller
from stillroom.tasks.multitask.losses import enlarged

KINDS: Mapping[str, Kind] = {"classes": "classes", "saliency": "classes", "edges": "binary", "depth": "scalar", "normals": "direction"}


class MTLCS(MultiTaskDistiller):
    """Student of several dense targets, whose answers are matched with a teacher's at their own resolution.

        L = sum_t w_t L_t + beta (L_inter + L_intra)

    The student's answers are resized to the teacher's where they differ. All positions take part, but for those that are padding. Rows are
    averaged over the batch of all processes; columns are those of each process's own batch.

    Args:
        student: network from images [B, 3, H, W] to raw answers {target: [B, C, h, w]}, with its `targets`.
        teacher: answers likewise, to these targets at least.
        match: what is matched, and how.
        flipped: share of the teacher's numbers whose sign is changed, at places drawn anew in every step; to try how much a match bears.
    """

    teacher: Teacher

    def __init__(self, student: nn.Module, teacher: Teacher | nn.Module, match: Match, *, flipped: float = 0.0) -> None:
        super().__init__(student, teacher)
        self.match, self.flipped = match, share("flipped", flipped)
        self.kinds = {target.name: KINDS[target.kind] for target in self.targets}

    def losses(self, batch: DenseBatch) -> Losses:
        """The loss of each target; ``inter`` and ``intra``, or ``kl``, times beta.

        Raises:
            InputError: the teacher lacks one of the targets, or has other channels.
        """
        taught = self._taught(batch)
        raw = self.student(batch.inputs)
        self._check(taught, raw)
        with torch.autocast(batch.images.device.type, enabled=False):
            resized = {name: enlarged(raw[name].float(), taught[name].shape[2:]) for name in self.kinds}
            maps = list(self.match.maps(resized, taught, self.kinds).values())
            terms = self.match.terms(maps, _valid(batch, maps[0][0]))
        return Losses(self.task_terms(raw, batch), {name: self.match.beta * term for name, term in terms.items()})

    def rehearse(self, batch: DenseBatch) -> None:
        """As every distiller's; besides, the teacher's answers are looked at.

        Raises:
            InputError: an answer of the teacher is no number.
        """
        taught = self._taught(batch)
        if wrong := [name for name in self.kinds if name in taught and not bool(taught[name].isfinite().all())]:
            raise InputError("teacher", f"answers to {wrong[0]} that are no numbers", "finite ones")
        super().rehearse(batch)

    def _taught(self, batch: DenseBatch) -> Mapping[str, Tensor]:
        taught = cast("Mapping[str, Tensor]", self.teacher(batch))
        if not self.flipped:
            return taught
        found = {}
        for name, raw in taught.items():
            drawn = torch.rand(raw.shape, generator=torch.Generator().manual_seed(self.progress.step))
            found[name] = torch.where(drawn.to(raw.device) < self.flipped, -raw, raw)
        return found

    def _check(self, taught: Mapping[str, Tensor], raw: Mapping[str, Tensor]) -> None:
        theirs, ours = ({name: int(one.shape[1]) for name, one in answers.items()} for answers in (taught, raw))
        if any(theirs.get(name) != ours[name] for name in self.kinds):
            raise InputError("teacher", f"a network that answers to {theirs} (channels by target)", f"the student's {ours}")


def _valid(batch: DenseBatch, map_BKHW: Tensor) -> Tensor | None:
    """Where there is a picture and no padding, at the answers' resolution; None where a batch does not say."""
    return None if batch.valid is None else interpolate(batch.valid.float(), map_BKHW.shape[2:], mode="nearest").to(map_BKHW.dtype)
