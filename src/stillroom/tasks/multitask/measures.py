"""The figures of dense targets: of depth, directions, and of edges and objects by their best threshold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, normalize, pad

SALIENCY_THRESHOLDS = tuple(0.05 * k for k in range(1, 20))
EDGE_THRESHOLDS = tuple(0.1 * k for k in range(1, 10))
SALIENCY_BETA2 = 0.3  # weight of precision in F, squared


def squared_errors(depth: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of squared errors, sum of errors relative to the truth, and how many pixels are known (finite); float64 scalars."""
    known = truth.isfinite()
    error, depths = (depth[known] - truth[known]).double(), truth[known].double()
    return error.square().sum(), (error.abs() / depths).sum(), known.sum().double()


def within_factor(depth: Tensor, truth: Tensor, factor: float = 1.25) -> Tensor:
    """How many known pixels are right up to a factor; a float64 scalar."""
    known = truth.isfinite()
    ours, theirs = depth[known].clamp_min(1e-6), truth[known]
    return (torch.maximum(ours / theirs, theirs / ours) < factor).sum().double()


def angles(raw_B3HW: Tensor, truth_B3HW: Tensor) -> Tensor:
    """Degrees between both directions at the known pixels, 2 atan2(|a - b|, |a + b|) of unit vectors, float64 [N]."""
    a, b = (normalize(one.double(), dim=1).movedim(1, -1)[truth_B3HW.isfinite().all(1)] for one in (raw_B3HW, truth_B3HW))
    return torch.rad2deg(2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1)))


def saliency_counts(probability: Tensor, truth: Tensor, thresholds: Sequence[float] = SALIENCY_THRESHOLDS) -> Tensor:
    """Hits, predicted and true pixels at each threshold (predicted: at least it), int64 [3, thresholds].

    Args:
        probability: of the object, any shape.
        truth: 1 on it, 0 beside it, anything else is not known.
    """
    found = torch.stack([probability >= threshold for threshold in thresholds]) & (truth <= 1)
    true = truth == 1
    summed = tuple(range(1, found.ndim))
    return torch.stack(((found & true).sum(summed), found.sum(summed), true.sum().expand(len(thresholds))))


def edge_counts(probability_HW: Tensor, truth_HW: Tensor, radius: float, thresholds: Sequence[float] = EDGE_THRESHOLDS) -> Tensor:
    """Tolerance form of the boundary measure: no thinning, no matching, only the distance to the nearest edge of the other side.

    Args:
        probability_HW: of an edge.
        truth_HW: 1 on an edge, 0 beside it, anything else is not known: what is predicted there is not counted.
        radius: pixels that an edge may lie off.
        thresholds: an edge is predicted where the probability is at least one of these.

    Returns:
        int64 [4, thresholds]: predicted pixels near a true edge, predicted ones, true ones near a predicted edge, true ones.
    """
    edges, known = truth_HW == 1, truth_HW <= 1
    near_truth, most_near = within(edges.float(), radius) > 0, within(torch.where(known, probability_HW, 0.0), radius)
    predicted = torch.stack([(probability_HW >= threshold) & known for threshold in thresholds])
    met = torch.stack([most_near[edges] >= threshold for threshold in thresholds])
    counts = (predicted & near_truth).sum((1, 2)), predicted.sum((1, 2)), met.sum(1), edges.sum().expand(len(thresholds))
    return torch.stack(counts)


def within(values_HW: Tensor, radius: float) -> Tensor:
    """The largest value at no more than `radius` pixels from each, by a maximum over every line of the disc; float [H, W]."""
    reach = int(radius)
    padded = pad(values_HW, (0, 0, reach, reach), value=-torch.inf)
    largest = values_HW
    for down in range(-reach, reach + 1):
        half = int((radius**2 - down**2) ** 0.5)
        line = padded[reach + down : reach + down + len(values_HW)]
        largest = torch.maximum(largest, max_pool2d(line[None, None], (1, 2 * half + 1), stride=1, padding=(0, half))[0, 0])
    return largest


def best_f(precision: Tensor, recall: Tensor, beta2: float = 1.0) -> float:
    """The largest F = (1 + beta^2) P R / (beta^2 P + R) over the thresholds; 0 where both are 0 everywhere."""
    weighted = beta2 * precision + recall
    return float(torch.where(weighted > 0, (1 + beta2) * precision * recall / weighted, 0.0).max())


def quotient(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where the whole is; float64."""
    return torch.where(whole > 0, part.double() / whole, 0.0)


def max_f(counts: Tensor) -> float:
    """The best F of `saliency_counts`, summed over a set, in [0, 1]."""
    hits, predicted, true = counts
    return best_f(quotient(hits, predicted), quotient(hits, true), SALIENCY_BETA2)


def ods_f(counts: Tensor) -> float:
    """The best F of `edge_counts`, summed over a set, in [0, 1]."""
    near, predicted, met, true = counts
    return best_f(quotient(near, predicted), quotient(met, true))


def delta_m(single: Sequence[float], multi: Sequence[float], lower_is_better: Sequence[bool]) -> float:
    """Mean relative gain of a multi-task network over networks of one target each, in %; above 0 is better.

    Source: section "Training and evaluation protocol" of the method.
    """
    gains = [(m - s) / s * (-1 if lower else 1) for s, m, lower in zip(single, multi, lower_is_better, strict=True)]
    return 100 * sum(gains) / len(gains)
