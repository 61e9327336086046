"""What the teacher knows about unlabelled images, and which of them a round promotes (the specification's stages 2 and 4).

Features are the teacher's projections g(x), not normalised. The memory A_k of class k holds the features of the images that are
labelled, or promoted, as k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stillroom.errors import InputError
from stillroom.losses.precision import at_least_float32

_EPSILON = 1e-8
_GROUP = 16  # rows of the memory that are brought down to their maximum by plain reductions
_AT_ONCE = 2**23  # similarities that are held at a time: 32 MB


class Knowledge(NamedTuple):
    """What a round's student is told of U unlabelled images; constants, without gradient.

    Attributes:
        scores: S float32 [U, C] in [-1, 1], the largest cosine similarity to each class's memory.
        labels: yhat int64 [U], the class of the largest score; the lowest of several.
        weights: w float32 [U] in [0, 2], the largest score less the second largest.
    """

    scores: Tensor
    labels: Tensor
    weights: Tensor


@torch.no_grad()
def knowledge(features_UD: Tensor, memory_MD: Tensor, memory_labels_M: Tensor, num_classes: int) -> Knowledge:
    """Pseudo-labels and weights of unlabelled images (stage 2).

        S[u, k] = max_{a in A_k} <z_u, a>      yhat_u = argmax_k S[u, k]      w_u = s1 (1 - s2 / s1) = s1 - s2

    with z = g / (|g| + 1e-8) and s1 >= s2 the two largest scores. An image of an unknown class is about as similar to every target
    class, and weighs little.

    Args:
        features_UD: projections of the unlabelled images; of none, if there are none.
        memory_MD: projections of the memory's images.
        memory_labels_M: int64, their classes 0 .. C-1.
        num_classes: C >= 2.

    Raises:
        InputError: fewer than two classes, a class without memory, a feature that is not finite, or shapes that do not fit.
    """
    scores_UC = class_scores(features_UD, memory_MD, memory_labels_M, num_classes)
    largest_U2 = scores_UC.topk(2, dim=1).values
    return Knowledge(scores_UC, scores_UC.argmax(1), largest_U2[:, 0] - largest_U2[:, 1])


@torch.no_grad()
def class_scores(features_UD: Tensor, memory_MD: Tensor, memory_labels_M: Tensor, num_classes: int) -> Tensor:
    """S of `knowledge`, float32 [U, C]; its arguments and errors.

    The U x M similarities are made in pieces. The memory is sorted by class into groups of equal length, short ones filled up with a
    row that they have already: the maxima over groups, which are plain reductions, leave few rows for the scattered one.
    """
    _check(features_UD, memory_MD, memory_labels_M, num_classes)
    order_G, class_G = _groups(memory_labels_M, num_classes)
    memory_GD = unit_rows(memory_MD)[order_G]
    scores_CU = features_UD.new_empty(num_classes, len(features_UD), dtype=torch.float32)
    chunk = max(1, _AT_ONCE // len(memory_GD))
    with torch.autocast(features_UD.device.type, enabled=False):
        for start in range(0, len(features_UD), chunk):
            rows_BD = unit_rows(features_UD[start : start + chunk])
            similarities_GB = (memory_GD @ rows_BD.T).view(len(class_G), _GROUP, -1).amax(1)
            lowest_CB = similarities_GB.new_full((num_classes, len(rows_BD)), -torch.inf)
            index_GB = class_G[:, None].expand_as(similarities_GB)
            scores_CU[:, start : start + chunk] = lowest_CB.scatter_reduce(0, index_GB, similarities_GB, "amax")
    return scores_CU.T.contiguous()


def unit_rows(features_ND: Tensor) -> Tensor:
    """z = g / (|g| + 1e-8), in float32; a row of zeros stays zero and is similar to nothing."""
    features_ND = at_least_float32(features_ND)
    return features_ND / (features_ND.norm(dim=1, keepdim=True) + _EPSILON)


def _groups(labels_M: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Indices into the memory, class by class in groups of `_GROUP`, and each group's class."""
    order_M = labels_M.argsort(stable=True)
    sizes_C = labels_M.bincount(minlength=num_classes)
    groups_C = (sizes_C + _GROUP - 1) // _GROUP
    class_G = torch.arange(num_classes, device=labels_M.device).repeat_interleave(groups_C)
    group_G = torch.arange(len(class_G), device=labels_M.device) - (groups_C.cumsum(0) - groups_C)[class_G]  # within its class
    place_GI = group_G[:, None] * _GROUP + torch.arange(_GROUP, device=labels_M.device)
    place_GI = place_GI.minimum((sizes_C - 1)[class_G][:, None]) + (sizes_C.cumsum(0) - sizes_C)[class_G][:, None]
    return order_M[place_GI.flatten()], class_G


