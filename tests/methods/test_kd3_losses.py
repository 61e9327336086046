"""KD^3, parts 2 and 3a: the weighted alignment, and the view in another style."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.methods.kd3.loss import disagreement_weight, weighted_feature_loss
from stillroom.methods.kd3.mixdistribution import MixDistribution, mix_distribution


def images(count: int = 4, side: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.permutations(range(4)))
def test_a_mixed_view_has_the_mixed_mean_and_spread(shares: list[float], partners: list[int]) -> None:
    x, share, partner = images(), torch.tensor(shares), torch.tensor(partners)
    mixed = mix_distribution(x, share, partner)
    weight = share[:, None]
    expected_mean = weight * x.mean((2, 3)) + (1 - weight) * x.mean((2, 3))[partner]
    expected_spread = weight * x.std((2, 3)) + (1 - weight) * x.std((2, 3))[partner]
    torch.testing.assert_close(mixed.mean((2, 3)), expected_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed.std((2, 3)), expected_spread, rtol=1e-4, atol=1e-5)


def test_alone_or_with_itself_an_image_stays() -> None:
    x = images()
    torch.testing.assert_close(mix_distribution(x, torch.ones(4), torch.tensor([1, 2, 3, 0])), x)
    torch.testing.assert_close(mix_distribution(x, torch.zeros(4), torch.arange(4)), x)


def test_with_no_share_of_its_own_only_the_style_changes() -> None:
    x = images()
    mixed = mix_distribution(x, torch.zeros(4), torch.tensor([1, 2, 3, 0]))
    flat, original = (t.flatten(2) - t.flatten(2).mean(2, keepdim=True) for t in (mixed, x))
    torch.testing.assert_close(torch.cosine_similarity(flat, original, dim=2), torch.ones(4, 3))


def test_a_constant_channel_becomes_its_mixed_mean() -> None:
    x = images()
    x[0, 1] = 2.0
    mixed = mix_distribution(x, torch.full((4,), 0.25), torch.tensor([1, 0, 3, 2]))
    torch.testing.assert_close(mixed[0, 1], (0.25 * 2 + 0.75 * x[1, 1].mean()).expand(6, 6))
    assert mixed.isfinite().all()


def test_statistics_hold_no_gradient() -> None:
    x = images().requires_grad_()
    share, partner = torch.full((4,), 0.3), torch.tensor([1, 2, 3, 0])
    (gradient,) = torch.autograd.grad(mix_distribution(x, share, partner).sum(), x)
    spread = x.detach().var((2, 3), keepdim=True).add(1e-6).sqrt()
    torch.testing.assert_close(gradient, ((0.3 * spread + 0.7 * spread[partner]) / spread).expand_as(x))


def test_half_precision_images_keep_their_type() -> None:
    x = images().to(torch.bfloat16)
    mixed = mix_distribution(x, torch.rand(4), torch.tensor([1, 2, 3, 0]))
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mix_distribution(x, torch.ones(4), torch.arange(4)), x)


def test_a_draw_follows_the_generator_and_eval_mode_draws_nothing() -> None:
    mix, x = MixDistribution(), images(8)
    torch.manual_seed(1)
    first = mix(x)
    torch.manual_seed(1)
    assert torch.equal(mix(x), first)
    assert not torch.equal(mix(x), first)
    before = torch.get_rng_state()
    assert mix.eval()(x) is x
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("count", [2, 5, 8])
def test_crossdomain_partners_come_from_the_other_half(count: int) -> None:
    mix = MixDistribution(partners="crossdomain")
    for seed in range(20):
        torch.manual_seed(seed)
        partners = mix._partners(count, torch.device("cpu"))
        assert partners.sort().values.tolist() == list(range(count))
        half = (count + 1) // 2
        assert partners[:half].min() >= count - half
        assert (partners[half:] < count // 2).all()


@pytest.mark.parametrize(("probability", "mixed"), [(0.0, 0), (1.0, 200), (0.5, 100)])
def test_a_share_of_the_batches_is_mixed(probability: float, mixed: int) -> None:
    mix, x = MixDistribution(probability=probability), images(2, 2)
    torch.manual_seed(0)
    assert sum(mix(x) is not x for _ in range(200)) == pytest.approx(mixed, abs=25)


@pytest.mark.parametrize(
    ("options", "argument"),
    [({"beta": 0.0}, "beta"), ({"beta": -1.0}, "beta"), ({"probability": 1.5}, "probability"), ({"partners": "same"}, "partners")],
)
def test_refuses_views_that_there_are_not(options: dict[str, object], argument: str) -> None:
    with pytest.raises(InputError, match=rf"^{argument}: got "):
        MixDistribution(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 3, 6), (4, 3, 1, 1)])
def test_refuses_what_has_no_spread(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^images_BCHW: got "):
        mix_distribution(torch.zeros(shape), torch.ones(4), torch.arange(4))


def test_weights_lie_between_a_half_and_one_and_grow_with_the_disagreement() -> None:
    teacher = torch.tensor([[1.0, -1], [3, 0], [100, 0]])
    distance, weight = disagreement_weight(torch.tensor([[1.0, -1], [2, 1], [0, 0]]), teacher)
    torch.testing.assert_close(distance, torch.tensor([2**0.5 * 1e-6, 2**0.5, 100]), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(weight, distance.sigmoid())
    assert weight[0] == pytest.approx(0.5, abs=1e-5)
    assert weight[2] == 1


@given(st.integers(0, 10**6))
def test_the_loss_is_the_loop_of_the_released_code(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(3, 5, 4, 2, generator=generator) for _ in range(2))
    weight = torch.rand(3, generator=generator)
    looped = sum(w * (s - t).square().sum() for w, s, t in zip(weight, student, teacher, strict=True)) / student.numel()
    torch.testing.assert_close(weighted_feature_loss(student, teacher, weight), torch.as_tensor(looped))


def test_no_gradient_reaches_teacher_or_weight() -> None:
    student, teacher = (torch.randn(3, 5, 4, 4, requires_grad=True) for _ in range(2))
    weight = torch.rand(3, requires_grad=True)
    weighted_feature_loss(student, teacher, weight).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert weight.grad is None


def test_equal_maps_lose_nothing_and_no_weights_are_equal_weights() -> None:
    student, teacher = torch.randn(3, 5, 4, 4), torch.randn(3, 5, 4, 4)
    assert weighted_feature_loss(student, student, torch.rand(3)) == 0
    torch.testing.assert_close(weighted_feature_loss(student, teacher), weighted_feature_loss(student, teacher, torch.ones(3)))


@pytest.mark.parametrize("shapes", [((3, 5, 4), (3, 5, 4)), ((3, 5, 4, 4), (3, 5, 2, 2))])
def test_refuses_maps_that_cannot_be_compared(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(InputError, match=r"^student_BCHW: got shape"):
        weighted_feature_loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]), torch.ones(3))
