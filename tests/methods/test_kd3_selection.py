"""KD^3, part 1: who decides when, and which images are kept."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.methods.kd3.selection import blended_prediction, keep_confident, keep_enough, teacher_weight

PAPER = {"switch_off": 120.0, "offset": 160.0}


@pytest.mark.parametrize(("epoch", "alpha"), [(1, 0.992), (30, 0.961), (60, 0.853), (90, 0.605), (119, 0.268), (120, 0.0), (240, 0.0)])
def test_the_papers_schedule(epoch: int, alpha: float) -> None:
    assert teacher_weight(epoch, **PAPER) == pytest.approx(alpha, abs=5e-4)


@given(st.integers(2, 400))
def test_the_teachers_weight_only_ever_falls(epochs: int) -> None:
    weights = [teacher_weight(epoch, switch_off=epochs / 2, offset=2 * epochs / 3) for epoch in range(1, epochs + 1)]
    assert all(0 <= later <= earlier <= 1 for earlier, later in pairwise(weights))
    assert weights[-1] == 0


def test_each_network_can_decide_alone() -> None:
    teacher, student = torch.tensor([[4.0, 0, 0]]), torch.tensor([[0.0, 0, 2]])
    assert blended_prediction(teacher, student, 1.0)[1].tolist() == [0]
    assert blended_prediction(teacher, student, 0.0)[1].tolist() == [2]


def test_logits_are_blended_and_not_probabilities() -> None:
    teacher, student = torch.tensor([[20.0, 0]]), torch.tensor([[0.0, 2]])
    confidence, _ = blended_prediction(teacher, student, 0.5)
    assert confidence.item() == pytest.approx(torch.tensor(9.0).sigmoid().item())


def test_of_equal_classes_the_lowest() -> None:
    assert blended_prediction(torch.zeros(3, 5), torch.zeros(3, 5), 0.3)[1].tolist() == [0, 0, 0]


def predictions(count: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator), torch.randint(classes, (count,), generator=generator)


@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 10**6), st.floats(0.05, 1.0))
def test_as_the_paper_writes_it_image_by_image(count: int, classes: int, seed: int, cutoff: float) -> None:
    confidence, labels = predictions(count, classes, seed)
    selection = keep_confident(confidence, labels, classes, cutoff=cutoff)
    counts = [labels.tolist().count(k) for k in range(classes)]
    shares = [n / max(counts) for n in counts]
    thresholds = [cutoff * b / (2 - b) for b in shares]
    assert selection.thresholds_K.tolist() == pytest.approx(thresholds, rel=1e-6)
    assert thresholds[counts.index(max(counts))] == pytest.approx(cutoff)
    exact = selection.thresholds_K
    kept = [i for i, (q, y) in enumerate(zip(confidence, labels.tolist(), strict=True)) if q > exact[y]]
    assert selection.kept.tolist() == kept


@given(st.permutations(range(12)))
def test_the_order_of_the_images_does_not_matter(order: list[int]) -> None:
    confidence, labels = predictions(12, 3, 0)
    kept = set(keep_confident(confidence, labels, 3, cutoff=0.5).kept.tolist())
    again = keep_confident(confidence[order], labels[order], 3, cutoff=0.5).kept.tolist()
    assert {order[place] for place in again} == kept


def test_a_class_that_nothing_is_taken_for_has_no_threshold_and_one_class_has_the_whole() -> None:
    selection = keep_confident(torch.tensor([0.9, 0.96]), torch.tensor([1, 1]), 3)
    torch.testing.assert_close(selection.thresholds_K, torch.tensor([0, 0.95, 0]))
    assert selection.kept.tolist() == [1]


def test_exactly_the_threshold_is_not_above_it() -> None:
    assert keep_confident(torch.tensor([0.5, 0.75]), torch.tensor([0, 0]), 1, cutoff=0.5).kept.tolist() == [1]


@pytest.mark.parametrize(("instead", "kept"), [(1, [3, 4]), (3, [2, 3, 4]), (99, [0, 1, 2, 3, 4])])
def test_where_nothing_is_sure_the_surest_are_kept(instead: int, kept: list[int]) -> None:
    confidence, labels = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.4]), torch.zeros(5, dtype=torch.int64)
    selection = keep_enough(confidence, labels, 2, fewest=2, instead=instead)
    assert selection.short
    assert selection.kept.tolist() == kept


def test_where_enough_are_sure_nothing_is_added() -> None:
    confidence, labels = predictions(50, 4, 1)
    assert not keep_enough(confidence, labels, 4, cutoff=0.5, fewest=2, instead=40).short
    torch.testing.assert_close(keep_enough(confidence, labels, 4, cutoff=0.5).kept, keep_confident(confidence, labels, 4, cutoff=0.5).kept)


def test_fifty_thousand_images_are_selected_in_no_time() -> None:
    teacher, student = torch.randn(50_000, 100), torch.randn(50_000, 100)
    start = time.perf_counter()
    keep_enough(*blended_prediction(teacher, student, 0.5), 100, fewest=2, instead=256)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("cutoff", [0.0, -0.1, 1.01, float("nan")])
def test_refuses_a_cutoff_outside_its_range(cutoff: float) -> None:
    with pytest.raises(InputError, match=r"^cutoff: got "):
        keep_confident(torch.ones(2), torch.zeros(2, dtype=torch.int64), 2, cutoff=cutoff)


@pytest.mark.parametrize(
    ("teacher", "student", "alpha", "argument"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), 0.5, "student_BK"),
        (torch.zeros(2, 3), torch.full((2, 3), float("nan")), 0.5, "student_BK"),
        (torch.zeros(2, 3), torch.zeros(2, 3), 1.5, "alpha"),
    ],
)
def test_refuses_answers_that_cannot_be_blended(teacher: torch.Tensor, student: torch.Tensor, alpha: float, argument: str) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: got "):
        blended_prediction(teacher, student, alpha)


@pytest.mark.parametrize("name", ["switch_off", "offset", "steepness"])
def test_refuses_a_schedule_without_length(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: got 0"):
        teacher_weight(3, **{**PAPER, name: 0})
