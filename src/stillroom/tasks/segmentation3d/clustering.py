"""Clusters of super-voxels as labels: k-means on inner products, and the cluster of every point.

Source: PointDC, sections 4 and 7 of its specification.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stillroom.errors import InputError
from stillroom.tasks.points.segments import segment_mean

ITERATIONS = 80
_MOST_PER_CLUSTER = 256  # vectors that k-means looks at, as the clustering library of the released code


def unit(features_NC: Tensor) -> Tensor:
    """Rows of length 1 in float32; a zero row stays zero."""
    return normalize(features_NC.float(), dim=1, eps=1e-12)


def lloyd_steps(vectors_NC: Tensor, means_KC: Tensor, iterations: int) -> Tensor:
    """Means [K, C] after so many steps: assign by the largest inner product with the *unnormalised* mean, then the mean.

    An empty cluster is given the vector that fits its own cluster worst, one each; ties go to the lowest number.
    """
    for _ in range(iterations):
        scores, best = _scores(vectors_NC, means_KC)
        label = _lowest(scores, best)
        counts = torch.bincount(label, minlength=len(means_KC))
        new = segment_mean(vectors_NC, label, len(means_KC))
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            worst = best.argsort(stable=True)[: len(empty)]
            new[empty[: len(worst)]] = vectors_NC[worst]
        if torch.equal(new, means_KC):
            break
        means_KC = new
    return means_KC


def kmeans(vectors_NC: Tensor, clusters: int, *, seed: int, iterations: int = ITERATIONS) -> Tensor:
    """Unit centroids [K, C] of unit vectors [N, C], in float32; the same for the same seed in every process.

    Raises:
        InputError: fewer vectors than clusters.
    """
    vectors_NC = vectors_NC.float()
    if len(vectors_NC) < clusters:
        raise InputError("clusters", f"{clusters} clusters of {len(vectors_NC)} super-voxels", "at least as many super-voxels as clusters")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(vectors_NC), generator=generator)
    vectors_NC = vectors_NC[order[: _MOST_PER_CLUSTER * clusters]]
    return unit(lloyd_steps(vectors_NC, _spread(vectors_NC, clusters, generator), iterations))


def _spread(vectors_NC: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """A random start that is spread out: each next one drawn by its squared distance from those before."""
    chosen = [int(torch.randint(len(vectors_NC), (), generator=generator))]
    distance = (vectors_NC - vectors_NC[chosen[0]]).square().sum(1)
    for _ in range(clusters - 1):
        weight = distance.double().clamp_min(0) + 1e-12
        chosen.append(int(torch.multinomial(weight, 1, generator=generator)))
        distance = torch.minimum(distance, (vectors_NC - vectors_NC[chosen[-1]]).square().sum(1))
    return vectors_NC[chosen].clone()


def without_small(region_N: Tensor, least: int) -> Tensor:
    """Super-voxels of points [N], those of fewer than `least` points as -1; the numbers stay."""
    counts = torch.bincount(region_N.clamp_min(0)[region_N >= 0], minlength=1)
    return torch.where((region_N >= 0) & (counts[region_N.clamp_min(0)] >= least), region_N, -1)


def region_features(features_NC: Tensor, region_N: Tensor, valid_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Unit means of the unit features of each super-voxel, [R, C], and which of them are to be clustered, bool [R].

    Args:
        features_NC: of points.
        region_N: int64, -1 for none.
        valid_N: bool; a super-voxel without a valid point is not clustered. By default all points are.
    """
    inside = region_N >= 0
    size = int(region_N.amax()) + 1 if len(region_N) else 0
    means = unit(segment_mean(unit(features_NC)[inside], region_N[inside], max(size, 0)))
    counted = region_N[inside] if valid_N is None else region_N[inside & valid_N]
    return means, torch.bincount(counted, minlength=max(size, 1))[:size] > 0


def pseudo_labels(features_NC: Tensor, region_N: Tensor, centroids_KC: Tensor) -> Tensor:
    """The cluster of every point [N]: that of its super-voxel, by cosine; a point of none takes that of its own feature."""
    means, _ = region_features(features_NC, region_N)
    own = _lowest(*_scores(unit(features_NC), centroids_KC))
    if not len(means):
        return own
    of_region = _lowest(*_scores(means, centroids_KC))
    return torch.where(region_N >= 0, of_region[region_N.clamp_min(0)], own)


def _scores(vectors: Tensor, centroids_KC: Tensor) -> tuple[Tensor, Tensor]:
    scores = vectors @ centroids_KC.to(vectors).T
    return scores, scores.amax(1)


def _lowest(scores_NK: Tensor, best_N: Tensor) -> Tensor:
    """The lowest number among those that score best, int64 [N]."""
    return (scores_NK == best_N[:, None]).int().argmax(1)
