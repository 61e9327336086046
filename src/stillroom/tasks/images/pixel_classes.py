"""Classes of pixels: the loss that networks learn them by, and intersection over union, pooled over a set."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_confusion_matrix

from stillroom.engine.distributed import averaged
from stillroom.losses.precision import at_least_float32
from stillroom.tasks.images.label_maps import IGNORE


def pixel_cross_entropy(scores_BCHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """The mean over the pixels of the batch of all processes whose class is known; 0 where there is none."""
    each_BHW = cross_entropy(at_least_float32(scores_BCHW), masks_BHW.long(), ignore_index=IGNORE, reduction="none")
    # DDP takes the mean of the processes' gradients: so each sum is divided by their mean number of known pixels
    return each_BHW.sum() / averaged((masks_BHW != IGNORE).sum().float()).clamp_min(1)


def confusion(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Pixels by their true and their predicted class, int64 [C, C]; what is predicted where the truth is `IGNORE` changes nothing."""
    return multiclass_confusion_matrix(predicted, truth, num_classes, ignore_index=IGNORE, validate_args=False)


def class_ious(confusion_CC: Tensor) -> Tensor:
    """IoU of each class in [0, 1], float64 [C]: intersection over union of truth and prediction; NaN for a class that is in neither."""
    hit_C, union_C = hits_and_unions(confusion_CC)
    return torch.where(union_C > 0, hit_C.double() / union_C, torch.nan)


def hits_and_unions(confusion_CC: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels of each class in truth and prediction, and in either; int64 [C] both."""
    hit_C = confusion_CC.diagonal()
    return hit_C, confusion_CC.sum(1) + confusion_CC.sum(0) - hit_C


def mean_iou(confusion_CC: Tensor) -> float:
    """The mean over the classes that are in truth or prediction, in [0, 1]; NaN where none is."""
    return float(class_ious(confusion_CC).nanmean())


def mean_iou_of_all(confusion_CC: Tensor) -> float:
    """The mean over all classes, in [0, 1]: one that is nowhere counts 0, as multi-task papers have it; see `mean_iou`."""
    return float(class_ious(confusion_CC).nan_to_num().mean())


def ious(hits_C: np.ndarray, unions_C: np.ndarray) -> np.ndarray:
    """IoU of each class, float64 [C]; NaN for one that is nowhere."""
    return np.divide(hits_C, unions_C, out=np.full(len(hits_C), np.nan), where=unions_C > 0)
