from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.losses.assignment import sinkhorn


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 1000))
def test_rows_sum_to_one(samples: int, clusters: int, seed: int) -> None:
    scores = torch.rand(samples, clusters, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    shares = sinkhorn(scores)
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(samples))


def test_clusters_become_equal() -> None:
    scores = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([3.0, 0, 0, 0])
    torch.testing.assert_close(sinkhorn(scores, epsilon=0.5, iterations=200).sum(0), torch.full((4,), 16.0), rtol=1e-3, atol=0)


def test_a_constant_added_to_all_scores_changes_nothing_and_large_ones_stay_finite() -> None:
    scores = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sinkhorn(scores + 100), sinkhorn(scores), rtol=1e-3, atol=1e-5)
    assert torch.isfinite(sinkhorn(scores * 1e4)).all()


@given(st.integers(0, 6), st.integers(0, 6), st.integers(0, 1000))
def test_rows_that_are_left_out_are_as_if_they_were_not_there(chosen: int, left: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, chosen + left, 4, generator=generator) * 2 - 1
    rows = torch.randperm(chosen + left, generator=generator) < chosen
    shares = sinkhorn(scores, rows_B=rows)
    assert (shares[:, ~rows] == 0).all()
    torch.testing.assert_close(shares[:, rows], sinkhorn(scores[:, rows]))


def test_dimensions_in_front_are_assignments_of_their_own() -> None:
    scores = torch.randn(3, 2, 8, 4, generator=torch.Generator().manual_seed(0)) * 5
    alone = torch.stack([torch.stack([sinkhorn(one) for one in some]) for some in scores])
    torch.testing.assert_close(sinkhorn(scores), alone)


def test_a_sample_is_not_lost_beside_one_with_far_larger_scores() -> None:
    shares = sinkhorn(torch.tensor([[40.0, 39.9], [0.1, 0.0], [0.0, 0.1]]))
    torch.testing.assert_close(shares.sum(1), torch.ones(3))


def test_one_sample_is_shared_evenly_by_all_clusters() -> None:
    torch.testing.assert_close(sinkhorn(torch.tensor([[0.9, -0.3, 0.1]])), torch.full((1, 3), 1 / 3))


def test_no_sample_gives_no_row_and_no_gradient_flows() -> None:
    assert sinkhorn(torch.zeros(0, 5)).shape == (0, 5)
    assert not sinkhorn(torch.zeros(2, 5, requires_grad=True)).requires_grad


def test_bad_arguments_are_named() -> None:
    for arguments, name in (({"epsilon": 0.0}, "epsilon"), ({"iterations": 0}, "iterations")):
        with pytest.raises(InputError, match=name):
            sinkhorn(torch.zeros(2, 2), **arguments)
    with pytest.raises(InputError, match="scores_BK"):
        sinkhorn(torch.zeros(3))
    for rows in (torch.ones(3, dtype=torch.bool), torch.ones(2)):
        with pytest.raises(InputError, match="rows_B"):
            sinkhorn(torch.zeros(2, 2), rows_B=rows)
