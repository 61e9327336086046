"""Training a network that hears by one that sees: by its answers, and by its features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from stillroom.engine import Distiller, Losses, Teacher
from stillroom.engine.distributed import averaged
from stillroom.errors import InputError, at_least_zero, one_of
from stillroom.methods.daps_sam.loss import adjacent, attention_kl, cosines, feature_mse, feature_triplet, positives, ranking, resized
from stillroom.methods.daps_sam.network import Aligned, AlignedSpec
from stillroom.tasks.sound import DenseNetwork, as_wanted, distance

if TYPE_CHECKING:
    from stillroom.tasks.sound import Batch

FeatureLoss = Literal["triplet", "mse", "mta", "rank"]
Negatives = Literal["auto", "all", "adjacent"]
_LEAST_DROP, _PATIENCE = 0.01, 2  # share and epochs, before other negatives are taken


class DAPS(Distiller):
    """A student that hears, taught by what a frozen teacher sees; no label is used.

        L = L_p + lambda sum_i L_f^i

    L_p is the task's distance to the teacher's answer: metres, the most probable class, or the probability of being solid. L_f is the loose
    triplet loss between the encoder's features before the blocks and the teacher's of the same level; or one that it is compared with, for
    which the student's features are resized to the teacher's grid.

    Triplet negatives ``auto``: all of them, until the epoch's mean of L_f has not dropped by 1 % in 2 epochs; from then on adjacent ones
    [rule inferred]. Where the teacher's features have other channels, a linear map that learns with the student stands before L_f.

    Args:
        student: a network that hears, with blocks (`Aligned`) or without.
        teacher: one that sees, with features of as many levels; without it only where `losses` is never asked for.
        levels: numbers of the levels of L_f, from 1; by default those with blocks, of a student without the last two.
        feature_loss: distance to the teacher's features: the loose ``triplet``; ``mse``; ``mta``: KL of the spatial attention maps; or
            ``rank``: triplets over the batch.
        alignment_weight: lambda while all positions are negatives, and of the other losses; at 0 there is no L_f.
        adjacent_weight: lambda while an adjacent one is.
        feature_ramp: epochs over which lambda grows; 0 or 1 for none.
        triplet_negatives: of the loose triplet: ``all`` other positions, one ``adjacent`` one, or ``auto``.
        margin: m of the triplet.

    Raises:
        InputError: an option that cannot be used, or a teacher whose levels are not the student's.
    """

    student: Aligned | DenseNetwork
    teacher: Teacher
    seen: Tensor

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher | nn.Module | None,
        *,
        levels: tuple[int, ...] | None = None,
        feature_loss: FeatureLoss = "triplet",
        alignment_weight: float = 0.002,
        adjacent_weight: float = 0.05,
        feature_ramp: int = 0,
        triplet_negatives: Negatives = "auto",
        margin: float = 0.3,
    ) -> None:
        super().__init__(student, teacher)
        if not isinstance(student, (Aligned, DenseNetwork)):
            raise InputError("student", type(student).__name__, "a network that hears, such as stillroom/echo16_3")
        count = len(student.widths)
        usual = student.spec.levels if isinstance(student, Aligned) else tuple(range(max(1, count - 1), count + 1))
        self.levels = tuple(levels) if levels is not None else usual
        if not self.levels or not {*self.levels} <= {*range(1, count + 1)}:
            raise InputError("levels", list(self.levels), f"some of {list(range(1, count + 1))}")
        self.feature_loss, self.negatives = one_of("feature_loss", feature_loss, ("triplet", "mse", "mta", "rank")), triplet_negatives
        one_of("triplet_negatives", triplet_negatives, ("auto", "all", "adjacent"))
        self.alignment_weight, self.adjacent_weight = (
            at_least_zero("alignment_weight", alignment_weight),
            at_least_zero("adjacent_weight", adjacent_weight),
        )
        self.feature_ramp, self.margin = feature_ramp, at_least_zero("margin", margin)
        self.adapters = nn.ModuleDict()
        self._tapped: Any = None
        if self.teacher is not None and self.alignment_weight:
            self._tap(student)
        self._epoch, self._stale, self._adjacent = 0, 0, triplet_negatives == "adjacent"
        self._best: float | None = None
        self.register_buffer("seen", torch.zeros(2), persistent=False)  # sum of L_f in this epoch, and how many steps

    def _tap(self, student: Aligned | DenseNetwork) -> None:
        """Reads the teacher's levels, and makes the linear maps that are wanted."""
        network = next(iter(self.teacher.networks), None)
        base = student.base if isinstance(student, Aligned) else student
        if network is None:  # answers that were stored, with the levels' by the same names
            stored = getattr(self.teacher, "stored", ())
            named = {level: (f"encoder.levels.{level}", f"encoder.layer{level}") for level in self.levels}
            self._paths = [next((path for path in paths if path in stored), paths[0]) for paths in named.values()]
            self._tapped = self.teacher.tap(*self._paths, argument="teacher")
            return
        if not isinstance(network, DenseNetwork) or network.part != "sight" or len(network.widths) != len(base.widths):
            expected = f"a network that sees with features of {len(base.widths)} levels, such as stillroom/panorama16_3"
            raise InputError("teacher", type(network).__name__, expected)
        self._paths = [network.taps[level - 1] for level in self.levels]
        self._tapped = self.teacher.tap(*self._paths, argument="teacher")
        for level in self.levels:
            ours, theirs = base.widths[level - 1], network.widths[level - 1]
            if ours != theirs:
                self.adapters[str(level)] = nn.Linear(ours, theirs)

    def losses(self, batch: Batch) -> Losses:
        """The distance to the teacher's answer, and the features' loss."""
        answer, hints = self._tapped(batch) if self._tapped is not None else (self.teacher(batch), {})
        answers, features = self.student.answers(batch.inputs)
        known = answer[:, 0] > 0 if batch.target == "depth" else None
        pseudo = distance(answers, as_wanted(answer, batch.target), batch.target, known=known)
        if self._tapped is None:
            return Losses(task={}, distill={"pseudo": pseudo})
        self._new_epoch()
        found = [self._feature_loss(features[level - 1], hints[path], level) for level, path in zip(self.levels, self._paths, strict=True)]
        total = torch.stack(found).sum()
        if self.training:
            self.seen += torch.stack((total.detach().float(), torch.ones_like(total, dtype=torch.float32)))
        weight = self.adjacent_weight if self._adjacent and self.feature_loss == "triplet" else self.alignment_weight
        grown = self.ramp(self.feature_ramp) if self.feature_ramp > 1 else 1.0
        return Losses(task={}, distill={"pseudo": pseudo, "feature": grown * weight * total})

    def _feature_loss(self, audio: Tensor, hint: Tensor, level: int) -> Tensor:
        """L_f of a level; both are [B, C, ...]."""
        audio_BAC, teacher_BVC = (features.flatten(2).transpose(1, 2) for features in (audio, hint))
        if str(level) in self.adapters:
            audio_BAC = self.adapters[str(level)](audio_BAC)
        if self.feature_loss == "rank":
            return ranking(teacher_BVC, audio_BAC, margin=self.margin)
        if self.feature_loss != "triplet":
            student_BVC = resized(audio_BAC, audio.shape[2:], hint.shape[2:])
            return (feature_mse if self.feature_loss == "mse" else attention_kl)(teacher_BVC, student_BVC)
        chosen = adjacent(positives(cosines(teacher_BVC, audio_BAC)), audio.shape[2:]) if self._adjacent else None
        return feature_triplet(teacher_BVC, audio_BAC, margin=self.margin, negative_index_BV=chosen)

    def _new_epoch(self) -> None:
        """When an epoch has ended: has L_f dropped in it, or are other negatives to be taken?"""
        epoch = self.progress.epoch if self.training else self._epoch
        if self.negatives != "auto" or self.feature_loss != "triplet" or epoch == self._epoch:
            return
        total, steps = averaged(self.seen).tolist()
        self._epoch = epoch
        self.seen.zero_()
        if not steps or self._adjacent:
            return
        mean = total / steps
        dropped = self._best is None or mean <= (1 - _LEAST_DROP) * self._best
        self._stale = 0 if dropped else self._stale + 1
        self._best = mean if dropped else self._best
        self._adjacent = self._stale >= _PATIENCE

    def get_extra_state(self) -> Tensor:
        """Where the rule for the negatives stands, for checkpoints."""
        best = math.nan if self._best is None else self._best
        return torch.tensor([self._epoch, self._stale, self._adjacent, best, *self.seen.tolist()], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """What `get_extra_state` gave."""
        epoch, stale, adjacent_ones, best, *seen = state.tolist()
        self._epoch, self._stale, self._adjacent = int(epoch), int(stale), bool(adjacent_ones)
        self._best = None if math.isnan(best) else best
        self.seen.copy_(torch.tensor(seen))

    def specification(self, student: str) -> str:
        """With the base's in it, where there are blocks."""
        spec: AlignedSpec | None = getattr(self.student, "spec", None)
        return student if spec is None else str(spec.of(student))
