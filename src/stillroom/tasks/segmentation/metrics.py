"""How well pixels are classified: one confusion matrix pooled over the set, IoU of each class, and their mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

IGNORE = 255  # the id of pixels that count nowhere


def confusion(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Pixels by their true and their predicted class, int64 [C, C]; what is predicted where the truth is `IGNORE` changes nothing."""
    return multiclass_confusion_matrix(predicted, truth, num_classes, ignore_index=IGNORE, validate_args=False)


def class_ious(confusion_CC: Tensor) -> Tensor:
    """IoU of each class in [0, 1], float64 [C]: intersection over union of truth and prediction; NaN for a class that is in neither."""
    counts = confusion_CC.double()
    hit_C = counts.diagonal(dim1=-2, dim2=-1)
    union_C = counts.sum(-1) + counts.sum(-2) - hit_C
    return torch.where(union_C > 0, hit_C / union_C, torch.nan)


def mean_iou(confusion_CC: Tensor, *, without: int | None = None) -> float:
    """The mean over the classes that occur in truth or prediction, in [0, 1]; NaN where none does.

    Args:
        confusion_CC: see `confusion`, over a whole set.
        without: a class that is left out of the mean, the background.
    """
    ious_C = class_ious(confusion_CC)
    if without is not None:
        ious_C = torch.cat((ious_C[:without], ious_C[without + 1 :]))
    return float(ious_C.nanmean())
