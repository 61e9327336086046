"""How near two answers are, as it is told."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import softmax

from stillroom.engine.inference.fidelity import CLASSES, LABELS, ByEngine


@pytest.mark.parametrize("by", [CLASSES, LABELS])
@pytest.mark.parametrize("seed", range(20))
def test_no_kl_is_told_below_zero_and_what_is_no_number_never_holds(by: ByEngine, seed: int) -> None:
    wanted = torch.randn(64, 10, generator=torch.Generator().manual_seed(seed)) * 5
    near = by.measure(wanted, wanted * (1 + 1e-7), 4.0)
    assert 0 <= near["kl"] < 1e-9
    assert by.holds(near)
    assert not by.holds(by.measure(wanted, torch.full_like(wanted, torch.nan), 4.0))


def test_figures_are_those_of_the_formula() -> None:
    wanted, told = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 1.0]]), torch.tensor([[1.0, 2.0, 0.0], [0.0, 2.0, 1.0]])
    p, q = softmax(wanted.double() / 2, 1), softmax(told.double() / 2, 1)
    figures = CLASSES.measure(wanted, told, 2.0)
    assert figures["agreement"] == 50
    assert figures["kl"] == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-12)
