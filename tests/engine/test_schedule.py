"""Learning rates and ramps over a run."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stillroom.engine import Progress, Training
from stillroom.engine.schedule import Schedule, multistep_lr, warmup_factor
from stillroom.engine.training import with_fitting_warmup
from stillroom.errors import InputError


def rates(schedule: Schedule, epochs: int, steps_per_epoch: int) -> list[float]:
    return [schedule.rate(1.0, step=step, steps_per_epoch=steps_per_epoch, epochs=epochs) for step in range(epochs * steps_per_epoch)]


def test_multistep_keeps_the_full_rate_in_the_milestones_epoch() -> None:
    assert multistep_lr(150, 0.05, [150, 180, 210], 0.1) == 0.05
    assert multistep_lr(151, 0.05, [150, 180, 210], 0.1) == pytest.approx(0.005)
    assert multistep_lr(240, 0.05, [150, 180, 210], 0.1) == pytest.approx(0.00005)
    with pytest.raises(InputError, match="epoch"):
        multistep_lr(0, 0.05, [150], 0.1)


def test_multistep_changes_between_epochs() -> None:
    assert rates(Schedule("multistep", (1, 3), 0.5), epochs=4, steps_per_epoch=2) == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_fractions_are_of_the_run() -> None:
    assert rates(Schedule("multistep", (0.5, 0.75), 0.5), 4, 2) == rates(Schedule("multistep", (2, 3), 0.5), 4, 2)
    # 0.57 * 100 is a little less than 57 in floating point
    assert rates(Schedule("multistep", (0.57,)), 100, 1) == rates(Schedule("multistep", (57,)), 100, 1)
    # the shortest runs have a first epoch at the full rate, too
    assert rates(Schedule("multistep", (0.1,)), 2, 1) == [1.0, pytest.approx(0.1)]


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (2, 3), (5, 7)])
@pytest.mark.parametrize("peak", [0.2, 0.3])
def test_one_cycle_is_torchs(epochs: int, steps: int, peak: float) -> None:
    plan = Training(epochs=epochs, optimizer="adam", lr=1e-3, momentum=0.95, schedule="onecycle", peak=peak)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1e-3)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, epochs * steps, pct_start=peak)
    for step in range(epochs * steps):
        progress = Progress(step // steps + 1, epochs, step, steps)
        assert plan.rate(plan.lr, progress) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        assert plan.momentum_at(progress) == pytest.approx(optimizer.param_groups[0]["betas"][0], rel=1e-6)
        optimizer.step()
        if step + 1 < epochs * steps:
            theirs.step()
    assert Training().momentum_at(Progress()) is None
    with pytest.raises(InputError, match="warmup_epochs"):
        Training(schedule="onecycle", warmup_epochs=1)


def test_cosine_falls_from_the_full_rate_to_zero() -> None:
    got = rates(Schedule("cosine"), epochs=2, steps_per_epoch=2)
    assert got == pytest.approx([1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)])
    assert Schedule("cosine").rate(1.0, step=4, steps_per_epoch=2, epochs=2) == 0
    assert Schedule("cosine").rate(1.0, step=9, steps_per_epoch=2, epochs=2) == 0


def test_poly_falls_as_the_share_that_is_left_to_its_power() -> None:
    got = rates(Schedule("poly"), epochs=2, steps_per_epoch=5)
    assert got == pytest.approx([(1 - i / 10) ** 0.9 for i in range(10)])
    assert Schedule("poly").rate(1.0, step=10, steps_per_epoch=5, epochs=2) == 0


def test_constant() -> None:
    assert rates(Schedule("constant"), 2, 2) == [1.0] * 4


def test_warmup_rises_by_the_step() -> None:
    assert rates(Schedule("constant", warmup_epochs=2), epochs=3, steps_per_epoch=2) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rates(Schedule("constant", warmup_epochs=0.5), epochs=1, steps_per_epoch=4) == [0.5, 1, 1, 1]
    assert rates(Schedule("cosine", warmup_epochs=1), epochs=3, steps_per_epoch=2)[2:] == rates(Schedule("cosine"), 2, 2)


@given(
    kind=st.sampled_from(["multistep", "cosine", "poly", "constant"]),
    epochs=st.integers(2, 20),
    steps_per_epoch=st.integers(1, 5),
    warmup=st.floats(0, 1.9),
)
def test_rates_rise_to_the_full_rate_then_never_rise(kind: str, epochs: int, steps_per_epoch: int, warmup: float) -> None:
    got = rates(Schedule(kind, (0.62, 0.85) if kind == "multistep" else (), warmup_epochs=warmup), epochs, steps_per_epoch)  # type: ignore[arg-type]
    assert all(0 < rate <= 1 for rate in got)
    rest = got[math.ceil(warmup * steps_per_epoch) :]
    assert rest == sorted(rest, reverse=True)


def test_warmup_factor() -> None:
    assert [warmup_factor(epoch, 4) for epoch in (1, 2, 4, 5)] == [0.25, 0.5, 1.0, 1.0]
    assert warmup_factor(1, 0) == 1.0
    with pytest.raises(InputError, match="warmup"):
        warmup_factor(1, -1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"kind": "step"}, "kind"),
        ({"kind": "multistep"}, "milestones"),
        ({"kind": "multistep", "milestones": (0,)}, "milestones"),
        ({"kind": "multistep", "milestones": (-3, 5)}, "milestones"),
        ({"kind": "multistep", "milestones": (5,), "factor": 0.0}, "factor"),
        ({"kind": "multistep", "milestones": (5,), "factor": 10.0}, "factor"),
        ({"kind": "cosine", "warmup_epochs": -1}, "warmup_epochs"),
        ({"kind": "cosine", "warmup_epochs": float("nan")}, "warmup_epochs"),
    ],
)
def test_refuses(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}"):
        Schedule(**arguments)  # type: ignore[arg-type]


def test_refuses_a_position_outside_of_the_run() -> None:
    schedule = Schedule("cosine", warmup_epochs=5)
    with pytest.raises(InputError, match=r"^warmup_epochs"):
        schedule.rate(1.0, step=0, steps_per_epoch=2, epochs=5)
    with pytest.raises(InputError, match=r"^step:"):
        schedule.rate(1.0, step=-1, steps_per_epoch=2, epochs=9)
    with pytest.raises(InputError, match=r"^steps_per_epoch"):
        schedule.rate(1.0, step=0, steps_per_epoch=0, epochs=9)


def whole_epochs(plan: Training, steps: int = 3) -> list[float]:
    """The rate of each epoch, which must be that of all of its steps."""
    found = []
    for epoch in range(plan.epochs):
        rates = {plan.rate(plan.lr, Progress(epoch + 1, plan.epochs, epoch * steps + step, steps)) for step in range(steps)}
        assert len(rates) == 1
        found += rates
    return found


def test_a_rate_may_move_once_per_epoch() -> None:
    plan = Training(epochs=6, lr=0.4, schedule="cosine", warmup_epochs=2, step_per="epoch")
    rising = [0.2, 0.4]
    falling = [0.4 * 0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert whole_epochs(plan) == pytest.approx([*rising, *falling])
    cycle = Training(epochs=4, lr=0.4, optimizer="adam", schedule="onecycle", peak=0.5, step_per="epoch")
    assert whole_epochs(cycle)[1] == pytest.approx(0.4)
    assert cycle.momentum_at(Progress(2, 4, 5, 3)) == cycle.momentum_at(Progress(2, 4, 3, 3)) == pytest.approx(0.8)
    with pytest.raises(InputError, match="step_per: got week, expected one of step, epoch"):
        Training(step_per="week")  # type: ignore[arg-type]


def test_a_schedule_rises_from_its_floor_and_falls_back_to_it() -> None:
    rates = whole_epochs(Training(epochs=500, lr=0.4, schedule="cosine", warmup_epochs=10, step_per="epoch", lr_floor=0.001))
    assert rates[0] == 0.001
    assert rates[:10] == pytest.approx([0.001 + 0.399 * epoch / 9 for epoch in range(10)])
    assert rates[9] == rates[10] == 0.4
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert 0.001 < rates[-1] < 0.0011
    for warmup, first in ((0, 0.4), (1, 0.001)):
        rates = whole_epochs(Training(epochs=3, lr=0.4, schedule="cosine", warmup_epochs=warmup, step_per="epoch", lr_floor=0.001))
        assert rates[0] == first
        assert rates[warmup] == 0.4
    assert rates_of_floor("constant", warmup_epochs=2) == pytest.approx([0.1, 0.4, 0.7, 1, 1, 1])
    assert rates_of_floor("multistep", milestones=(1, 2), factor=0.5) == pytest.approx([1, 1, 0.55, 0.55, 0.325, 0.325])


def rates_of_floor(kind: str, **options: object) -> list[float]:
    return rates(Schedule(kind, floor=0.1, **options), epochs=3, steps_per_epoch=2)  # type: ignore[arg-type]


def test_without_a_floor_a_schedule_is_what_it_was() -> None:
    plan = Training(epochs=4, lr=0.3, schedule="cosine", warmup_epochs=1)
    places = [Progress(step // 5 + 1, 4, step, 5) for step in range(20)]
    floored = Training(epochs=4, lr=0.3, schedule="cosine", lr_floor=0.0)
    assert [plan.rate(0.3, place) for place in places[:5]] == pytest.approx([0.06, 0.12, 0.18, 0.24, 0.3])
    bare = Training(epochs=4, lr=0.3, schedule="cosine")
    assert [bare.rate(0.3, place) for place in places] == [floored.rate(0.3, place) for place in places]


def test_a_group_that_starts_below_the_floor_stays_where_it_is() -> None:
    plan = Training(epochs=4, lr=0.3, schedule="cosine", lr_floor=0.1)
    assert {plan.rate(0.05, Progress(epoch, 4, epoch - 1, 1)) for epoch in range(1, 5)} == {0.05}


@pytest.mark.parametrize("floor", [-0.1, 0.5, float("nan")])
def test_a_floor_above_the_rate_is_refused(floor: float) -> None:
    with pytest.raises(InputError, match=r"lr_floor: got .*, expected a number from 0 to the learning rate \(0.3\)"):
        Training(lr=0.3, lr_floor=floor)


@pytest.mark.parametrize(
    ("settings", "warmup"),
    [
        ({"epochs": 6}, 2.6),
        ({"epochs": 2}, 0.2),
        ({"epochs": 1}, 0.1),
        ({"epochs": 1, "warmup_epochs": 0}, 0),
        ({"epochs": 26, "schedule": "onecycle"}, 0),
        ({"epochs": 20, "warmup_epochs": 20, "step_per": "epoch"}, 15),
        ({"epochs": 1, "warmup_epochs": 20, "step_per": "epoch"}, 0),
    ],
)
def test_a_warm_up_that_nobody_asked_for_gives_way(settings: dict[str, Any], warmup: float) -> None:
    made = with_fitting_warmup({"warmup_epochs": 2.6, "schedule": "cosine", "step_per": "step", **settings}, 26)
    assert made["warmup_epochs"] == pytest.approx(warmup)
    Training(**made)
