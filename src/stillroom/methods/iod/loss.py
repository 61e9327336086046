"""The two distillation losses, and the pseudo objects and pairs that they stand on (the method's sections 1 and 3 to 5).

Letters: n instances (a pseudo object and the student's query that answers for it), d width of a query, C channels of a map, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchvision.ops import box_convert, box_iou, nms, roi_align

from stillroom.engine.distributed import world_size
from stillroom.errors import InputError, one_of
from stillroom.losses.precision import at_least_float32, in_one_type
from stillroom.tasks.detection.queries import Matches

Distance = Literal["euclidean", "manhattan", "cosine"]
Interaction = Literal["product", "guided", "sum"]
_FLOOR = 1e-12  # under square roots, whose slope at 0 is infinite
_APART = 4.0  # further than relative boxes reach: from -0.5 to 1.5


class PseudoObjects(NamedTuple):
    """What a teacher is sure to have found in a batch, image after image, best first.

    Attributes:
        images: int64 [n], of the batch.
        queries: int64 [n], of the teacher.
        labels: int64 [n].
        scores: [n].
        boxes: [n, 4], relative (centre x, centre y, width, height).
    """

    images: Tensor
    queries: Tensor
    labels: Tensor
    scores: Tensor
    boxes: Tensor


@torch.no_grad()
def pseudo_objects(
    scores_BQK: Tensor,
    boxes_BQ4: Tensor,
    new_boxes: Sequence[Tensor],
    *,
    score_threshold: float = 0.3,
    nms_iou: float = 0.7,
    duplicate_iou: float = 0.7,
) -> PseudoObjects:
    """The teacher's detections of old classes that stand beside the annotations of the new ones (section 1).

    Of each query its best class, if its score is above the threshold; greedy suppression within a class, where of equal scores the lower
    query is first; at last those that lie on an annotated box are dropped, whose neighbours stay suppressed.

    Args:
        scores_BQK: of the old classes, in [0, 1].
        boxes_BQ4: the queries' boxes, relative (centre x, centre y, width, height).
        new_boxes: of each image the annotated boxes [G, 4], likewise.
        score_threshold: a score must be above it.
        nms_iou: an overlap above it with a better one of its class drops a detection.
        duplicate_iou: an overlap above it with an annotated box does.
    """
    classes = scores_BQK.shape[-1]
    best_BQ, label_BQ = scores_BQK.max(-1)
    image_N, query_N = (best_BQ > score_threshold).nonzero(as_tuple=True)
    score_N, label_N, box_N4 = best_BQ[image_N, query_N], label_BQ[image_N, query_N], boxes_BQ4[image_N, query_N]
    order_N = score_N.argsort(descending=True, stable=True)
    # Boxes of other images and classes are moved out of reach; in double precision, which keeps the overlaps as they are.
    corners_N4 = box_convert(box_N4.double(), "cxcywh", "xyxy")
    apart_N = _APART * (image_N * classes + label_N)
    kept_N = order_N[nms((corners_N4 + apart_N[:, None])[order_N], score_N.double()[order_N], nms_iou)]
    new_M4 = box_convert(torch.cat(list(new_boxes)).to(corners_N4), "cxcywh", "xyxy")
    image_M = torch.cat([image_N.new_full((len(part),), image) for image, part in enumerate(new_boxes)])
    overlaps_NM = box_iou(corners_N4[kept_N], new_M4) * (image_N[kept_N, None] == image_M)
    kept_N = kept_N[~(overlaps_NM > duplicate_iou).any(1)]
    kept_N = kept_N[image_N[kept_N].argsort(stable=True)]
    return PseudoObjects(image_N[kept_N], query_N[kept_N], label_N[kept_N], score_N[kept_N], box_N4[kept_N])


def instance_pairs(matches: Matches, annotated: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Which student query answers for which pseudo object, by the matching of the last layer (section 3).

    Args:
        matches: of each image, which queries answer for which objects; its pseudo objects come after the annotated ones.
        annotated: how many of these each image has.

    Returns:
        int64 [n] each: the image, the query, and the pseudo object's number within its image. One that no query answers for is left out.
    """
    images, queries, objects = [], [], []
    for image, ((query, which), count) in enumerate(zip(matches, annotated, strict=True)):
        pseudo = which >= count
        images.append(torch.full_like(query[pseudo], image))
        queries.append(query[pseudo])
        objects.append(which[pseudo] - count)
    return torch.cat(images), torch.cat(queries), torch.cat(objects)


def foreground(maps: Sequence[Tensor], boxes_n4: Tensor, image_n: Tensor, size: int = 7, sampling: int = 2) -> Tensor:
    """What the maps hold inside boxes: RoIAlign with half-pixel correction, mean over levels; [n, C, size, size], float32 at least.

    Args:
        maps: per level [B, C, h, w]; gradients reach them.
        boxes_n4: (centre x, centre y, width, height), relative to the padded batch, which the maps are of.
        image_n: of each box.
        size: bins on each side.
        sampling: samples in a bin, on each side.
    """
    boxes_n4 = box_convert(at_least_float32(boxes_n4.detach()), "cxcywh", "xyxy")
    found = []
    for level in maps:
        level = at_least_float32(level)
        height, width = level.shape[-2:]
        rows_n5 = torch.cat((image_n[:, None].to(level), boxes_n4.to(level) * level.new_tensor([width, height] * 2)), 1)
        found.append(roi_align(level, rows_n5, size, sampling_ratio=sampling, aligned=True))
    return torch.stack(found).mean(0)


