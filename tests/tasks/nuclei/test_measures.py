"""The figures of nuclei against plain references on hand-made cases, and nuclei made of maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stillroom.tasks.nuclei.instances import Outlining, instances_of, painted, watershed
from stillroom.tasks.nuclei.maps import NucleiMap, WholeBatch, distances, numbered
from stillroom.tasks.nuclei.measures import counted, jaccard, matching, nuclei_of, overlaps, panoptic_quality
from stillroom.tasks.nuclei.metrics import NucleiEvaluator

OUTLINING = Outlining(edge_kernel=7, least=8)


def boxes(*places: tuple[int, int, int, int], side: int = 24) -> np.ndarray:
    """Instances 1, 2, ... that fill (top, bottom, left, right)."""
    found = np.zeros((side, side), np.int32)
    for number, (top, bottom, left, right) in enumerate(places, 1):
        found[top:bottom, left:right] = number
    return found


def random_map(seed: int, shift: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    found = np.zeros((40, 40), np.int32)
    for number in range(1, 9):
        y, x = random.integers(0, 34, 2) + shift * random.integers(-1, 2, 2)
        height, width = random.integers(3, 9, 2)
        found[max(y, 0) : y + height, max(x, 0) : x + width] = number
    return found


def plain_counts(true: np.ndarray, found: np.ndarray) -> tuple[int, int, int, float, float, float]:
    """TP, FP, FN, sum of IoU, and AJI's numerator and denominator, by loops over pairs."""
    trues, founds = ([map_ == number for number in np.unique(map_) if number] for map_ in (true, found))
    ious = [[(a & b).sum() / (a | b).sum() for b in founds] for a in trues]
    matched = [iou for row in ious for iou in row if iou > 0.5]
    above, below, used = 0.0, 0.0, set()
    for a, row in zip(trues, ious, strict=True):
        if row and max(row) > 0:
            best = int(np.argmax(row))
            used.add(best)
            above, below = above + (a & founds[best]).sum(), below + (a | founds[best]).sum()
        else:
            below += a.sum()
    below += sum(b.sum() for number, b in enumerate(founds) if number not in used)
    return len(matched), len(founds) - len(matched), len(trues) - len(matched), sum(matched), above, below


@pytest.mark.parametrize("seed", range(6))
def test_pairs_and_aji_equal_a_plain_reference(seed: int) -> None:
    true, found = random_map(seed), random_map(seed, shift=2)
    pairs = overlaps(true, found)
    np.testing.assert_allclose([*matching(pairs), *jaccard(pairs)], plain_counts(true, found))


def test_a_map_with_gaps_in_its_numbers_is_perfect_beside_itself() -> None:
    map_ = boxes((2, 8, 2, 8), (12, 20, 3, 9))
    map_[map_ == 2] = 3
    assert panoptic_quality(matching(overlaps(map_, map_))) == pytest.approx(1.0, abs=1e-5)


def test_types_of_pairs_by_hand() -> None:
    true = boxes((0, 6, 0, 6), (10, 16, 0, 6), (17, 23, 14, 20))
    found = boxes((0, 6, 1, 7), (10, 16, 0, 6), (0, 6, 16, 22))
    types, called = np.array([0, 1, 2, 1]), np.array([0, 1, 1, 2])
    counts = counted(true, types[true], found, called[found], 3)
    # the third of each has no partner: they are 17 pixels apart
    assert counts.alone.tolist() == [1, 1]
    np.testing.assert_allclose(counts.type_f1(), [2 / 3, 0.0, np.nan])
    assert counts.type_accuracy() == 0.5
    assert counts.detection_f1() == pytest.approx(4 / 6)
    assert counts.class_pq()[1] == 0  # in truth, and found nowhere: it counts
    assert np.isnan(counts.class_pq()[2])
    # nuclei 1: 30 of 36 + 36 pixels in common
    assert counts.class_dice()[0] == pytest.approx(2 * 30 / (72 + 72), abs=1e-6)


def batch(*truths: NucleiMap) -> WholeBatch:
    tensors = [[torch.from_numpy(one[part]) for one in truths] for part in (0, 1)]
    return WholeBatch([torch.zeros(3, 24, 24)] * len(truths), *tensors, torch.arange(len(truths)), 24, 24, OUTLINING)


