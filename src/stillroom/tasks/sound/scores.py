"""Figures of depth maps, class maps and reconstructions, as the paper's tables have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stillroom.losses.precision import in_one_type

DELTA = 1.25
CLAMP = (0.1, 10.0)  # metres
LAYOUT = (1, 2, 3)  # wall, floor, ceiling
# Source: the benchmark's scripts: Matterport's 42 categories to nine classes; all others are ignored.
NINE = {
    1: (1, 6, 12, 21, 22, 23, 27, 31),
    2: (2, 16),
    3: (17, 28, 29),
    4: (3, 10, 19, 34),
    5: (4,),
    6: (5, 7, 13, 15, 25, 26, 36, 37),
    7: (9,),
    8: (11,),
    9: (24,),
}
NINE_NAMES = ("wall", "floor", "ceiling", "seating", "door", "furniture", "window", "bed", "column")


class DepthFigures(NamedTuple):
    """Figures of depth.

    Attributes:
        mae, rmse: in metres, scalars.
        delta: shares with max(p / t, t / p) < 1.25^i, [3].
    """

    mae: Tensor
    rmse: Tensor
    delta: Tensor


def depth_metrics(predicted: Tensor, target: Tensor, valid: Tensor) -> DepthFigures:
    """Figures over all valid pixels of what is given, pooled; NaN where there is none.

    Args:
        predicted, target: metres, of one shape.
        valid: where the target is known: bool, or above 0.
    """
    (found_5,) = _figures(*(values.reshape(1, -1) for values in (predicted, target, valid)))
    return DepthFigures(found_5[0], found_5[1], found_5[2:])


def image_depth_metrics(predicted_NHW: Tensor, target_NHW: Tensor, valid_NHW: Tensor, clamp: tuple[float, float] = CLAMP) -> Tensor:
    """`depth_metrics` of each image after both maps are clamped, [N, 5]: MAE, RMSE, d1, d2, d3; NaN for one without a valid pixel."""
    return _figures(predicted_NHW.clamp(*clamp).flatten(1), target_NHW.clamp(*clamp).flatten(1), valid_NHW.flatten(1))


def _figures(predicted_NM: Tensor, target_NM: Tensor, valid_NM: Tensor) -> Tensor:
    known_NM = valid_NM > 0
    p_NM, t_NM = (torch.where(known_NM, values, 1.0) for values in in_one_type(predicted_NM, target_NM))
    error_NM, ratio_NM = (p_NM - t_NM).abs(), torch.maximum(p_NM / t_NM, t_NM / p_NM)
    columns = [error_NM, error_NM.square(), *((ratio_NM < DELTA**i).to(p_NM.dtype) for i in (1, 2, 3))]
    means_N5 = torch.stack([torch.where(known_NM, column, 0.0).sum(1) for column in columns], 1) / known_NM.sum(1, keepdim=True)
    means_N5[:, 1] = means_N5[:, 1].sqrt()
    return means_N5


def depth_metrics_table(
    predicted_NHW: Tensor, target_NHW: Tensor, valid_NHW: Tensor, clamp: tuple[float, float] = CLAMP
) -> tuple[DepthFigures, int]:
    """The paper's figures: of each image, then the mean of the images that have valid pixels, and how many these are."""
    each_N5 = image_depth_metrics(predicted_NHW, target_NHW, valid_NHW, clamp)
    known_M5 = each_N5[each_N5[:, 0].isfinite()]
    mean_5 = known_M5.mean(0)
    return DepthFigures(mean_5[0], mean_5[1], mean_5[2:]), len(known_M5)


def nine_classes(category_HW: Tensor, min_share: float = 0.01) -> Tensor:
    """DAPS-Semantic's labels of a picture, 0 to 9: first what covers less of it than `min_share` becomes 0, then categories are mapped.

    Two passes, not one: no class that the mapping made is mapped or counted again (as the benchmark's script would).

    Args:
        category_HW: Matterport's categories, 0 to 42.
        min_share: of the pixels.
    """
    counts = torch.bincount(category_HW.flatten(), minlength=43)
    table = torch.zeros(len(counts), dtype=torch.long)
    for label, categories in NINE.items():
        table[list(categories)] = label
    table[counts < min_share * category_HW.numel()] = 0
    return table[category_HW]