class ClassDistances(NamedTuple):
    """The between-class term of one kind of features, and the distances [pairs a < b, row by row] that it compares."""

    loss: Tensor
    student: Tensor
    teacher: Tensor


def distance_matrix_distillation(
    student_nD: Tensor,
    teacher_nD: Tensor,
    labels_n: Tensor,
    *,
    distance: Distance = "euclidean",
    normalise: bool = True,
    across_processes: bool = False,
    classes: int | None = None,
) -> ClassDistances:
    """DMD of queries or of flattened features: mean over pairs of classes of ((D_s - D_t) / z)^2 (section 4).

    D are the distances of class means, of student and teacher over the same members; z is the mean of the teacher's. 0, with graph, for
    fewer than two classes.

    Args:
        student_nD, teacher_nD: of the same instances; no gradient reaches the teacher.
        labels_n: the instances' classes.
        distance: of class means: ``euclidean``, ``manhattan`` or ``cosine`` (1 - cosine).
        normalise: divide by z, so that all widths and distances have one scale.
        across_processes: class means over the instances of all processes; they must all call it. By default each process has its own.
        classes: K, asked for by `across_processes`: labels are below it.

    Raises:
        InputError: an unknown distance.
    """
    one_of("distance", distance, get_args(Distance))
    student_nD, teacher_nD = in_one_type(student_nD, teacher_nD.detach())
    shared = across_processes and world_size() > 1
    if shared:
        if classes is None:
            raise InputError("classes", None, "how many classes there are, where means are taken across processes")
        place_n, count = labels_n, classes
    else:
        present, place_n = labels_n.unique(return_inverse=True)
        count = len(present)
    members_K = _sums(torch.ones_like(student_nD[:, :1]), place_n, count, shared=shared)
    there = (members_K[:, 0] > 0).nonzero().flatten()
    means = [_sums(rows, place_n, count, shared=shared)[there] / members_K[there] for rows in (student_nD, teacher_nD)]
    first, second = torch.triu_indices(len(there), len(there), 1, device=labels_n.device)
    student_P, teacher_P = (_distance(mean[first], mean[second], distance) for mean in means)
    if not len(first):
        return ClassDistances(0 * student_nD.sum(), student_P, teacher_P)
    z = teacher_P.mean().clamp_min(1e-6) if normalise else 1.0
    return ClassDistances(((student_P - teacher_P) / z).square().mean(), student_P, teacher_P)


class Interactions(NamedTuple):
    """The within-class term, and of each instance [n] its semantic and its feature difference."""

    loss: Tensor
    semantic: Tensor
    feature: Tensor


def interactive_feature_distillation(
    student_queries: Tensor,
    teacher_queries: Tensor,
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    interaction: Interaction = "product",
    count: Tensor | None = None,
) -> Interactions:
    """IFD: (1 / n) sum over instances of s_i e_i, root mean squares of what student and teacher differ by (section 5).

    An instance whose meaning drifts gets its features held the more strongly, and the other way round. 0, with graph, for no instance.

    Args:
        student_queries, teacher_queries: [n, d]; no gradient reaches the teacher's.
        student_features, teacher_features: [n, C, h, w], likewise.
        interaction: ``product``; ``guided``, in which s_i is a weight without gradient; or ``sum``, s_i + e_i.
        count: what the sum is divided by, in the place of n.

    Raises:
        InputError: an unknown interaction.
    """
    one_of("interaction", interaction, get_args(Interaction))
    semantic_n = _root_mean_square(student_queries, teacher_queries)
    feature_n = _root_mean_square(student_features, teacher_features)
    if interaction == "sum":
        terms_n = semantic_n + feature_n
    else:
        terms_n = (semantic_n.detach() if interaction == "guided" else semantic_n) * feature_n
    loss = terms_n.sum() / (max(len(terms_n), 1) if count is None else count)
    return Interactions(loss, semantic_n, feature_n)


def _root_mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = in_one_type(student, teacher.detach())
    return ((student - teacher).square().flatten(1).mean(1) + _FLOOR).sqrt()


def _distance(a_PD: Tensor, b_PD: Tensor, distance: Distance) -> Tensor:
    if distance == "cosine":
        return 1 - cosine_similarity(a_PD, b_PD, dim=1, eps=1e-8)
    if distance == "manhattan":
        return (a_PD - b_PD).abs().sum(1)
    return ((a_PD - b_PD).square().sum(1) + _FLOOR).sqrt()


def _sums(rows_nD: Tensor, place_n: Tensor, count: int, *, shared: bool) -> Tensor:
    """Sum of the rows of each place, [count, D]; of all processes' rows, where the gradient reaches this process's own.

    DDP takes the mean of the processes' gradients, each of which knows its own rows alone: times their number it is the whole batch's.
    """
    own = rows_nD.new_zeros(count, rows_nD.shape[1]).index_add(0, place_n, rows_nD)
    if not shared:
        return own
    world = world_size()
    total = own.detach().clone()
    torch.distributed.all_reduce(total)
    if own.requires_grad:
        own.register_hook(lambda gradient: world * gradient)
    return own + (total - own.detach())
