"""Scores of features: what k-NN counts, ties, classes without a vote, few labels, the probe, collapse; each sample once."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, distributed
from torch.nn.functional import normalize

from stillroom.tasks.representation.metrics import (
    Embedded,
    Protocol,
    RepresentationEvaluator,
    effective_rank,
    few_label_draws,
    linear_probe,
    relative_entropy,
    spread,
    weighted_knn,
)
from tests.processes import Processes


def scored(evaluator: RepresentationEvaluator, features_ND: Tensor, batch: int = 4) -> dict[str, float]:
    ids = torch.arange(len(features_ND))
    for part in ids.split(batch):
        evaluator.update(features_ND[part], SimpleNamespace(ids=part))
    return evaluator.compute()


def clouds(per_class: int, classes: int = 6, spread: float = 0.1) -> tuple[Tensor, np.ndarray]:
    """Features around a direction for each class, class by class in turn."""
    labels = np.arange(per_class * classes) % classes
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(classes, 16, generator=generator)
    return centres[labels] + spread * torch.randn(len(labels), 16, generator=generator), labels


def test_scores_are_sums_of_exponentials_over_the_nearest() -> None:
    bank, queries = torch.randn(20, 6), torch.randn(5, 6)
    labels = torch.arange(20) % 3
    scores, order = weighted_knn(bank, labels, queries, 3, k=5, temperature=0.07)
    cosines = normalize(queries, dim=1) @ normalize(bank, dim=1).T
    for query in range(5):
        nearest = cosines[query].argsort(descending=True)[:5]
        expected = torch.zeros(3, dtype=torch.float64)
        for index in nearest.tolist():
            expected[labels[index]] += (cosines[query, index].double() / 0.07).exp()
        torch.testing.assert_close(scores[query], expected, rtol=1e-5, atol=0)
        assert int(order[query, 0]) == int(expected.argmax())


def test_only_classes_with_a_vote_are_among_the_top_five_and_a_tie_goes_to_the_smaller_class() -> None:
    bank = torch.eye(8)
    _, order = weighted_knn(bank, torch.arange(8), torch.eye(8)[:1], 8, k=1, temperature=0.07)
    assert order[0].tolist() == [0, -1, -1, -1, -1, -1, -1, -1]
    wrong = RepresentationEvaluator(np.arange(8), np.array([3]), 8, Protocol(neighbours=1))
    found = scored(wrong, torch.cat([bank, bank[:1]]))
    assert found["knn"] == found["knn5"] == 0  # a wrong neighbour stays wrong
    _, order = weighted_knn(torch.ones(2, 4), torch.tensor([5, 2]), torch.ones(1, 4), 8, k=2, temperature=1e-3)
    assert order[0, :2].tolist() == [2, 5]


def test_good_features_score_high_bad_ones_at_chance_and_broken_ones_wrong() -> None:
    features, labels = clouds(30)
    bank, val = labels[:120], labels[120:]
    evaluator = RepresentationEvaluator(bank, val, 6, Protocol())
    found = scored(evaluator, features)
    assert min(found["knn"], found["linear"], found["few"]) > 99
    assert found["knn5"] == 100
    details = evaluator.details()
    assert details["ids"].tolist() == list(range(60))
    assert (bank[details["neighbours"]] == details["labels"][:, None]).all()
    evaluator.reset()
    noise = scored(evaluator, torch.randn(180, 16))
    assert 3 < noise["knn"] < 35
    evaluator.reset()
    broken = features.clone()
    broken[120:150] = torch.nan
    found = scored(evaluator, broken)
    assert (found["knn"], found["linear"]) == (50, 50)


def test_few_labels_are_drawn_alike_every_time_and_from_each_class() -> None:
    labels = np.array([0] * 7 + [1] * 3 + [2] * 9)
    draws = few_label_draws(labels, 3, 4, 40)
    assert all(np.bincount(labels[draw]).tolist() == [4, 3, 4] for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 30
    assert [draw.tolist() for draw in draws] == [draw.tolist() for draw in few_label_draws(labels, 3, 4, 40)]


def test_the_probe_finds_what_is_linear() -> None:
    features = torch.randn(200, 5)
    labels = (features[:, 2] * 1e-3 > 0).long()
    features[:, 2] *= 1e-3  # whatever the scale of a dimension
    assert (linear_probe(features[:150], labels[:150], features[150:], 2) == labels[150:]).float().mean() > 0.95


def test_collapse_is_seen() -> None:
    even, one = torch.randn(500, 16), torch.ones(500, 16) + 1e-4 * torch.randn(500, 16)
    line = torch.randn(500, 1) * torch.randn(1, 16)
    assert spread(even) == pytest.approx(1, abs=0.02)
    assert spread(one) < 1e-3
    assert effective_rank(even) > 15
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.ones(9, 3)) == 1
    assert relative_entropy(torch.zeros(4, 8).softmax(1).mean(0)) == pytest.approx(100)
    assert relative_entropy(torch.tensor([[50.0, 0, 0]]).softmax(1).mean(0)) == pytest.approx(0, abs=1e-6)
    assert relative_entropy((50 * torch.eye(8)).softmax(1).mean(0)) == pytest.approx(100)  # sure of each image, and of none in the mean


@pytest.mark.parametrize("score", ["few", "linear"])
def test_the_score_that_decides_is_told_of_each_image(score: str) -> None:
    features, labels = clouds(14, classes=3, spread=1.0)
    evaluator = RepresentationEvaluator(labels[:30], labels[30:], 3, Protocol(few_labels=2, draws=4, primary=score))
    found = scored(evaluator, features)
    assert evaluator.primary == score
    assert evaluator.details()["outcome"].mean() == pytest.approx(found[score])


def test_without_labels_collapse_alone_is_measured() -> None:
    evaluator = RepresentationEvaluator(np.full(20, -1), np.full(10, -1), 0, Protocol())
    evaluator.update(Embedded(torch.randn(30, 8), torch.zeros(30, 4)), SimpleNamespace(ids=torch.arange(30)))
    assert set(evaluator.compute()) == {"spread", "rank", "entropy"}
    assert evaluator.primary == "rank"
    assert set(evaluator.details()) == {"ids", "neighbours", "similarities"}


def on_a_rank(world: int, rank: int) -> dict[str, float]:
    features, labels = clouds(5, classes=5, spread=1.5)
    evaluator = RepresentationEvaluator(labels[:20], labels[20:], 5, Protocol(neighbours=3))
    mine = torch.arange(25).tensor_split(world)[rank]
    for part in mine.split(3):
        evaluator.update(features[part], SimpleNamespace(ids=part))
    found = evaluator.compute()
    assert len(evaluator.details()["ids"]) == 5
    return found


def test_five_samples_are_five_on_two_ranks(processes: Processes) -> None:
    """The ranks' shares are unlike, and nothing is counted twice."""
    alone = on_a_rank(1, 0)
    shared = processes.on_two_ranks(in_a_group)
    for found in shared:
        assert found == pytest.approx(alone)
    assert alone["knn"] % 20 == pytest.approx(0)


def in_a_group() -> dict[str, float]:
    """`on_a_rank` in a process group."""
    distributed.init_process_group("gloo")
    try:
        return on_a_rank(2, int(os.environ["RANK"]))
    finally:
        distributed.destroy_process_group()
