from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.losses.contrast import crd_loss, nt_xent


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 5), negatives=st.integers(1, 20), samples=st.integers(1, 10_000), seed=st.integers(0, 1000))
def test_is_the_critics_likelihood_written_out(batch: int, negatives: int, samples: int, seed: int) -> None:
    scores = torch.rand(batch, 1 + negatives, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1e-3
    critic = scores / (scores + negatives / samples)
    expected = -(critic[:, 0].log() + (1 - critic[:, 1:]).log().sum(1)).mean()
    torch.testing.assert_close(crd_loss(scores.float(), samples).double(), expected, rtol=1e-4, atol=1e-4)


def test_falls_with_the_positives_score_and_rises_with_a_negatives() -> None:
    scores = torch.full((3, 9), 0.01, requires_grad=True)
    crd_loss(scores, 100).backward()
    assert scores.grad is not None
    assert (scores.grad[:, 0] < 0).all()
    assert (scores.grad[:, 1:] > 0).all()


def test_scores_of_a_chance_critic_give_log_two_per_pair() -> None:
    negatives, samples = 8, 50
    scores = torch.full((4, 1 + negatives), negatives / samples)
    torch.testing.assert_close(crd_loss(scores, samples), (1 + negatives) * torch.tensor(2.0).log())


def test_does_not_depend_on_the_order_of_negatives_or_anchors() -> None:
    scores = torch.rand(6, 12)
    shuffled = torch.cat([scores[:, :1], scores[:, 1:].flip(1)], dim=1).flip(0)
    torch.testing.assert_close(crd_loss(shuffled, 40), crd_loss(scores, 40))


@pytest.mark.parametrize("score", [0.0, 1e-30, 1e30])
def test_extreme_scores_stay_finite_in_value_and_gradient(score: float) -> None:
    scores = torch.full((2, 5), score, requires_grad=True)
    loss = crd_loss(scores, 1000)
    loss.backward()
    assert scores.grad is not None
    assert loss.isfinite()
    assert scores.grad.isfinite().all()


def test_one_anchor_in_bf16_gives_a_float32_loss() -> None:
    loss = crd_loss(torch.full((1, 3), 0.02, dtype=torch.bfloat16), 100)
    assert loss.dtype == torch.float32
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("shape", "samples", "argument"), [((2, 1), 10, "scores_BK1"), ((2,), 10, "scores_BK1"), ((2, 3), 0, "num_samples")]
)
def test_refuses_what_has_no_meaning(shape: tuple[int, ...], samples: int, argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        crd_loss(torch.ones(shape), samples)


def rows(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, count, 6, generator=generator)
    return first, second


def test_nt_xent_is_the_definition_written_out() -> None:
    first, second = rows(5)
    unit = torch.nn.functional.normalize(torch.cat((first, second)), dim=1)
    expected = 0.0
    for i in range(10):
        shares = [float((unit[i] @ unit[j] / 0.5).exp()) for j in range(10)]
        expected -= math.log(shares[(i + 5) % 10] / (sum(shares) - shares[i])) / 10
    assert float(nt_xent(first, second, 0.5)) == pytest.approx(expected, rel=1e-5)


def test_nt_xent_knows_neither_order_nor_length() -> None:
    first, second = rows(6)
    loss, order = nt_xent(first, second, 0.3), torch.randperm(6)
    torch.testing.assert_close(nt_xent(second, first, 0.3), loss)
    torch.testing.assert_close(nt_xent(first[order], second[order], 0.3), loss)
    torch.testing.assert_close(nt_xent(7 * first, 0.1 * second, 0.3), loss)


def test_nt_xent_of_one_sample_is_zero_and_zero_rows_are_finite() -> None:
    first, second = rows(1)
    assert float(nt_xent(first, second, 0.3)) == 0
    nothing = torch.zeros(3, 4, requires_grad=True)
    loss = nt_xent(nothing, torch.randn(3, 4), 0.3)
    loss.backward()
    assert torch.isfinite(loss)
    assert nothing.grad is not None
    assert torch.isfinite(nothing.grad).all()


def test_nt_xent_epsilon_stands_in_all_three_places_and_bounds_the_loss() -> None:
    first, second = rows(5)
    both, epsilon = torch.cat((first, second)).double(), 1e-3
    unit = both / (both.norm(dim=1, keepdim=True) + epsilon)
    powers = (unit @ unit.T / 0.1).exp().fill_diagonal_(0)
    shares = powers / (powers.sum(1, keepdim=True) + epsilon) + epsilon
    expected = -shares[torch.arange(10), torch.arange(10).roll(5)].log().mean()
    torch.testing.assert_close(nt_xent(first, second, 0.1, epsilon=epsilon).double(), expected, rtol=1e-5, atol=0)
    opposite = torch.eye(4)[:2].repeat(2, 1)
    assert float(nt_xent(opposite[:2], -opposite[:2], 1e-3, epsilon=1e-8)) == pytest.approx(-math.log(1e-8), rel=1e-5)
    assert float(nt_xent(opposite[:2], -opposite[:2], 1e-3)) == pytest.approx(1000, rel=1e-3)


def test_nt_xent_refuses_other_shapes() -> None:
    with pytest.raises(InputError, match="second_BD"):
        nt_xent(torch.zeros(3, 4), torch.zeros(2, 4), 0.3)
    with pytest.raises(InputError, match="temperature"):
        nt_xent(torch.zeros(3, 4), torch.zeros(3, 4), 0)
    with pytest.raises(InputError, match="epsilon"):
        nt_xent(torch.zeros(3, 4), torch.zeros(3, 4), 1, epsilon=-1.0)
