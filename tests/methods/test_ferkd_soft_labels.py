"""Stored soft labels: what is recovered from them, what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.errors import InputError
from stillroom.methods.ferkd.bank.labels import LabelFormat, SoftLabels

TYPES = ("ori", "hard", "smoothing", "marginal_smoothing_k1", "marginal_smoothing_k5", "marginal_smoothing_k10", "marginal_renorm_k5")


def probabilities(rows: int, classes: int, seed: int = 0, sharpness: float = 3.0) -> Tensor:
    return (sharpness * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))).softmax(1)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(TYPES), st.integers(2, 40), st.integers(0, 100), st.sampled_from(["fp16", "fp32"]))
def test_what_is_recovered_is_a_distribution_with_the_kept_classes_as_they_were(kind: str, classes: int, seed: int, dtype: str) -> None:
    p_RC = probabilities(6, classes, seed)
    form = LabelFormat.of(kind, classes, dtype)  # type: ignore[arg-type]
    labels = form.encode(p_RC)
    y_RC = form.dense(labels)
    tolerance = 1e-5 if dtype == "fp32" else 2e-3
    assert y_RC.dtype == torch.float32
    assert y_RC.shape == p_RC.shape
    assert (y_RC >= 0).all()
    torch.testing.assert_close(y_RC.sum(1), torch.ones(6), atol=tolerance, rtol=0)
    assert torch.equal(y_RC.argmax(1), p_RC.argmax(1)) or dtype == "fp16"
    if form.kind in ("smoothing", "marginal_smoothing"):
        best, where = p_RC.topk(form.top)
        torch.testing.assert_close(y_RC.gather(1, where), best, atol=tolerance, rtol=0)
    # the same by other ways
    torch.testing.assert_close(form.dense(form.from_released(form.to_released(labels))), y_RC)
    torch.testing.assert_close(form.confidence(labels), y_RC.amax(1))
    targets_R = torch.arange(6) % classes
    torch.testing.assert_close(form.probability(labels, targets_R), y_RC.gather(1, targets_R[:, None])[:, 0])
    assert not form.unsound(labels).any()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TYPES), st.integers(2, 15), st.floats(0, 1))
def test_smoothed_truth_and_soft_labels_lie_side_by_side(kind: str, classes: int, epsilon: float) -> None:
    source = LabelFormat.of(kind, classes, "fp32")
    form, targets_R = source.calibrated, torch.arange(6) % classes
    y_RC = form.dense(form.smoothed(targets_R, epsilon))
    expected = torch.full((6, classes), epsilon / (classes - 1)).scatter(1, targets_R[:, None], 1 - epsilon)
    torch.testing.assert_close(y_RC, expected, atol=1e-6, rtol=1e-4)
    labels = source.encode(probabilities(6, classes))
    torch.testing.assert_close(form.dense(form.adopt(labels, source)), source.dense(labels), atol=1e-6, rtol=1e-4)


def test_the_fillers_are_the_lowest_other_classes() -> None:
    form = LabelFormat.of("marginal_smoothing_k3", 6)
    labels = form.smoothed(torch.tensor([0, 1, 5]), 0.1)
    assert labels.classes is not None
    assert labels.classes.tolist() == [[0, 1, 2], [1, 0, 2], [5, 0, 1]]


def test_of_equal_probabilities_the_lower_class_comes_first() -> None:
    labels = LabelFormat.of("marginal_smoothing_k2", 4).encode(torch.tensor([[0.2, 0.3, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]]))
    assert labels.classes is not None
    assert labels.classes.tolist() == [[1, 2], [0, 1]]


def test_a_sum_above_one_leaves_nothing_for_the_others() -> None:
    form = LabelFormat.of("marginal_smoothing_k2", 4)
    labels = SoftLabels(torch.tensor([[3, 1]], dtype=torch.int16), torch.tensor([[0.9, 0.1005]], dtype=torch.float16))
    assert not form.unsound(labels).any()
    assert form.dense(labels)[0, [0, 2]].tolist() == [0.0, 0.0]


def test_as_many_as_there_are_classes_is_all_of_them() -> None:
    assert LabelFormat.of("marginal_smoothing_k10", 10).kind == "ori"
    assert LabelFormat.of("marginal_renorm_k5", 3).kind == "ori"
    assert LabelFormat.of("marginal_renorm", 100) == LabelFormat.of("marginal_renorm_k5", 100)  # the released reader's word for it
    assert LabelFormat.of("marginal_smoothing_k5", 40_000).arrays["classes"][1].itemsize == 4


def test_released_float16_is_read_in_float32() -> None:
    form = LabelFormat.of("marginal_smoothing_k5", 1000, "fp32")
    p_RC = probabilities(4, 1000)
    read = form.from_released(form.to_released(form.encode(p_RC)).half())
    assert read.values is not None
    assert read.values.dtype == torch.float32
    torch.testing.assert_close(form.dense(read), form.dense(form.encode(p_RC)), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("classes", "values"),
    [
        ([0, 9], [0.5, 0.2]),
        ([0, -1], [0.5, 0.2]),
        ([1, 1], [0.5, 0.2]),
        ([0, 1], [0.5, -0.2]),
        ([0, 1], [0.9, 0.2]),
        ([0, 1], [float("nan"), 0.2]),
        ([0, 1], [float("inf"), 0.2]),
    ],
)
def test_labels_that_cannot_be_are_found(classes: list[int], values: list[float]) -> None:
    form = LabelFormat.of("marginal_smoothing_k2", 9)
    labels = SoftLabels(torch.tensor([[4, 5], classes], dtype=torch.int16), torch.tensor([[0.6, 0.3], values]))
    assert form.unsound(labels).tolist() == [False, True]


@pytest.mark.parametrize("released", [[[[7.5, 1.0], [0.6, 0.3]]], [[[9.0, 1.0], [0.6, 0.3]]], [[[1e20, 1.0], [0.6, 0.3]]]])
def test_released_class_numbers_that_are_none_are_found(released: list[list[list[float]]]) -> None:
    form = LabelFormat.of("marginal_smoothing_k2", 9)
    assert form.unsound(form.from_released(torch.tensor(released))).tolist() == [True]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: LabelFormat.of("top5", 10), "label_type: got top5, expected one of ori, hard"),
        (lambda: LabelFormat.of("marginal_smoothing_k0", 10), "label_type: got marginal_smoothing_k0"),
        (lambda: LabelFormat.of("ori", 1), "num_classes: got 1"),
        (lambda: LabelFormat.of("ori", 10, "bf16"), "dtype: got bf16"),  # type: ignore[arg-type]
        (lambda: LabelFormat.of("hard", 10).smoothed(torch.zeros(1), 0.1), "label_type: got hard"),
        (lambda: LabelFormat.of("smoothing", 10).from_released(torch.zeros(3, 2, 5)), r"label_type: got labels of shape \[3, 2, 5\]"),
    ],
)
def test_wrong_words_are_refused(call: object, named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}"):
        call()  # type: ignore[operator]
