"""mIoU: pooled, classes that are nowhere left out, 255 nowhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from stillroom.engine.report.gains import outcomes
from stillroom.tasks.images.pixel_classes import class_ious, confusion, mean_iou
from stillroom.tasks.segmentation import WholeBatch
from stillroom.tasks.segmentation.metrics import WITHOUT, SegmentationEvaluator


def measured(pairs: list[tuple[Tensor, Tensor]], classes: int, background: int | None = None) -> SegmentationEvaluator:
    evaluator = SegmentationEvaluator(classes, background)
    for number, (answer, mask) in enumerate(pairs):
        evaluator.update([answer], WholeBatch([], [mask.to(torch.uint8)], torch.tensor([number]), 1, 1))
    return evaluator


def test_classes_that_are_nowhere_are_left_out_and_predicted_ones_count() -> None:
    truth = torch.tensor([[0, 0, 2, 2]])
    assert mean_iou(confusion(truth, truth, 3)) == 1.0  # not 0.667
    assert measured([(truth, truth)], 3).compute()["mIoU"] == 100.0
    answer = torch.tensor([[0, 1, 2, 2]])
    assert class_ious(confusion(answer, truth, 3)).tolist() == [0.5, 0.0, 1.0]
    assert measured([(answer, truth)], 3).compute()["mIoU"] == pytest.approx(50.0)


def test_it_is_pooled_over_the_set_not_the_mean_of_the_pictures() -> None:
    first, second = torch.zeros(1, 8, dtype=torch.int64), torch.ones(1, 8, dtype=torch.int64)
    wrong = first.clone()
    wrong[0, 0] = 1
    found = measured([(wrong, first), (second, second)], 2).compute()["mIoU"]
    assert found == pytest.approx(100 * (7 / 8 + 8 / 9) / 2)


def test_8_pixels_of_which_one_is_wrong() -> None:
    """Truth all 0 and then all 1, four pixels each: 0.775 pooled, 0.583 by the mean of the pictures."""
    zeros, ones = torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64)
    wrong = zeros.clone()
    wrong[0, 0] = 1
    assert measured([(wrong, zeros), (ones, ones)], 2).compute()["mIoU"] == pytest.approx(77.5)


def test_whatever_is_predicted_where_the_truth_is_255_changes_no_number() -> None:
    truth = torch.tensor([[0, 1, 255, 255]])
    numbers = []
    for there in (0, 1, 2):
        evaluator = measured([(torch.tensor([[0, 0, there, there]]), truth)], 3, background=0)
        details = evaluator.details()
        numbers.append((evaluator.compute(), details["hits"].tolist(), details["unions"].tolist(), details["outcome"].tolist()))
    assert numbers[0] == numbers[1] == numbers[2]


def test_with_and_without_background() -> None:
    truth, answer = torch.tensor([[0, 0, 1, 2]]), torch.tensor([[0, 0, 1, 0]])
    figures = measured([(answer, truth)], 3, background=0).compute()
    assert figures["mIoU"] == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)
    assert figures[WITHOUT] == pytest.approx(50.0)
    assert figures["pixel accuracy"] == pytest.approx(75.0)
    assert WITHOUT not in measured([(answer, truth)], 3).compute()


def test_what_each_picture_contributes_has_the_mean_and_tells_its_error() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.randint(0, 4, (6, 6), generator=generator), torch.randint(0, 4, (6, 6), generator=generator)) for _ in range(40)]
    evaluator = measured(pairs, 5)
    metric, details = evaluator.compute()["mIoU"], evaluator.details()
    contributed = outcomes(details, metric)
    assert contributed is not None
    rng = np.random.default_rng(0)
    again = []
    for _ in range(300):  # the bootstrap's spread is that of the contributions' mean
        chosen = rng.integers(0, 40, 40)
        hits, unions = details["hits"][chosen].sum(0), details["unions"][chosen].sum(0)
        again.append(100 * np.mean(hits[unions > 0] / unions[unions > 0]))
    assert contributed.std() / 40**0.5 == pytest.approx(np.std(again), rel=0.2)


def test_the_worst_pictures_are_kept() -> None:
    good = torch.zeros(4, 4, dtype=torch.int64)
    pairs = [(good, good) for _ in range(10)]
    pairs[7] = good + 1, good
    details = measured(pairs, 2).details()
    assert details["worst"][0] == 7
    assert details["maps"][:16].tolist() == [1] * 16