def _check(features_UD: Tensor, memory_MD: Tensor, labels_M: Tensor, num_classes: int) -> None:
    if num_classes < 2:
        raise InputError("num_classes", num_classes, "at least 2: an image's weight is how far its best class is ahead of the next")
    if features_UD.ndim != 2 or memory_MD.ndim != 2 or features_UD.shape[1] != memory_MD.shape[1]:
        shapes = f"{list(features_UD.shape)} and {list(memory_MD.shape)}"
        raise InputError("memory_MD", f"features and memory of shapes {shapes}", "[U, D] and [M, D]")
    if labels_M.shape != memory_MD.shape[:1] or labels_M.dtype != torch.int64:
        got = f"shape {list(labels_M.shape)} of {labels_M.dtype}"
        raise InputError("memory_labels_M", got, f"int64 [{len(memory_MD)}], one for each row of the memory")
    if len(labels_M) and not 0 <= int(labels_M.min()) <= int(labels_M.max()) < num_classes:
        raise InputError("memory_labels_M", f"{int(labels_M.min())} .. {int(labels_M.max())}", f"classes 0 .. {num_classes - 1}")
    empty = (labels_M.bincount(minlength=num_classes) == 0).nonzero()[:, 0].tolist()
    if empty:
        raise InputError("memory_labels_M", f"no image of class {empty[0]}", "at least one labelled image of each class")
    for name, rows in (("features_UD", features_UD), ("memory_MD", memory_MD)):
        if not bool(rows.isfinite().all()):
            raise InputError(name, "features that are not finite", "finite numbers: did the teacher's training diverge?")


def promoted_share(round_: int, *, start: float = 0.1, rounds: int = 5, power: float = 2.0) -> float:
    """alpha_i = alpha0 (1 - min(i, R) / R)^power: the share of the unlabelled images that round i promotes (stage 4).

    Args:
        round_: i, from 1.
        start: alpha0.
        rounds: R: from round R on, none.
    """
    return start * (1 - min(round_, rounds) / rounds) ** power


@torch.no_grad()
def reliable(logits_UC: Tensor, logit_ids_U: Tensor, labels_U: Tensor, label_ids_U: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The most reliable unlabelled images: those whose pseudo-label the student finds least surprising (stage 4).

    c_u = CE(student's logits, yhat_u); the floor(share * U) smallest, in rising order; of equal ones those whose logits come first.
    Weights play no part. The rows of logits and of pseudo-labels may come in different orders: they are joined by the images' ids.

    Args:
        logits_UC: of the student in eval mode.
        logit_ids_U: int64, which image each row of logits is of.
        labels_U: yhat, int64.
        label_ids_U: int64, which image each pseudo-label is of.
        share: alpha_i.

    Returns:
        The images' ids, and their pseudo-labels; int64.

    Raises:
        InputError: the two lists of ids are not of the same images, each once.
    """
    by_id = label_ids_U.argsort()
    sorted_ids_U = label_ids_U[by_id]
    place_U = torch.searchsorted(sorted_ids_U, logit_ids_U).clamp_max(max(len(sorted_ids_U) - 1, 0))
    twice = bool((sorted_ids_U[1:] == sorted_ids_U[:-1]).any())
    if twice or len(logit_ids_U) != len(label_ids_U) or not torch.equal(logit_ids_U.sort().values, sorted_ids_U):
        raise InputError("logit_ids_U", f"{len(logit_ids_U)} ids", f"those of label_ids_U ({len(label_ids_U)}), each once")
    labels_U = labels_U[by_id][place_U]
    surprise_U = cross_entropy(at_least_float32(logits_UC), labels_U, reduction="none")
    chosen = surprise_U.argsort(stable=True)[: int(share * len(labels_U))]
    return logit_ids_U[chosen], labels_U[chosen]
