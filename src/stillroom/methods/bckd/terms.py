"""The distillation terms of a whole batch: sums over pyramid levels, each divided as the release divides it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from stillroom.losses.detection import mean_kl
from stillroom.losses.precision import at_least_float32
from stillroom.methods.bckd.loss import binary_classification_distillation, gap_weights, iou_localisation_distillation
from stillroom.tasks.detection.boxes import IoUKind
from stillroom.tasks.detection.dense import DenseOutputs, DenseTargets

Region = Literal["positives", "all"]
EPS = torch.finfo(torch.float32).eps  # the release adds it to the divisor of every averaged loss


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
