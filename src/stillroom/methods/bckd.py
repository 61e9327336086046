"""BCKD - Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object Detection (Yang et al., ICCV 2023).

A dense detector scores every class by a sigmoid; distilling its logits under a softmax forgives the student a constant added to all of
them, though its scores are then others. BCKD stays inside the sigmoid's protocol, and distils boxes by their overlap:

    L = L_task + alpha1 * sum_i m_i sum_c |p_t - p_s|^beta BCE(z_s, p_t) / N_pos
               + alpha2 * sum_i m_i max_c |p_t - p_s| (1 - GIoU(b_s, b_t)) / N_pos

with p = sigmoid(z). Below stand the two losses over the rows of one pyramid level (logits z [N, C] and boxes b [N, 4] of student and
teacher at the same position), their sums over a pyramid, each divided as the release divides it, with those of the baselines that the
paper compares with; the distillers; and the experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from stillroom.engine import Distiller, Experiment, Lab, Networks, Report, Room, Teacher, Training
from stillroom.engine.study.space import Float
from stillroom.errors import InputError, at_least_zero, one_of, positive
from stillroom.losses.detection import mean_kl
from stillroom.losses.precision import at_least_float32, in_one_type
from stillroom.tasks.detection import COCO, SCENES, TASK, DenseDetector, DetectionData
from stillroom.tasks.detection.boxes import IoUKind, paired_iou
from stillroom.tasks.detection.dense import DenseOutputs, DenseTargets, on_image
from stillroom.tasks.detection.supervised import DenseDistiller

Region = Literal["positives", "all"]
Baseline = Literal["softmax", "softmax-scaled", "ld"]
EPS = torch.finfo(torch.float32).eps  # the release adds it to the divisor of every averaged loss
_PAPER_CLASSES = 80
_DIVISOR = 32  # the release pads each image to a multiple of so many pixels, and counts positions up to there


def binary_classification_distillation(student_NC: Tensor, teacher_NC: Tensor, *, beta: float = 1.0, detach_gap: bool = False) -> Tensor:
    """sum over classes of |p_t - p_s|^beta * BCE(z_s, p_t), p = sigmoid(z); per row [N], float32 at least.

    Zero, with zero gradient, exactly where the scores are equal: unlike a softmax, it does not forgive a constant added to all logits.

    Args:
        student_NC, teacher_NC: class logits; no gradient reaches the teacher.
        beta: exponent of the gap, which weighs each binary problem.
        detach_gap: let no gradient through the gap. The released code lets it through, as the quality focal loss does.

    Raises:
        InputError: the shapes differ, or beta is below 0.
    """
    _same("teacher_NC", teacher_NC, student_NC)
    at_least_zero("beta", beta)
    logits_NC, teacher_NC = in_one_type(student_NC, teacher_NC.detach())
    soft_NC = teacher_NC.sigmoid()
    gap_NC = (soft_NC - logits_NC.sigmoid()).abs()
    if beta != 1:
        equal_NC = gap_NC == 0  # where the slope of a power below 1 is infinite, and the gradient would be NaN
        gap_NC = (gap_NC.masked_fill(equal_NC, 1.0) ** beta).masked_fill(equal_NC, 0.0**beta)
    if detach_gap:
        gap_NC = gap_NC.detach()
    return (gap_NC * binary_cross_entropy_with_logits(logits_NC, soft_NC, reduction="none")).sum(1)


def gap_weights(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """omega: the largest difference of a position's scores, max over classes of |p_t - p_s|; [N], float32 at least, without gradient.

    Raises:
        InputError: the shapes differ.
    """
    _same("teacher_NC", teacher_NC, student_NC)
    with torch.no_grad():
        return (at_least_float32(teacher_NC).sigmoid() - at_least_float32(student_NC).sigmoid()).abs().amax(1)


def iou_localisation_distillation(
    student_N4: Tensor, teacher_N4: Tensor, weights_N: Tensor, *, kind: IoUKind = "giou", eps: float = 1e-6
) -> Tensor:
    """omega * (1 - IoU(b_s, b_t)); per row [N], float32. The paper writes IoU, the released code takes GIoU.

    Args:
        student_N4, teacher_N4: boxes decoded from the same point, in any common unit; no gradient reaches the teacher's.
        weights_N: `gap_weights`, 0 where a row does not count.
        kind, eps: see `paired_iou`.

    Raises:
        InputError: there is not one weight for each row; see also `paired_iou`.
    """
    _same("weights_N", weights_N, student_N4[:, 0])
    return weights_N * (1 - paired_iou(student_N4, teacher_N4.detach(), kind, eps))


def _same(argument: str, found: Tensor, wanted: Tensor) -> None:
    if found.shape != wanted.shape:
        raise InputError(argument, f"shape {list(found.shape)}", f"the student's, {list(wanted.shape)}")


def bckd_terms(
    student: DenseOutputs,
    teacher: DenseOutputs,
    targets: DenseTargets,
    *,
    cls_weight: float = 1.0,
    loc_weight: float = 4.0,
    beta: float = 1.0,
    iou_kind: IoUKind = "giou",
    detach_gap: bool = False,
    skip_levels_without_positives: bool = True,
) -> dict[str, list[Tensor]]:
    """``cls`` (section 2) and ``loc`` (section 3), a scalar for each level.

    Args:
        student, teacher: answers to the same images, of equal layout.
        targets: give m, N_pos_total and which levels have a positive.
        cls_weight, loc_weight: alpha1, alpha2.
        beta: exponent of the gap in the classification term.
        iou_kind: overlap of the localisation term.
        detach_gap: see `binary_classification_distillation`.
        skip_levels_without_positives: as the release does (section 4); the paper sums over all positions. The release looks at each
            process by itself; here a positive on any process counts, so that several processes train as one does.
    """
    divisor = targets.positives + EPS
    terms: dict[str, list[Tensor]] = {"cls": [], "loc": []}
    for level in range(len(targets.labels)):
        z_s, z_t = student.logits[level].flatten(0, 1), teacher.logits[level].flatten(0, 1)
        b_s, b_t = (outputs.boxes[level].flatten(0, 1) / outputs.strides[level] for outputs in (student, teacher))
        m_N = targets.weights[level].flatten()
        if skip_levels_without_positives:  # a factor, not a branch: the graph and the clock stay the same
            m_N = m_N * targets.present[level]
        rows = binary_classification_distillation(z_s, z_t, beta=beta, detach_gap=detach_gap)
        terms["cls"].append(cls_weight * (m_N * rows).sum() / divisor)
        omega_N = m_N * gap_weights(z_s, z_t)
        terms["loc"].append(loc_weight * iou_localisation_distillation(b_s, b_t, omega_N, kind=iou_kind).sum() / divisor)
    return terms


def softmax_terms(
    student: DenseOutputs,
    teacher: DenseOutputs,
    targets: DenseTargets,
    *,
    weight: float = 10.0,
    temperature: float = 2.0,
    region: Region = "all",
    skip_levels_without_positives: bool = True,
) -> list[Tensor]:
    """The baseline that distils class logits under a softmax (7a), a scalar for each level.

    Args:
        region: ``all`` rows, divided by N_pos_total, as BCKD's release; ``positives``, divided by those of the level, as LD's.
    """
    terms = []
    for level, labels in enumerate(targets.labels):
        z_s, z_t = student.logits[level].flatten(0, 1), teacher.logits[level].flatten(0, 1)
        positive_N = (labels.flatten() < z_s.shape[-1]).to(z_s.dtype)
        m_N, divisor = positive_N, positive_N.sum().clamp_min(1)
        if region == "all":
            m_N, divisor = targets.weights[level].flatten(), targets.positives
        if skip_levels_without_positives:
            m_N = m_N * targets.present[level]
        terms.append(weight * (m_N * mean_kl(z_s, z_t, temperature)).sum() / (divisor + EPS))
    return terms


def ld_terms(
    student: DenseOutputs,
    teacher: DenseOutputs,
    targets: DenseTargets,
    *,
    weight: float = 0.25,
    region_weight: float = 0.25,
    temperature: float = 10.0,
    quality_weight_offset: float = 0.0,
) -> dict[str, list[Tensor]]:
    """Localisation distillation: ``ld`` at positives (7b) and ``ld_vlr`` in the valuable region (7c), a scalar for each level.

    Args:
        quality_weight_offset: added to the positives' weight v = max_c sigmoid(z_c).
    """
    terms: dict[str, list[Tensor]] = {"ld": [], "ld_vlr": []}
    for level, labels in enumerate(targets.labels):
        z_s = student.logits[level].flatten(0, 1)
        d_s, d_t = (outputs.bins[level].flatten(0, 1).unflatten(-1, (4, -1)) for outputs in (student, teacher))
        positive_N = labels.flatten() < z_s.shape[-1]
        kl_N = mean_kl(d_s, d_t, temperature).sum(1)
        v_N = (at_least_float32(z_s.detach()).sigmoid().amax(1) + quality_weight_offset) * positive_N
        terms["ld"].append(weight * (v_N * kl_N).sum() / 4)
        terms["ld_vlr"].append(region_weight * (targets.regions[level].flatten() * kl_N).sum() / 16)
    return terms


class BCKD(DenseDistiller):
    """A dense student taught inside the protocol of its task: scores as binary problems, boxes by their overlap.

    Args:
        student: the detector that learns.
        teacher: a detector with the same strides, positions and classes.
        cls_weight: alpha1, of the classification term.
        loc_weight: alpha2, of the localisation term.
        gap_exponent: beta, exponent of the gap in the classification term, at least 0.
        iou_kind: overlap of the localisation term: giou as the release, iou as the paper writes, diou or ciou [inferred].
        detach_gap: let no gradient through the classification term's gap.
        skip_levels_without_positives: leave out the levels of a batch in which nothing is, as the release does.
        count_padding: count positions up to the image's size rounded up to a multiple of 32, as the release does; in the detector's own
            losses too, where it tells an image from its padding (GFL). By default up to the image's edge: what lies behind it is no
            image, and how much of it there is depends on the size alone - 0.4 % of the positions at 800 x 1333, a tenth or more of small
            images whose sides are no multiples of 32.

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
        count_padding: bool = False,
    ) -> None:
        super().__init__(student, teacher)
        self.cls_weight, self.loc_weight = at_least_zero("cls_weight", cls_weight), at_least_zero("loc_weight", loc_weight)
        self.gap_exponent, self.detach_gap = at_least_zero("gap_exponent", gap_exponent), detach_gap
        self.iou_kind: IoUKind = iou_kind
        self.skip_levels_without_positives, self.count_padding = skip_levels_without_positives, count_padding

    def targets(self, outputs: DenseOutputs, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> DenseTargets:
        """What the positions are to answer; see `count_padding` for which there are."""
        if self.count_padding:
            padded = on_image(outputs.anchors, -(-outputs.image_sizes // _DIVISOR) * _DIVISOR)
            outputs = replace(outputs, valid=tuple(level | more for level, more in zip(outputs.valid, padded, strict=True)))
        return super().targets(outputs, boxes, labels)

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
        one_of("region", region, ("all", "positives"))
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


def build(student: DenseDetector, teacher: Teacher, data: DetectionData, **options: Any) -> BCKD:
    """The distiller for `data`, for this recipe and those that host other methods; the options are those of `BCKD`."""
    return BCKD(student, teacher, **options)


def recipe(
    lab: Lab,
    data: DetectionData,
    plan: Training = SCENES,
    networks: Networks = TASK.networks,
    baselines: list[Baseline] | None = None,
    **options: Any,
) -> Report:
    """Train (or load) a teacher, a student alone, and the same student with BCKD; compare them.

    Args:
        lab: where and how to run.
        data: the images and their boxes.
        plan: how the detectors are trained.
        networks: which they are; the student has the teacher's strides and positions.
        baselines: other arms: softmax (class logits under a softmax, weight 10), softmax-scaled (that weight times C / 80), ld
            (localisation distillation, for GFL).
        options: those of `BCKD`.
    """
    known: dict[str, Callable[[DenseDetector, Teacher], Distiller]] = {
        "softmax": lambda fresh, taught: SoftmaxKD(fresh, taught),
        "softmax-scaled": lambda fresh, taught: SoftmaxKD(fresh, taught, kd_weight=10 * data.num_classes / _PAPER_CLASSES),
        "ld": lambda fresh, taught: LD(fresh, taught),
    }
    wanted = baselines or []
    if len(set(wanted)) != len(wanted) or not set(wanted) <= set(known):
        raise InputError("baselines", list(wanted), f"some of {', '.join(known)}, each once")

    def distiller(fresh: DenseDetector, taught: Teacher) -> BCKD:
        return build(fresh, taught, data, **options)

    arms: dict[str, Callable[[DenseDetector, Teacher], Distiller]] = {name: known[name] for name in wanted}
    arms["bckd"] = distiller
    return Experiment(lab, data, plan, networks).run("bckd", arms)


PRESETS = {"paper": COCO}

ROOM = Room(
    recipe,
    tasks=("detection",),
    presets=PRESETS,
    expect="On these scenes BCKD gave +3.4 +- 1.9 AP over no distillation, which three seeds do not tell from chance; the paper "
    "sees +2.8 to +3.1 on COCO.",
    build=build,
    space={"cls_weight": Float(0.1, 10.0, log=True), "loc_weight": Float(0.4, 40.0, log=True), "gap_exponent": Float(0.5, 2.0)},
)
