"""RDD as a distiller: the iteration of section 8, on heads of centres and of anchors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stillroom.engine import Teacher
from stillroom.errors import InputError, at_least, at_least_zero, positive, share
from stillroom.methods.rdd.loss import PairLosses, Selection, anchor_logit_loss, disparity, pair_losses
from stillroom.methods.rdd.proposals import anchor_proposals, boxes_of_peaks, proposal_regions, select_proposals
from stillroom.tasks.detection3d.networks import MapDetector, MapOutputs
from stillroom.tasks.detection3d.supervised import Detection3dDistiller
from stillroom.tasks.points.anchor_head import AnchorHead
from stillroom.tasks.points.frames import FrameBatch
from stillroom.tasks.points.grid import BevGrid
from stillroom.tasks.points.regions import crop_regions

_CROP = 7  # P, bins of a region's side


class Answer(NamedTuple):
    """What a detector says from above.

    Attributes:
        neck: [B, C, ny, nx].
        probabilities: [B, K, ny, nx], of all classes (of anchors [B, R K, ny, nx]).
        codes: [B, groups x 8 or 10, ny, nx] (of anchors [B, 9 R, ny, nx]).
        grid: of the three.
    """

    neck: Tensor
    probabilities: Tensor
    codes: Tensor
    grid: BevGrid


class AdaptedDistiller(Detection3dDistiller, ABC):
    """A student whose neck learns beside a teacher's, through psi: 1x1 convolution without bias, batch norm, ReLU (section 4).

    Args:
        student: the compact detector.
        teacher: a detector of the same classes in the same groups; its map may be of another resolution.

    Raises:
        InputError: the two know other classes, or the teacher is no such detector.
    """

    teacher: Teacher

    def __init__(self, student: MapDetector, teacher: Teacher | nn.Module) -> None:
        super().__init__(student, teacher)
        large = self.teacher.networks[0]
        if not isinstance(large, MapDetector):
            raise InputError("teacher", type(large).__name__, "a detector of this task, whose maps are compared")
        if large.classes.tasks != student.classes.tasks:
            raise InputError(
                "teacher", f"a detector of {large.classes.tasks}", f"the student's classes and groups, {student.classes.tasks}"
            )
        self.teacher_grid = large.grid
        conv = nn.Conv2d(student.head.in_channels, large.head.in_channels, 1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        self.adapter = nn.Sequential(conv, nn.BatchNorm2d(large.head.in_channels), nn.ReLU())

    def require_alike(self, kind: type[nn.Module] | None = None) -> None:
        """Heads whose answers can be compared: of one kind, and of `kind` where it is given.

        Raises:
            InputError: they are not.
        """
        mine, theirs = type(self.student.head), type(self.teacher.networks[0].head)
        if mine is not theirs:
            raise InputError("teacher", f"a detector with a {theirs.__name__}", f"one with the student's kind of head, a {mine.__name__}")
        if kind is not None and mine is not kind:
            raise InputError("student", f"a detector with a {mine.__name__}", f"one with a {kind.__name__}, as this method reads it")

    def taught(self, batch: FrameBatch, outputs: MapOutputs) -> dict[str, Tensor]:
        """The method's terms on the adapted student and the teacher."""
        told: dict[str, Tensor] = self.teacher(batch)
        theirs = Answer(told["neck"], told["heatmap"].sigmoid(), told["codes"], self.teacher_grid)
        return self.compared(batch, outputs, self.adapted(outputs), theirs)

    def adapted(self, outputs: MapOutputs) -> Answer:
        """The student's answer with psi of its neck."""
        heatmap, codes = self.student.head.dense(outputs.predictions)
        return Answer(self.adapter(outputs.neck), heatmap.float().sigmoid(), codes, self.student.grid)

    @abstractmethod
    def compared(self, batch: FrameBatch, outputs: MapOutputs, mine: Answer, theirs: Answer) -> dict[str, Tensor]:
        """The terms, scalars by name."""


