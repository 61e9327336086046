"""Figures of anomaly detection: of scores of any range, against plain references, and where programs go wrong."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from stillroom.engine.report.gains import outcomes
from stillroom.errors import InputError
from stillroom.tasks.anomaly.metrics import auroc_outcomes
from stillroom.tasks.anomaly.scores import aupro, detection, normal_threshold

ONE = np.zeros((1, 20, 20), np.int64)
ONE[0, 2:5, 2:5] = 1
TWO = ONE.copy()
TWO[0, 10:13, 10:13] = 1


def test_scores_beyond_one_are_no_logits() -> None:
    found = detection(np.array([100.0, 101, 102, 103]), np.array([0, 0, 1, 1]))
    assert found == {"auroc": 1.0, "ap": 1.0, "f1max": 1.0}
    pixels = detection(np.array([[[100.0, 101], [102, 103]]]), np.array([[[0, 0], [1, 1]]]))
    assert pixels["auroc"] == pixels["ap"] == 1.0


@given(st.lists(st.tuples(st.sampled_from([-2.0, 0.5, 1.0, 3.0, 40.0]), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=50, deadline=None)
def test_average_precision_is_scikit_learn_s(samples: list[tuple[float, bool]]) -> None:
    scores, labels = (np.array(column) for column in zip(*samples, strict=True))
    if labels.any() and not labels.all():
        assert detection(scores, labels)["ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-6)


def test_scores_that_differ_by_the_last_digit_are_told_apart() -> None:
    scores = 1 + np.arange(8) * np.finfo(np.float64).eps
    assert detection(scores, np.arange(8) >= 4)["auroc"] == 1.0


@pytest.mark.parametrize(
    ("maps", "masks", "right"),
    [
        (np.zeros(ONE.shape), ONE, 0.15),
        (ONE.astype(float), ONE, 1.0),
        (-ONE.astype(float), ONE, 0.0),
        (ONE.astype(float), TWO, 0.575),
        (1000 + ONE.astype(float), ONE, 1.0),
    ],
    ids=["constant", "perfect", "inverted", "one of two regions", "far from zero"],
)
def test_aupro_where_others_report_something_else(maps: np.ndarray, masks: np.ndarray, right: float) -> None:
    assert aupro(maps, masks) == pytest.approx(right)


def test_pixels_that_touch_by_a_corner_are_one_region() -> None:
    mask = np.zeros((1, 8, 8), np.int64)
    mask[0, 2, 2] = mask[0, 3, 3] = mask[0, 3, 4] = mask[0, 3, 5] = 1
    found = np.zeros(mask.shape)
    found[0, 2, 2] = 1  # a quarter of the region; were there two, half of them
    assert aupro(found, mask) == pytest.approx((0.25 + 0.25 + 0.75 * 0.3) / 2)


def plain_aupro(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """Threshold by threshold, region by region."""
    regions = []
    for n, mask in enumerate(masks):
        left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
        while left:
            region, edge = set(), [left.pop()]
            while edge:
                y, x = edge.pop()
                region.add((n, y, x))
                near = {(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1)} & left
                left -= near
                edge += near
            regions.append(region)
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        above = maps >= threshold
        fpr = float((above & (masks == 0)).sum() / (masks == 0).sum())
        points.append((fpr, float(np.mean([np.mean([above[place] for place in region]) for region in regions]))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        end = min(x1, limit)
        y_end = y1 if x1 <= limit else y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@given(seed=st.integers(0, 10_000), levels=st.sampled_from([2, 5, 1000]), limit=st.sampled_from([0.05, 0.3, 1.0]))
@settings(max_examples=40, deadline=None)
def test_aupro_is_that_of_a_plain_reference(seed: int, levels: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    masks = (rng.random((3, 7, 9)) < 0.2).astype(np.int64)
    masks[0, 0, 0], masks[1, 0, 0] = 1, 0
    maps = rng.integers(0, levels, masks.shape) / 7 + masks * rng.random()
    assert aupro(maps, masks, limit) == pytest.approx(plain_aupro(maps, masks, limit))


def test_a_threshold_is_a_quantile_of_normal_scores() -> None:
    scores = np.array([1.0, 2, 3, 4])
    assert [normal_threshold(scores, q) for q in (1.0, 0.5, 0.0)] == [4.0, 3.0, 1.0]
    with pytest.raises(InputError, match="held-out"):
        normal_threshold(scores[:0], 1.0)
    with pytest.raises(InputError, match="quantile"):
        normal_threshold(scores, 1.5)


def test_one_kind_alone_has_no_area() -> None:
    with pytest.warns(UserWarning, match="all samples are normal"):
        found = detection(np.arange(4.0), np.zeros(4, int))
    assert all(map(math.isnan, found.values()))
    with pytest.warns(UserWarning, match="no anomalous region"):
        assert aupro(np.zeros((1, 4, 4)), np.zeros((1, 4, 4), int)) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    maps = ONE.astype(float)
    maps[0, 0, 0] = bad
    for ask in (lambda: detection(maps, ONE), lambda: aupro(maps, ONE), lambda: normal_threshold(maps.ravel(), 1.0)):
        with pytest.raises(InputError, match="not finite"):
            ask()


def test_what_pictures_contribute_to_the_mean_auroc() -> None:
    rng = np.random.default_rng(1)
    categories = np.repeat([0, 1, 2], [30, 12, 5])
    anomalous = np.concatenate([np.arange(30) % 3 == 0, np.arange(12) < 7, np.zeros(5, bool)])
    scores = rng.normal(size=47).round(1) + anomalous
    each = [100 * roc_auc_score(anomalous[categories == k], scores[categories == k]) for k in (0, 1)]
    found = auroc_outcomes(scores, anomalous, categories)
    assert found.mean() == pytest.approx(np.mean(each))
    assert outcomes({"ids": np.arange(47), "outcome": found}, float(np.mean(each))) is not None
    # the standard error that they leave is that of a bootstrap within each kind
    drawn = []
    for _ in range(2000):
        parts = []
        for k in (0, 1):
            good, bad = (scores[(categories == k) & (anomalous == kind)] for kind in (False, True))
            good, bad = rng.choice(good, len(good)), rng.choice(bad, len(bad))
            parts.append(((bad[:, None] > good) + 0.5 * (bad[:, None] == good)).mean())
        drawn.append(100 * np.mean(parts))
    assert found.std() / math.sqrt(47) == pytest.approx(np.std(drawn), rel=0.2)
