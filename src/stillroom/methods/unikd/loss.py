"""The losses of UniKD: what the extractors learn from the teacher's maps by (absorb), and what the student is compared by (inject)."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import box_convert, sigmoid_focal_loss

from stillroom.errors import InputError
from stillroom.losses.precision import at_least_float32, in_one_type
from stillroom.tasks.detection.boxes import paired_iou

WEIGHTS = {"class": 2.0, "l1": 5.0, "giou": 2.0}


def absorb_terms(
    logits_MK: Tensor,
    boxes_M4: Tensor,
    labels_M: Tensor,
    wanted_M4: Tensor,
    positive_M: Tensor,
    *,
    count: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> dict[str, Tensor]:
    """``class`` (focal loss of all queries and classes), ``l1`` and ``giou`` (1 - GIoU) of the positive ones; sums divided by `count`.

    `WEIGHTS` says how they are added.

    Args:
        logits_MK, boxes_M4: answers of M queries, of any number of images; boxes (centre x, centre y, width, height), relative.
        labels_M, wanted_M4: of the object that each stands for; read where `positive_M` is true.
        positive_M: bool.
        count: positive queries, at least 1.
        alpha, gamma: of the focal loss.
    """
    target_MK = logits_MK.new_zeros(logits_MK.shape).scatter_(1, labels_M[:, None], positive_M[:, None].to(logits_MK.dtype))
    boxes_M4, wanted_M4 = in_one_type(boxes_M4, wanted_M4)
    corners = box_convert(boxes_M4, "cxcywh", "xyxy"), box_convert(wanted_M4, "cxcywh", "xyxy")
    return {
        "class": sigmoid_focal_loss(at_least_float32(logits_MK), at_least_float32(target_MK), alpha, gamma, reduction="sum") / count,
        "l1": ((boxes_M4 - wanted_M4).abs().sum(1) * positive_M).sum() / count,
        "giou": ((1 - paired_iou(*corners, "giou", 1e-12)) * positive_M).sum() / count,
    }


def embedding_distance(student_BNC: Tensor, teacher_BNC: Tensor, positive_BN: Tensor) -> Tensor:
    """D: mean over the positive queries of e plus mean over the others of e, e = mean over the channels of (z_s - z_t)^2; scalar, float32.

    The many queries that stand for background cannot drown the few that stand for objects. An empty group contributes 0.

    Args:
        student_BNC, teacher_BNC: embeddings of the same queries; no gradient reaches the teacher's.
        positive_BN: bool.

    Raises:
        InputError: the shapes differ.
    """
    if student_BNC.shape != teacher_BNC.shape:
        raise InputError("teacher_BNC", f"embeddings of shape {list(teacher_BNC.shape)}", f"the student's, {list(student_BNC.shape)}")
    student_BNC, teacher_BNC = in_one_type(student_BNC, teacher_BNC.detach())
    e_BN = (student_BNC - teacher_BNC).square().mean(2)
    parts = [((e_BN * group).sum() / group.sum().clamp_min(1)) for group in (positive_BN, ~positive_BN)]
    return parts[0] + parts[1]
