"""Composed distances: the words, what known losses are made of, and where nothing may be NaN."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn.functional import kl_div, mse_loss, normalize

from stillroom.errors import InputError
from stillroom.losses.composed import DISTANCE, GLOBAL, INTER, KNOWN, L1, NONE, NORMALISE, Composition
from stillroom.losses.similarity import linear_cka

ALL = [
    Composition(*words, normalise=normalise)
    for *words, normalise in product(GLOBAL, (NONE, "scale2", "local4"), INTER, (*DISTANCE, L1), [1.0], NORMALISE)  # type: ignore[arg-type]
]


def maps(size: int = 5, samples: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 6, size, size, generator=generator), torch.randn(samples, 6, size, size, generator=generator)


def test_every_distiller_is_what_its_text_says_and_is_zero_on_equal_maps() -> None:
    student, teacher = maps()
    keep = torch.ones(4, 1, 5, 5)
    for composition in ALL:
        assert Composition.read(str(composition)) == composition
        assert composition(student, student, keep_N1HW=keep).item() == pytest.approx(0, abs=1e-5), str(composition)
        assert composition(student, teacher, keep_N1HW=keep).item() > 0, str(composition)


def test_zeros_and_single_positions_give_finite_losses_and_gradients() -> None:
    for composition, size in product([one for one in ALL if NONE in (one.normalise, one.intra)], (1, 3)):
        student = torch.zeros(2, 3, size, size, requires_grad=True)
        loss = composition(student, torch.randn(2, 3, size, size))
        loss.backward()
        assert loss.isfinite(), str(composition)
        assert student.grad is not None
        assert student.grad.isfinite().all(), str(composition)


def test_no_gradient_reaches_the_teacher_and_half_precision_is_widened() -> None:
    student, teacher = (one.bfloat16().requires_grad_() for one in maps())
    loss = Composition.read("satt>scale2>channel>kl4*10")(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert teacher.grad is None


def test_known_losses_are_points_of_the_space() -> None:
    student, teacher = maps()
    rows_s, rows_t = student.flatten(1), teacher.flatten(1)
    sp = (normalize(rows_s @ rows_s.T) - normalize(rows_t @ rows_t.T)).square().mean()
    torch.testing.assert_close(Composition.read(KNOWN["SP"])(student, teacher), sp)
    torch.testing.assert_close(Composition.read(f"{KNOWN['FitNet']}*100")(student, teacher), 100 * mse_loss(student, teacher))
    log_s, log_t = ((one.flatten(2) / 4).log_softmax(-1) for one in (student, teacher))
    cwd = 16 * kl_div(log_s, log_t, log_target=True, reduction="sum") / (4 * 6)
    torch.testing.assert_close(Composition.read(KNOWN["CWD"])(student, teacher), cwd)
    channels_s, channels_t = (normalize(one.flatten(2) @ one.flatten(2).transpose(1, 2), dim=-1) for one in (student, teacher))
    torch.testing.assert_close(Composition.read(KNOWN["ICKD"])(student, teacher), (channels_s - channels_t).square().sum() / (4 * 6))


def test_logits_are_compared_within_samples_and_within_classes() -> None:
    student, teacher = torch.randn(8, 5), torch.randn(8, 5)
    between, within = (Composition.read(KNOWN[f"DIST, {kind}"]) for kind in ("between classes", "within a class"))
    correlation = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(student, teacher, strict=True)]
    torch.testing.assert_close(between(student, teacher), 1 - torch.stack(correlation).mean())
    torch.testing.assert_close(within(student, teacher), between(student.T, teacher.T))


def test_the_mask_is_the_same_for_both_and_fresh_each_time() -> None:
    student, teacher = maps()
    composition = Composition.read("mask>position>l2")
    assert composition(student, student).item() == 0
    assert composition(student, teacher) != composition(student, teacher)
    shares = [(composition(student, torch.zeros_like(student)) / student.square().mean()).item() for _ in range(50)]
    assert sum(shares) / 50 == pytest.approx(0.35, abs=0.05)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("channel>kl3", "'kl3', which is no such word"),
        ("channel>satt>kl4", "'satt', which stands too late"),
        ("channel>sample>kl4", "'sample', which stands too late or twice"),
        ("satt>kl4", "without what is compared"),
        ("satt>channel", "without a distance"),
        ("", "without what is compared"),
        ("channel>kl4*-1", "the weight '-1'"),
        ("channel>kl4*", "the weight ''"),
        ("channel>kl4*much", "the weight 'much'"),
        ("class>pear", "'class'"),
        ("logits>position>kl4", "'position'"),
        ("logits>sample>gl2", "'gl2'"),
        ("logits>satt>sample>kl4", "'satt'"),
    ],
)
def test_a_mistake_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"^distiller: ") as caught:
        Composition.read(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_spaces_and_none_may_stand_in_a_text() -> None:
    assert str(Composition.read(" none > local2 > channel > none > kl4 * 1e1 ")) == "local2>channel>kl4*10"


def test_shapes_that_differ() -> None:
    with pytest.raises(InputError, match="two equal shapes"):
        Composition()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 2, 2))


def test_cka_knows_rotations_and_degenerate_features() -> None:
    features = torch.randn(300, 6, dtype=torch.float64)
    turned = features @ torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    assert linear_cka(features, 3 * turned + 2).item() == pytest.approx(1)
    assert linear_cka(features, torch.randn(300, 4, dtype=torch.float64)).item() < 0.2
    assert linear_cka(features, torch.ones(300, 3)).item() == 0
    assert linear_cka(features[:1], features[:1]).item() == 0
    with pytest.raises(InputError, match="the same samples"):
        linear_cka(features, features[:2])
