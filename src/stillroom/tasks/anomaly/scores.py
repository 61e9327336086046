"""Figures of anomaly detection, of scores of any range: ROC and precision-recall areas, F1-max, AUPRO, and the threshold."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_precision_recall_curve

from stillroom.errors import InputError, share

FPR_LIMIT = 0.3
_EIGHT = np.ones((3, 3), np.int64)  # pixels that touch by a corner are of one region


def ranks(scores: np.ndarray) -> Tensor:
    """Each score's place among the distinct ones, from 0 to 1, float64: what torchmetrics may be given.

    Scores beyond [0, 1] it takes for logits, and a sigmoid makes equal what is large.

    Raises:
        InputError: a score that is no number.
    """
    finite(scores)
    values, places = np.unique(scores, return_inverse=True)
    return torch.from_numpy(places.reshape(-1) / max(len(values) - 1, 1))


def finite(scores: np.ndarray) -> None:
    """Raises InputError where a score is no number or infinite."""
    if not np.isfinite(scores).all():
        raise InputError("scores", f"{(~np.isfinite(scores)).sum()} that are not finite", "finite anomaly scores; did the student diverge?")


def detection(scores_N: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """How well scores tell anomalous samples (1) from normal ones (0), in parts of 1: ``auroc``, ``ap`` (step-wise) and ``f1max``, the
    best F1 over all thresholds. NaN, with a warning, where one of the two kinds is missing.

    Raises:
        InputError: a score that is no number.
    """
    ranked_N, labels = ranks(scores_N), torch.from_numpy(labels_N.reshape(-1).astype(np.int64))
    if labels.min() == labels.max():
        warnings.warn(f"all samples are {'anomalous' if labels.all() else 'normal'}: AUROC, AP and F1 are undefined", stacklevel=2)
        return dict.fromkeys(("auroc", "ap", "f1max"), math.nan)
    precision, recall, _ = binary_precision_recall_curve(ranked_N, labels)
    f1 = (2 * precision * recall / (precision + recall)).nan_to_num(0.0)
    ap = -((recall[1:] - recall[:-1]) * precision[:-1]).sum()  # as torchmetrics has it, without sorting once more
    found = {"auroc": binary_auroc(ranked_N, labels), "ap": ap, "f1max": f1.max()}
    return {name: float(value) for name, value in found.items()}


def aupro(maps_NHW: np.ndarray, masks_NHW: np.ndarray, limit: float = FPR_LIMIT) -> float:
    """Area under PRO over FPR up to `limit`, divided by it: 1 for a perfect map, `limit` / 2 for a constant one.

    A region is what is connected of a mask, by corners too. For every distinct threshold PRO is the mean over all regions of all images of
    the share that lies at or above it, and FPR the share of all normal pixels, of good images too. The curve starts at (0, 0), and is
    interpolated linearly at the limit.

    Args:
        maps_NHW: scores of any range.
        masks_NHW: 0 for normal pixels.
        limit: above 0, at most 1.

    Returns:
        In parts of 1; 0, with a warning, without a region or without a normal pixel, as anomalib has it.

    Raises:
        InputError: a score that is no number.
    """
    from scipy.ndimage import label

    finite(maps_NHW)
    shares = np.zeros(masks_NHW.shape)  # of PRO, that a pixel adds where it is found
    regions = 0
    for mask_HW, share_HW in zip(masks_NHW, shares, strict=True):
        labelled_HW, count = label(mask_HW != 0, structure=_EIGHT)
        if count:
            areas = np.bincount(labelled_HW.ravel())
            share_HW += np.where(labelled_HW > 0, 1 / areas[labelled_HW], 0.0)
            regions += count
    normal = masks_NHW == 0
    if not regions or not normal.any():
        warnings.warn(f"no {'normal pixel' if regions else 'anomalous region'}: AUPRO is undefined, 0 is given", stacklevel=2)
        return 0.0
    order = np.argsort(-maps_NHW.ravel(), kind="stable")
    scores = maps_NHW.ravel()[order]
    pro = np.cumsum(shares.ravel()[order]) / regions
    fpr = np.cumsum(normal.ravel()[order]) / normal.sum()
    distinct = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # the last pixel of each score: equal ones are taken together
    fpr, pro = np.append(0.0, fpr[distinct]), np.append(0.0, pro[distinct])
    inside = int(np.searchsorted(fpr, limit, side="right"))  # points up to the limit, of which the last may lie on it
    at_limit = float(np.interp(limit, fpr[inside - 1 : inside + 1], pro[inside - 1 : inside + 1]))
    return float(np.trapezoid(np.append(pro[:inside], at_limit), np.append(fpr[:inside], limit)) / limit)


def normal_threshold(scores_N: np.ndarray, quantile: float) -> float:
    """The score above which an image is called anomalous: a quantile of the scores of held-out normal images, one of these scores itself.

    At 1 it is the largest: no image that was held out is above it. Nothing but normal images is known before a model is used.

    Raises:
        InputError: no score, one that is no number, or a quantile outside [0, 1].
    """
    share("quantile", quantile)
    if not len(scores_N):
        raise InputError("val", "no held-out normal image", "at least one, of which the threshold is made")
    finite(scores_N)
    return float(np.quantile(scores_N, quantile, method="higher"))
