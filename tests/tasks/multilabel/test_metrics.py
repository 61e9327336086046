"""The figures against scikit-learn, and the rules at their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score

from stillroom.errors import InputError
from stillroom.tasks.multilabel import Batch
from stillroom.tasks.multilabel.metrics import MultiLabelEvaluator, agreement, as_many_as_true


def evaluated(logits: torch.Tensor, labels: torch.Tensor, parts: int = 1) -> MultiLabelEvaluator:
    evaluator = MultiLabelEvaluator(logits.shape[1])
    for ids in torch.arange(len(logits)).chunk(parts):
        evaluator.update(logits[ids], Batch(torch.empty(0), labels[ids], ids))
    return evaluator


@given(seed=st.integers(0, 1000), parts=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_figures_are_scikit_learns(seed: int, parts: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(20, 4, generator=numbers), (torch.rand(20, 4, generator=numbers) < 0.5).long()
    labels[0], labels[1] = 1, 0
    evaluator = evaluated(logits, labels, parts)
    found, scores, y = evaluator.compute(), logits.sigmoid().numpy(), labels.numpy()
    assert found["mAP"] == pytest.approx(100 * average_precision_score(y, scores, average="macro"), rel=1e-5)
    ranked = np.argsort(-scores, 1).argsort(1)
    known = (ranked < y.sum(1, keepdims=True)).astype(int)
    for name, predicted in (("", known), ("@0.5", (scores > 0.5).astype(int))):
        assert found[f"OF1{name}"] == pytest.approx(100 * f1_score(y, predicted, average="micro"), rel=1e-5)
        assert found[f"CF1{name}"] == pytest.approx(100 * f1_score(y, predicted, average="macro", zero_division=0), rel=1e-5)


def test_as_many_labels_as_are_true_and_ties_are_none() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.5, 0.5, 0.1], [0.2, 0.1, 0.3], [0.9, 0.8, 0.7]])
    labels = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])
    assert as_many_as_true(scores, labels).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1]]


def test_a_label_that_no_image_has_counts_as_zero() -> None:
    labels = torch.tensor([[1, 0], [0, 0], [1, 0]])
    found = evaluated(torch.tensor([[3.0, 1.0], [-3.0, 0.0], [2.0, -1.0]]), labels).compute()
    assert found["mAP"] == pytest.approx(50)


def test_an_image_with_a_broken_logit_counts_as_wrong_in_everything() -> None:
    labels = torch.tensor([[1, 0], [0, 1]])
    right = torch.tensor([[5.0, -5.0], [-5.0, 5.0]])
    broken = right.clone()
    broken[1, 0] = torch.nan
    assert evaluated(right, labels).compute() == pytest.approx(dict.fromkeys(("mAP", "OF1", "CF1", "OF1@0.5", "CF1@0.5"), 100))
    assert max(evaluated(broken, labels).compute().values()) <= 50
    assert evaluated(broken, labels).details()["scores"][1].tolist() == [1, 0]


def test_details_are_in_the_order_of_ids_and_are_forgotten() -> None:
    labels = torch.tensor([[1, 0], [0, 1]])
    evaluator = MultiLabelEvaluator(2)
    evaluator.update(torch.tensor([[9.0, -9.0], [-9.0, 9.0]]), Batch(torch.empty(0), labels, torch.tensor([4, 2])))
    details = evaluator.details()
    assert details["ids"].tolist() == [2, 4]
    assert details["labels"].tolist() == [[0, 1], [1, 0]]
    assert agreement(details, details) == 100
    assert agreement(details, {**details, "scores": 1 - details["scores"]}) == 0
    with pytest.raises(InputError, match="details_b"):
        agreement(details, {**details, "ids": details["ids"] + 1})
    evaluator.reset()
    assert len(evaluator.details()["ids"]) == 0
