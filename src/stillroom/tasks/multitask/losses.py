"""What each kind of target is trained with. A pixel whose truth is not known is in no loss.

Where none is known the loss is 0, with a graph. Each mean is over the known pixels of the batch of all processes. Truth that is not known
is `IGNORE` in classes and edges, NaN in depth and normals.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate, normalize

from stillroom.engine.distributed import averaged
from stillroom.losses.precision import at_least_float32
from stillroom.tasks.images.label_maps import IGNORE
from stillroom.tasks.images.pixel_classes import pixel_cross_entropy
from stillroom.tasks.multitask.targets import Target


def saliency_loss(scores_B2HW: Tensor, labels_BHW: Tensor) -> Tensor:
    """Cross-entropy of two classes, each pixel weighted by the share of the *other* class among the known pixels: w+ = `negatives`."""
    known_BHW = labels_BHW != IGNORE
    weight = negatives(labels_BHW)
    each_BHW = cross_entropy(at_least_float32(scores_B2HW), labels_BHW.long(), ignore_index=IGNORE, reduction="none")
    return _mean(each_BHW * torch.where(labels_BHW == 1, weight, 1 - weight), known_BHW)


def negatives(labels_BHW: Tensor) -> Tensor:
    """Share of the class 0 among the known pixels of all processes, a scalar; 0 where none is known."""
    zeros, known = averaged(torch.stack(((labels_BHW == 0).sum(), (labels_BHW != IGNORE).sum())).float())
    return zeros / known.clamp_min(1)


def depth_loss(depth_B1HW: Tensor, truth_B1HW: Tensor) -> Tensor:
    """Mean absolute error, in metres."""
    error_B1HW = (at_least_float32(depth_B1HW) - truth_B1HW.nan_to_num()).abs()
    return _mean(error_B1HW, truth_B1HW.isfinite())


def normals_loss(raw_B3HW: Tensor, truth_B3HW: Tensor) -> Tensor:
    """Absolute error of the unit vector, summed over its three components."""
    error_BHW = (normalize(at_least_float32(raw_B3HW), dim=1) - truth_B3HW.nan_to_num()).abs().sum(1)
    return _mean(error_BHW, truth_B3HW.isfinite().all(1))


def edge_loss(scores_B1HW: Tensor, labels_BHW: Tensor, positive_weight: float) -> Tensor:
    """Binary cross-entropy, edges weighted by w and all else by 1 - w.

    Args:
        scores_B1HW: logits.
        labels_BHW: 1 on an edge.
        positive_weight: w.
    """
    edge_BHW = (labels_BHW == 1).to(torch.float32)
    weight_BHW = torch.where(labels_BHW == 1, positive_weight, 1 - positive_weight)
    each_BHW = binary_cross_entropy_with_logits(at_least_float32(scores_B1HW[:, 0]), edge_BHW, reduction="none")
    return _mean(weight_BHW * each_BHW, labels_BHW != IGNORE)


def _mean(values: Tensor, known: Tensor) -> Tensor:
    # DDP takes the mean of the processes' gradients: so each sum is divided by their mean number of known pixels
    return torch.where(known, values, 0.0).sum() / averaged(known.sum().float()).clamp_min(1)


def target_loss(target: Target, raw_BCHW: Tensor, truth: Tensor) -> Tensor:
    """The loss of a target's kind, without its weight.

    Args:
        raw_BCHW: a network's answer, of any resolution: it is brought to the truth's.
        truth: [B, H, W] of labels, [B, 1 or 3, H, W] of what is measured.
    """
    raw_BCHW = enlarged(raw_BCHW, truth.shape[-2:])
    if target.kind == "classes":
        return pixel_cross_entropy(raw_BCHW, truth)
    if target.kind == "edges":
        return edge_loss(raw_BCHW, truth, target.positive_weight)
    return {"saliency": saliency_loss, "depth": depth_loss, "normals": normals_loss}[target.kind](raw_BCHW, truth)


def enlarged(raw_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """A raw answer, bilinearly in another height and width."""
    return (
        raw_BCHW if tuple(raw_BCHW.shape[2:]) == tuple(size) else interpolate(raw_BCHW, tuple(size), mode="bilinear", align_corners=False)
    )