def test_a_picture_that_is_empty_on_both_sides_is_left_out_and_one_sided_ones_are_zero() -> None:
    full = NucleiMap(boxes((2, 12, 2, 12)), np.array([0, 1]))
    empty = NucleiMap(boxes(), np.array([0]))
    evaluator = NucleiEvaluator(("a", "b"), ("b",))
    evaluator.update([full, empty], batch(full, empty))
    figures = evaluator.compute()
    assert figures["PQ"] == pytest.approx(100, abs=1e-3)
    assert figures["mPQ"] == pytest.approx(100, abs=1e-3)  # class b is nowhere
    assert np.isnan(figures["mPQ apart"])
    details = evaluator.details()
    assert (details["match"][:, :3].sum(1) == 0).tolist() == [False, True]
    assert details["outcome"].mean() == pytest.approx(figures["mPQ"], abs=1e-3)
    for answer, truth in ((full, empty), (empty, full)):
        evaluator.reset()
        evaluator.update([answer, full], batch(truth, full))
        assert evaluator.compute()["PQ"] == pytest.approx(50, abs=1e-3)


# From maps to nuclei --------------------------------------------------------------------------------------------------------------------


def test_touching_nuclei_come_apart_where_distances_jump() -> None:
    rows, columns = np.mgrid[:40, :40]
    true = np.zeros((40, 40), np.int32)
    for number, x in enumerate((12, 25), 1):
        true[((rows - 20) ** 2 + (columns - x) ** 2 <= 49) & (true == 0)] = number
    assert (np.diff(true[20]) == 1).sum() == 2  # they touch
    found = instances_of((true > 0) * 0.9, distances(true), OUTLINING)
    assert found.max() == 2
    assert panoptic_quality(matching(overlaps(true, found))) > 0.9


def test_no_nucleus_no_instance_and_specks_are_dropped() -> None:
    assert not instances_of(np.full((20, 20), 0.4), np.zeros((2, 20, 20)), OUTLINING).any()
    speck = np.zeros((20, 20))
    speck[4:6, 4:7] = 1
    assert not instances_of(speck, np.zeros((2, 20, 20)), OUTLINING).any()


def test_the_watershed_meets_at_the_pass() -> None:
    height = np.abs(np.arange(21) - 10.0)[None].repeat(3, 0) * -1  # a ridge in the middle
    markers = np.zeros((3, 21), bool)
    markers[1, [1, 19]] = True
    inside = np.ones((3, 21), bool)
    inside[:, 20] = False
    found = watershed(height, markers, inside)
    assert set(found[:, :10].ravel()) == {1}
    assert set(found[:, 11:20].ravel()) == {2}
    assert not found[:, 20].any()


def test_distances_reach_one_on_both_sides_of_each_nucleus() -> None:
    map_ = boxes((2, 7, 3, 12), (9, 20, 3, 4))
    found = distances(map_)
    for number in (1, 2):
        for axis in (0, 1):
            values = found[axis][map_ == number]
            extent = np.ptp(np.nonzero(map_ == number)[1 - axis])
            assert (values.min(), values.max()) == ((-1, 1) if extent else (0, 0))
    assert (found[0][4, 3:12] == np.linspace(-1, 1, 9, dtype=np.float32)).all()
    assert not found[:, map_ == 0].any()


def test_a_nucleus_has_the_type_of_most_of_its_pixels_and_background_is_none() -> None:
    map_ = boxes((0, 4, 0, 5), (10, 14, 0, 5), (18, 20, 0, 5))
    types = np.zeros_like(map_)
    types[0:4, 0:2], types[0:4, 2], types[10:14, 0:3] = 2, 1, 3
    assert painted(map_, types).tolist() == [0, 2, 3, 1]
    assert nuclei_of(map_, types).types.tolist() == [2, 3, 0]
    assert nuclei_of(map_, types).centroids[0].tolist() == [2.0, 1.5]
    assert numbered(map_ * 3, np.arange(10)).types.tolist() == [0, 3, 6, 9]
