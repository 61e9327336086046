"""What the two steps of PointDC minimise: imitation of 2D features, and cross-entropy with clusters as labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from stillroom.engine.distributed import averaged
from stillroom.losses.precision import at_least_float32

EPS = 1e-12


def cmd_loss(student_NC: Tensor, target_NC: Tensor, kept_N: Tensor | None = None) -> Tensor:
    """Cross-modal distillation: mean over kept points and channels of (s / |s| - t / |t|)^2, which is 2 (1 - cos) / C.

    Args:
        student_NC: aligned features of the points. The target is a constant.
        target_NC: their 2D features; a zero row was seen by no view.
        kept_N: bool, which points count (S3DIS: those of a super-voxel); by default those whose target is not zero (ScanNet).

    Returns:
        A scalar over the batch of all processes; a zero that keeps the graph where no point counts.

    Source: section 3.2 of the specification, from the released code.
    """
    target_NC = at_least_float32(target_NC.detach())
    kept_N = (target_NC != 0).any(1) if kept_N is None else kept_N
    apart_NC = normalize(at_least_float32(student_NC), dim=1, eps=EPS) - normalize(target_NC, dim=1, eps=EPS)
    # DDP takes the mean of the processes' gradients: so each sum is divided by their mean number of points
    count = averaged(kept_N.sum().float()).clamp_min(1) * target_NC.shape[1]
    return (apart_NC.square() * kept_N[:, None]).sum() / count


def cosine_logits(features_NC: Tensor, centres_KC: Tensor) -> Tensor:
    """Cosines of features and learnable centres, [N, K]; temperature 1 (section 5)."""
    return normalize(at_least_float32(features_NC), dim=1, eps=EPS) @ normalize(at_least_float32(centres_KC), dim=1, eps=EPS).T


def fixed_logits(features_NC: Tensor, centroids_KC: Tensor) -> Tensor:
    """Inner products with frozen unit centroids, [N, K]; features are not normalised (section 6.1)."""
    return at_least_float32(features_NC) @ at_least_float32(centroids_KC.detach()).T


def pseudo_label_loss(logits_NK: Tensor, pseudo_N: Tensor) -> Tensor:
    """Cross-entropy with the clusters, mean over the points of the batch of all processes that have one (-1: none); 0 where none has."""
    total = cross_entropy(logits_NK, pseudo_N, ignore_index=-1, reduction="sum")
    return total / averaged((pseudo_N >= 0).sum().float()).clamp_min(1)
