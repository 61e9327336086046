"""BCKD's distiller, and those of the baselines that its paper compares with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillroom.engine import Teacher
from stillroom.errors import InputError, at_least_zero, positive
from stillroom.methods.bckd.terms import Region, bckd_terms, ld_terms, softmax_terms
from stillroom.tasks.detection.boxes import IoUKind
from stillroom.tasks.detection.dense import DenseOutputs, DenseTargets
from stillroom.tasks.detection.detector import DenseDetector
from stillroom.tasks.detection.supervised import DenseDistiller


class BCKD(DenseDistiller):
    """A dense student taught inside the protocol of its task: scores as binary problems, boxes by their overlap.

        L = L_task + alpha1 * sum_i m_i sum_c |p_t - p_s|^beta BCE(z_s, p_t) / N_pos
                   + alpha2 * sum_i m_i max_c |p_t - p_s| (1 - GIoU(b_s, b_t)) / N_pos

    Args:
        student: the detector that learns.
        teacher: a detector with the same strides, positions and classes.
        cls_weight: alpha1, of the classification term.
        loc_weight: alpha2, of the localisation term.
        gap_exponent: beta, exponent of the gap in the classification term, at least 0.
        iou_kind: overlap of the localisation term: giou as the release, iou as the paper writes, diou or ciou [inferred].
        detach_gap: let no gradient through the classification term's gap.
        skip_levels_without_positives: leave out the levels of a batch in which nothing is, as the release does.

    Raises:
        InputError: a number is below 0; the teacher's strides, positions or classes are others.
    """

    def __init__(
        self,
        student: DenseDetector,
        teacher: Teacher | nn.Module,
        *,
        cls_weight: float = 1.0,
        loc_weight: float = 4.0,
        gap_exponent: float = 1.0,
        iou_kind: IoUKind = "giou",
        detach_gap: bool = False,
        skip_levels_without_positives: bool = True,
    ) -> None:
        super().__init__(student, teacher)
        self.cls_weight, self.loc_weight = at_least_zero("cls_weight", cls_weight), at_least_zero("loc_weight", loc_weight)
        self.gap_exponent, self.detach_gap = at_least_zero("gap_exponent", gap_exponent), detach_gap
        self.iou_kind: IoUKind = iou_kind
        self.skip_levels_without_positives = skip_levels_without_positives

    def distillation(self, student: DenseOutputs, teacher: DenseOutputs, targets: DenseTargets) -> dict[str, Tensor]:
        """``bcd`` and ``iou_ld``, each summed over levels."""
        terms = bckd_terms(
            student,
            teacher,
            targets,
            cls_weight=self.cls_weight,
            loc_weight=self.loc_weight,
            beta=self.gap_exponent,
            iou_kind=self.iou_kind,
            detach_gap=self.detach_gap,
            skip_levels_without_positives=self.skip_levels_without_positives,
        )
        return {"bcd": torch.stack(terms["cls"]).sum(), "iou_ld": torch.stack(terms["loc"]).sum()}


class SoftmaxKD(DenseDistiller):
    """The baseline: class logits distilled under a softmax, which forgives a constant added to all of them.

    Args:
        student, teacher: see `BCKD`.
        kd_weight: of the term. The mean over classes makes 10, chosen for 80 classes, 80 / C times stronger with C.
        temperature: T > 0.
        region: all positions, divided by N_pos, or positives alone, divided by those of the level.
    """

    def __init__(
        self,
        student: DenseDetector,
        teacher: Teacher | nn.Module,
        *,
        kd_weight: float = 10.0,
        temperature: float = 2.0,
        region: Region = "all",
    ) -> None:
        super().__init__(student, teacher)
        self.kd_weight, self.temperature = at_least_zero("kd_weight", kd_weight), positive("temperature", temperature)
        if region not in ("all", "positives"):
            raise InputError("region", region, "all or positives")
        self.region: Region = region

    def distillation(self, student: DenseOutputs, teacher: DenseOutputs, targets: DenseTargets) -> dict[str, Tensor]:
        """``kd``, summed over levels."""
        terms = softmax_terms(student, teacher, targets, weight=self.kd_weight, temperature=self.temperature, region=self.region)
        return {"kd": torch.stack(terms).sum()}


class LD(DenseDistiller):
    """The baseline: localisation distillation of the sides' distributions, at positives and in the valuable region around objects.

    Args:
        student, teacher: see `BCKD`; both with distributions over distances (GFL).
        ld_weight, region_weight: of the two terms.
        temperature: T > 0.
    """

    def __init__(
        self,
        student: DenseDetector,
        teacher: Teacher | nn.Module,
        *,
        ld_weight: float = 0.25,
        region_weight: float = 0.25,
        temperature: float = 10.0,
    ) -> None:
        super().__init__(student, teacher, regions=True)
        self.ld_weight, self.region_weight = at_least_zero("ld_weight", ld_weight), at_least_zero("region_weight", region_weight)
        self.temperature = positive("temperature", temperature)

    def distillation(self, student: DenseOutputs, teacher: DenseOutputs, targets: DenseTargets) -> dict[str, Tensor]:
        """``ld`` and ``ld_vlr``, each summed over levels."""
        if not (student.bins and teacher.bins):
            raise InputError("student", "a detector without distributions over distances", "GFL: LD distils them")
        terms = ld_terms(student, teacher, targets, weight=self.ld_weight, region_weight=self.region_weight, temperature=self.temperature)
        return {name: torch.stack(levels).sum() for name, levels in terms.items()}
