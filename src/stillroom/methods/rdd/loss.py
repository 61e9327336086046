"""RDD's disparity, weights and losses (sections 5 to 7), and what its rivals minimise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from stillroom.errors import at_least_zero, one_of, positive, share

Mode = Literal["threshold", "projected_gradient", "ratio"]


@dataclass(frozen=True)
class Selection:
    """How the inner problem min over 0 <= m <= 1 of sum_i m_i (lambda - d_i) is solved.

    Args:
        mode: ``threshold``: the closed form, m = 1 where d > lambda; ``projected_gradient``: some steps of it, which leaves weights in
            between; ``ratio``: m = 1 for a share of the pairs, those of the largest d (of equal ones the first).
        sparsity: lambda, of the first two.
        ratio: that share, at least one pair.
        steps, rate, start: of the second: how many, eta, and m of before the first.

    Raises:
        InputError: a number is out of its range.
    """

    mode: Mode = "threshold"
    sparsity: float = 0.1
    ratio: float = 0.6
    steps: int = 10
    rate: float = 1.0
    start: float = 0.5

    def __post_init__(self) -> None:
        one_of("mode", self.mode, get_args(Mode))
        at_least_zero("sparsity", self.sparsity)
        share("ratio", self.ratio)

    def weights(self, disparity: Tensor) -> Tensor:
        """m [n] of disparities [n], without gradient."""
        d = disparity.detach()
        if self.mode == "threshold":
            return (d > self.sparsity).to(d)
        if self.mode == "ratio":
            chosen = d.argsort(descending=True, stable=True)[: max(1, round(self.ratio * len(d)))]
            return torch.zeros_like(d).index_fill_(0, chosen, 1.0)
        m = torch.full_like(d, self.start)
        for _ in range(self.steps):
            m = (m - self.rate * (self.sparsity - d)).clamp(0, 1)
        return m


def disparity(student_regions: Tensor, teacher_regions: Tensor, temperature: float = 4.0) -> Tensor:
    """d_i, the length of the difference of two crops after a softmax over channels at every position; a sum over the crop, not a mean.

    Args:
        student_regions: adapted and cropped, [n, C, P, P].
        teacher_regions: [n, C, P, P]; no gradient reaches them.
        temperature: tau > 0.

    Returns:
        [n] in float32; 1e-6 of equal crops, whose gradient is 0.
    """
    positive("temperature", temperature)
    mine = (student_regions.float() / temperature).softmax(1)
    theirs = (teacher_regions.detach().float() / temperature).softmax(1)
    return ((mine - theirs).square().sum((1, 2, 3)) + 1e-12).sqrt()


class PairLosses(NamedTuple):
    """d [n], m [n], L_feat and L_logit of n pairs."""

    disparity: Tensor
    weights: Tensor
    feature: Tensor
    logit: Tensor


def pair_losses(
    student_regions: Tensor,
    teacher_regions: Tensor,
    student_probs: Tensor,
    teacher_probs: Tensor,
    selection: Selection,
    temperature: float = 4.0,
) -> PairLosses:
    """The two losses of n region pairs, both divided by n, whether a pair was selected or not; 0 of no pair.

    L_feat = sum_i m_i d_i / n (sections 5 and 6), L_logit = sum_i m_i sum_k mean over the crop |p_k^S - p_k^T| / n (section 7).

    Args:
        student_regions, teacher_regions: see `disparity`.
        student_probs, teacher_probs: crops of the class probabilities [n, K, P, P]; no gradient reaches the teacher's.
        selection: of the weights.
        temperature: tau.
    """
    d = disparity(student_regions, teacher_regions, temperature)
    m, count = selection.weights(d), max(len(d), 1)
    apart = (student_probs.float() - teacher_probs.detach().float()).abs().mean((2, 3)).sum(1)
    return PairLosses(d, m, (m * d).sum() / count, (m * apart).sum() / count)


def anchor_logit_loss(student_cls: Tensor, teacher_cls: Tensor, student_reg: Tensor, teacher_reg: Tensor, weights: Tensor) -> Tensor:
    """L_logit of anchor-based detectors: sum_i m_i (|p^S - p^T| + |r^S - r^T| + |sin(yaw^S - yaw^T)|) / n, summed over classes and codes.

    Args:
        student_cls, teacher_cls: class probabilities [n, K] at each pair's own anchor; no gradient reaches the teacher's.
        student_reg, teacher_reg: residual codes [n, 7], the last of the yaw; likewise.
        weights: m [n].
    """
    cls = (student_cls.float() - teacher_cls.detach().float()).abs().sum(1)
    away = student_reg.float() - teacher_reg.detach().float()
    apart = cls + away[:, :6].abs().sum(1) + away[:, 6].sin().abs()
    return (weights * apart).sum() / max(len(weights), 1)


def pp_heatmap_loss(student_probs: Tensor, teacher_probs: Tensor, gt_heatmap: Tensor, weight: float = 10.0) -> Tensor:
    """PP's loss of one group of classes: weight * sum(mask (h^S - h^T)^2) / (sum mask + 1e-6), mask = max_k h^T * max_k G at a position.

    Args:
        student_probs, teacher_probs: probabilities [B, K, ny, nx]; no gradient reaches the teacher's.
        gt_heatmap: G, the Gaussians around true boxes [B, K, ny, nx].
        weight: of the whole.

    Source: PillarDistill / pivotal position distillation, as RDD's comparison uses it. The mask counts once for each class in the
    numerator and once in all in the denominator.
    """
    theirs = teacher_probs.detach().float()
    mask = theirs.amax(1, keepdim=True) * gt_heatmap.amax(1, keepdim=True)
    return weight * (mask * (student_probs.float() - theirs).square()).sum() / (mask.sum() + 1e-6)


def hint_loss_where(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of two maps [B, C, ny, nx], over all cells or those of a mask [B, 1, ny, nx]; 0 of an empty one."""
    apart = (student.float() - teacher.detach().float()).square().mean(1, keepdim=True)
    return apart.mean() if mask is None else (apart * mask).sum() / mask.sum().clamp_min(1)
