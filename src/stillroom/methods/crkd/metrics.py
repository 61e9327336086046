"""How well novel classes were found: predictions are cluster numbers, which the Hungarian method matches with classes first.

All functions take predictions and true labels as int arrays [N] and read them as one table: how often a label was answered with a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from stillroom.errors import InputError, one_of

Matching = Literal["all", "novel"]  # the released code's "v2" and "v3"


@dataclass(frozen=True)
class Clustering:
    """Agreement of clusters with classes.

    Attributes:
        accuracy: share of the samples whose cluster is matched with their class, in [0, 1].
        nmi: normalised mutual information, with the arithmetic mean as normaliser.
        ari: adjusted Rand index.
    """

    accuracy: float
    nmi: float
    ari: float


@dataclass(frozen=True)
class SplitClustering:
    """Accuracies in [0, 1] on known and novel classes together, after one matching.

    Attributes:
        all, known, novel: over all samples, those of known classes, those of novel classes. NaN where there is no such sample.
        nmi, ari: of all samples, see `Clustering`.
    """

    all: float
    known: float
    novel: float
    nmi: float
    ari: float


def clustering(predictions: np.ndarray, labels: np.ndarray) -> Clustering:
    """Task-aware: every sample is of a novel class and was given one of the novel head's numbers.

    Args:
        predictions: 0 .. U-1; fewer or more different ones than there are classes.
        labels: of the true classes. Where they start does not matter.

    Raises:
        InputError: not two arrays [N] of whole numbers from 0, or no sample.
    """
    counts = _table(predictions, labels)
    nmi, ari = _information(predictions, labels)
    return Clustering(float(_matched(counts, _assigned(counts)).sum() / counts.sum()), nmi, ari)


def split_clustering(predictions: np.ndarray, labels: np.ndarray, known_classes: int, matching: Matching = "all") -> SplitClustering:
    """Task-agnostic: samples of all classes, predictions among all of them.

    Args:
        predictions: argmax over the L + U logits.
        labels: true classes; known ones are 0 .. L-1.
        known_classes: L.
        matching: "all" matches all numbers with all classes at once (the released code's default, "v2"); "novel" takes the known classes'
            numbers for what they are and matches the novel ones alone, so that samples that cross over count as wrong ("v3").

    Raises:
        InputError: see `clustering`; or an unknown matching.
    """
    counts = _table(predictions, labels)
    hits = _matched(counts, match(predictions, labels, known_classes, matching))
    of_class = counts.sum(0)

    def share(classes: slice) -> float:
        samples = of_class[classes].sum()
        return float(hits[classes].sum() / samples) if samples else float("nan")

    nmi, ari = _information(predictions, labels)
    return SplitClustering(share(slice(None)), share(slice(known_classes)), share(slice(known_classes, None)), nmi, ari)


def match(predictions: np.ndarray, labels: np.ndarray, known_classes: int = 0, matching: Matching = "all") -> np.ndarray:
    """The class that each number stands for, int64 [D] with D one more than the largest number or label; a permutation.

    Arguments and errors as `split_clustering`.
    """
    one_of("matching", matching, get_args(Matching))
    counts = _table(predictions, labels)
    if matching == "all":
        return _assigned(counts)
    known = min(known_classes, len(counts))
    return np.concatenate([np.arange(known), known + _assigned(counts[known:, known:])])


def _assigned(counts_DD: np.ndarray) -> np.ndarray:
    """The permutation of columns that collects the largest sum."""
    from scipy.optimize import linear_sum_assignment

    columns: np.ndarray = linear_sum_assignment(counts_DD, maximize=True)[1]
    return columns


def _matched(counts_DD: np.ndarray, class_of_D: np.ndarray) -> np.ndarray:
    """Correct samples of each class, int64 [D]."""
    hits = np.zeros(len(counts_DD), np.int64)
    hits[class_of_D] = counts_DD[np.arange(len(counts_DD)), class_of_D]
    return hits


def _table(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int64 [D, D]: how often number i was predicted for class j."""
    for name, values in (("predictions", predictions), ("labels", labels)):
        if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or not len(values) or values.min() < 0:
            raise InputError(name, f"{values.dtype} of shape {values.shape}", "whole numbers from 0, one for each of at least one sample")
    if len(predictions) != len(labels):
        raise InputError("labels", f"{len(labels)} labels", f"one for each of the {len(predictions)} predictions")
    size = int(max(predictions.max(), labels.max())) + 1
    return np.bincount(predictions.astype(np.int64) * size + labels, minlength=size * size).reshape(size, size)


def _information(predictions: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return float(normalized_mutual_info_score(labels, predictions)), float(adjusted_rand_score(labels, predictions))