class RDD(AdaptedDistiller):
    """L = L_det + alpha1 L_feat + alpha2 L_logit over the regions that either detector proposes (section 8).

    On heads of centres and of anchors. Where the maps of two heads of anchors differ in resolution, an anchor's counterpart is that of the
    same class and direction at the nearest cell.

    Args:
        student, teacher: see `AdaptedDistiller`.
        selection: of the pairs' weights m.
        channel_temperature: tau, of the softmax over channels.
        feature_weight: alpha1, weight of the features of the pairs.
        logit_weight: alpha2, weight of their class probabilities.
        proposals: of each detector in a frame, the best so many.
        proposal_threshold: least probability of a proposal.

    Attributes:
        student_proposals: whether the student's own are looked at, too; without them its false positives are not seen.
    """

    def __init__(
        self,
        student: MapDetector,
        teacher: Teacher | nn.Module,
        *,
        selection: Selection | None = None,
        channel_temperature: float = 4.0,
        feature_weight: float = 0.2,
        logit_weight: float = 0.2,
        proposals: int = 100,
        proposal_threshold: float = 0.1,
    ) -> None:
        super().__init__(student, teacher)
        self.require_alike()
        self.selection = Selection() if selection is None else selection
        self.temperature = positive("channel_temperature", channel_temperature)
        self.feature_weight = at_least_zero("feature_weight", feature_weight)
        self.logit_weight = at_least_zero("logit_weight", logit_weight)
        self.proposals = at_least("proposals", proposals, 1)
        self.proposal_threshold = share("proposal_threshold", proposal_threshold)
        self.student_proposals = True

    def compared(self, batch: FrameBatch, outputs: MapOutputs, mine: Answer, theirs: Answer) -> dict[str, Tensor]:
        """``feature`` and ``logit``; an exact 0 that still reaches psi where nothing is proposed."""
        found = self.pairs(mine, theirs)
        reached = 0 * mine.neck.sum()
        return {"feature": self.feature_weight * found.feature + reached, "logit": self.logit_weight * found.logit + reached}

    def pairs(self, mine: Answer, theirs: Answer) -> PairLosses:
        """Disparity, weight and losses of all pairs."""
        if isinstance(self.student.head, AnchorHead):
            return self._anchor_pairs(mine, theirs)
        rectangles, sample = self.regions(mine, theirs)

        def crops(bev: Tensor, answer: Answer) -> Tensor:
            return crop_regions(bev, rectangles, sample, answer.grid, size=_CROP)

        necks = crops(mine.neck, mine), crops(theirs.neck, theirs)
        probabilities = crops(mine.probabilities, mine), crops(theirs.probabilities, theirs)
        return pair_losses(*necks, *probabilities, self.selection, self.temperature)

    @torch.no_grad()
    def regions(self, mine: Answer, theirs: Answer) -> tuple[Tensor, Tensor]:
        """Regions [n, 4] in metres and the sample of each: the teacher's, then the student's; what both propose is there twice."""
        parts = []
        for answer in (theirs, mine) if self.student_proposals else (theirs,):
            peaks = select_proposals(answer.probabilities, threshold=self.proposal_threshold, most=self.proposals)
            boxes, sample = boxes_of_peaks(peaks, answer.codes, self.student.classes, answer.grid)
            parts.append((proposal_regions(boxes[:, :2], boxes[:, 3:5], answer.grid.cell), sample))
        rectangles, sample = (torch.cat(part) for part in zip(*parts, strict=True))
        seen = _meets(rectangles, mine.grid) | _meets(rectangles, theirs.grid)
        return rectangles[seen], sample[seen]

    def _anchor_pairs(self, mine: Answer, theirs: Answer) -> PairLosses:
        """Regions are the boxes that are proposed, and the logits of a pair those of the proposal's own anchor in both heads."""
        heads: list[AnchorHead] = [self.student.head, self.teacher.networks[0].head]  # type: ignore[list-item]
        said = [head.flat(answer.probabilities, answer.codes) for head, answer in zip(heads, (mine, theirs), strict=True)]
        rows = []
        with torch.no_grad():
            for side in (1, 0) if self.student_proposals else (1,):
                head, cell = heads[side], heads[side].grid.cell
                for number, (box, probabilities) in enumerate(zip(head.boxes(*said[side][1:]), said[side].logits, strict=True)):
                    index, _, found = anchor_proposals(
                        box, probabilities, cell=cell, threshold=self.proposal_threshold, most=self.proposals
                    )
                    there = head.counterpart(index, heads[1 - side])
                    pair = (index, there) if side == 0 else (there, index)
                    rows.append((found, torch.full_like(index, number), *pair))
            rectangles, sample, own, other = (torch.cat(part) for part in zip(*rows, strict=True))
            seen = _meets(rectangles, mine.grid) | _meets(rectangles, theirs.grid)
            rectangles, sample, own, other = rectangles[seen], sample[seen], own[seen], other[seen]
        crops = (crop_regions(answer.neck, rectangles, sample, answer.grid, size=_CROP) for answer in (mine, theirs))
        d = disparity(next(crops), next(crops), self.temperature)
        m = self.selection.weights(d)
        first, second = said
        logit = anchor_logit_loss(
            first.logits[sample, own], second.logits[sample, other], first.codes[sample, own], second.codes[sample, other], m
        )
        return PairLosses(d, m, (m * d).sum() / max(len(d), 1), logit)


def _meets(rectangles: Tensor, grid: BevGrid) -> Tensor:
    """Which rectangles [n, 4] share ground with a grid."""
    (x0, x1), (y0, y1) = grid.x_range, grid.y_range
    return (rectangles[:, 0] < x1) & (rectangles[:, 2] > x0) & (rectangles[:, 1] < y1) & (rectangles[:, 3] > y0)