class SegmentationFigures(NamedTuple):
    """Shares from 0 to 1, scalars."""

    pixel_accuracy: Tensor
    mean_accuracy: Tensor
    mean_iou: Tensor
    layout_iou: Tensor


def confusion_counts(predicted: Tensor, target: Tensor, classes: int) -> Tensor:
    """Pixels by target (rows) and prediction, int64 [C, C]; those with target 0 count nowhere.

    Args:
        predicted: 1 to C.
        target: 0 (ignored), 1 to C.
    """
    kept = target > 0
    pairs = (target[kept].long() - 1) * classes + predicted[kept].long() - 1
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def segmentation_metrics(counts_CC: Tensor, layout: Sequence[int] = LAYOUT) -> SegmentationFigures:
    """Figures of a confusion: means over the classes that the target has, and the mean IoU of those in `layout`.

    Args:
        counts_CC: of `confusion_counts`.
        layout: numbers from 1 of wall, floor and ceiling.
    """
    counts = counts_CC.double()
    right_C, true_C = counts.diagonal(), counts.sum(1)
    accuracy_C, iou_C = right_C / true_C, right_C / (true_C + counts.sum(0) - right_C)
    present = true_C > 0
    inner = [label - 1 for label in layout if label <= len(present) and bool(present[label - 1])]
    return SegmentationFigures(right_C.sum() / true_C.sum(), accuracy_C[present].mean(), iou_C[present].mean(), iou_C[inner].mean())


class Surface(NamedTuple):
    """Points [N, 3] in the unit cube and unit normals [N, 3] of a surface."""

    points: np.ndarray
    normals: np.ndarray


class ReconstructionFigures(NamedTuple):
    """Figures of a surface: see `surface_metrics`."""

    chamfer_l1: float
    normal_consistency: float
    f_score: float


def occupancy_iou(probability: Tensor, truth: Tensor, threshold: float = 0.5) -> Tensor:
    """Volumetric IoU at query points over the last dimension; 1 where both are empty.

    Args:
        probability: predicted, [..., Q].
        truth: [..., Q], occupied at 0.5 or more.
        threshold: of the prediction, "at least".
    """
    p, t = probability >= threshold, truth >= 0.5
    union = (p | t).sum(-1)
    return torch.where(union > 0, (p & t).sum(-1) / union.clamp_min(1), 1.0)


def surface_metrics(predicted: Surface, truth: Surface, threshold: float = 0.01) -> ReconstructionFigures:
    """Chamfer-L1, normal consistency and F-score of sampled surfaces.

    Chamfer-L1 is half of the mean distances there and back; normal consistency half of the sums of mean |n . n'| of nearest neighbours;
    the F-score that of the shares within `threshold` (all in units of the cube). A prediction without a surface is as far as the cube's
    diagonal, and 0 in the other two.

    Source: occupancy networks' evaluation.
    """
    if not len(predicted.points):
        return ReconstructionFigures(float(np.sqrt(3)), 0.0, 0.0)
    there, back = _nearest(predicted, truth), _nearest(truth, predicted)
    precision, recall = ((distances <= threshold).mean() for distances, _ in (there, back))
    f_score = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    means = [(distances.mean() + other.mean()) / 2 for distances, other in zip(there, back, strict=True)]
    return ReconstructionFigures(float(means[0]), float(means[1]), float(f_score))


def _nearest(source: Surface, target: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Of each point: how far the nearest of the others is, and |n . n'| with its normal."""
    from scipy.spatial import cKDTree

    distance_N, index_N = cKDTree(target.points).query(source.points)
    return distance_N, np.abs((source.normals * target.normals[index_N]).sum(1))
