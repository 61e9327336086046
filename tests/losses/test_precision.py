"""What is computed in which type: half precision is widened, float64 stays to the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stillroom.losses.assignment import sinkhorn
from stillroom.losses.contrast import crd_loss, nt_xent
from stillroom.losses.detection import distribution_focal_loss, mean_kl, quality_focal_loss
from stillroom.losses.features import hint_loss
from stillroom.losses.logits import dkd_loss, kd_loss
from stillroom.losses.precision import at_least_float32, in_one_type

LABELS = torch.tensor([0, 2, 1, 4])
PLACES = torch.tensor([0.5, 1.25, 0.75, 3.0])  # exact in every type
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kd": lambda s, t: kd_loss(s, t, 4.0),
    "dkd": lambda s, t: dkd_loss(s, t, LABELS, alpha=1.0, beta=8.0, temperature=4.0),
    "hint": hint_loss,
    "nt_xent": lambda s, t: nt_xent(s, t, 0.5),
    "crd": lambda s, t: crd_loss(s.abs(), 100),
    "mean_kl": lambda s, t: mean_kl(s, t, 2.0).sum(),
    "quality_focal": lambda s, t: quality_focal_loss(s, LABELS, PLACES.to(s) / 4).sum(),
    "distribution_focal": lambda s, t: distribution_focal_loss(s, PLACES.to(s)).sum(),
    "sinkhorn": lambda s, t: sinkhorn(s, epsilon=0.5).square().sum(),
}


@pytest.mark.parametrize(
    ("given", "computed"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_the_type(given: torch.dtype, computed: torch.dtype) -> None:
    values = torch.tensor([1.5, -2.0]).to(given)
    assert at_least_float32(values).dtype == computed
    assert torch.equal(at_least_float32(values).double(), values.double())
    assert {tensor.dtype for tensor in in_one_type(values, values.half())} == {computed}
    assert {tensor.dtype for tensor in in_one_type(values.half(), values)} == {computed}


@pytest.mark.parametrize("name", LOSSES)
def test_float64_is_not_rounded_and_half_precision_is_widened(name: str) -> None:
    student, teacher = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact, single = LOSSES[name](student, teacher), LOSSES[name](student.float(), teacher.float())
    assert exact.dtype == torch.float64
    assert single.dtype == torch.float32
    assert 0 < abs(float(exact - single)) < 1e-5 * max(1.0, abs(float(exact)))
    half = LOSSES[name](student.bfloat16(), teacher.bfloat16())
    assert torch.equal(half, LOSSES[name](student.bfloat16().float(), teacher.bfloat16().float()))
