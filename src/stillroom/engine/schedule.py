"""Learning rates and ramps as pure functions of where training stands, so that a resumed run needs no state of theirs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from stillroom.errors import InputError, at_least_zero, one_of

Kind = Literal["multistep", "cosine", "linear", "poly", "onecycle", "constant"]

_POWER = 0.9  # of poly, as segmentation papers have it
_START, _END = 25.0, 1e4  # onecycle starts at 1/25 of its full rate and ends at 1/10 000 of that


def multistep_lr(epoch: int, lr: float, stages: Iterable[float], decay: float) -> float:
    """lr * decay^(number of stages strictly smaller than `epoch`).

    Args:
        epoch: counted from 1. With a stage at 150, epoch 150 still has the full rate and 151 is the first decayed one.
        lr: the rate before any decay.
        stages: the last epoch before each decay.
        decay: factor of each decay.

    Raises:
        InputError: `epoch` is below 1.
    """
    if epoch < 1:
        raise InputError("epoch", epoch, "a number from 1")
    return lr * decay ** sum(stage < epoch for stage in stages)


def warmup_factor(epoch: float, warmup: float) -> float:
    """min(epoch / warmup, 1): the ramp of a loss weight over its first epochs; 1 without a warm-up (0).

    Args:
        epoch: counted from 1, so that the first epoch already has the weight 1 / warmup.
        warmup: epochs until the full weight.

    Raises:
        InputError: `warmup` is below 0.
    """
    if not warmup >= 0:
        raise InputError("warmup", warmup, "a number of epochs from 0")
    return 1.0 if epoch >= warmup else epoch / warmup


def linear_factor(step: int, warmup_steps: float, steps: int) -> float:
    """A straight rise from 0 at the first step to 1 after `warmup_steps`, and a straight fall to 0 after `steps`; 0 from there on.

    Args:
        step: steps before this one.
        warmup_steps: how long it rises, below `steps`; 0 for a fall alone.
        steps: in all.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (steps - step) / (steps - warmup_steps))


def cosine_between(first: float, last: float, *, step: int, steps: int, warmup: int = 0) -> float:
    """Half a cosine from `first` towards `last`, which the step after the last one would reach; at the i-th of n steps

        last + (first - last) (1 + cos(pi i / n)) / 2

    Before it a warm-up of evenly spaced values from 0 to `first`, both included.

    For quantities besides the learning rate too: weight decay, the momentum of an average.

    Args:
        first, last: the values at the two ends.
        step: steps before this one.
        steps: in all.
        warmup: how many of them rise, below `steps`.

    Raises:
        InputError: a step that is none of them, or a warm-up that does not end among them.
    """
    if not 0 <= step < steps:
        raise InputError("step", step, f"a number from 0 and below {steps}")
    if not 0 <= warmup < steps:
        raise InputError("warmup", warmup, f"a number of steps from 0 and below {steps}")
    if step < warmup:
        return first * step / max(warmup - 1, 1)
    return _between(first, last, (step - warmup) / (steps - warmup))


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run.

    Args:
        kind: multistep (times `factor` after each milestone), cosine (to zero at the end of the run, per step), linear (from zero through
            the warm-up, whose first step has no rate, and straight to zero at the end of the run, per step), poly (to zero, per step, as
            the share of the run that is left, to the power 0.9), onecycle (up to the full rate and down to next to nothing, per step) or
            constant.
        milestones: read by multistep: the last epoch, counted from 1, before each decay. A number in (0, 1) is a fraction of the run
            and means the nearest end of an epoch, the first at the earliest.
        factor: multistep's decay, in (0, 1].
        warmup_epochs: the rate first rises linearly over so many epochs, per step, and the first step already has a share of it.
            Cosine and poly span what is left of the run; multistep counts its epochs from the start of the run; onecycle has a rise of its
            own.
        peak: share of the run, in (0, 1), after which onecycle has its full rate.
        floor: the rate that the schedule falls to, and from which a warm-up rises: its first step has this rate and its last one the full
            one. None: the schedule falls to zero, and a warm-up's first step has a share of the rate already.

    Raises:
        InputError: an argument is out of its range.
    """

    kind: Kind
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    warmup_epochs: float = 0
    peak: float = 0.3
    floor: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        one_of("kind", self.kind, get_args(Kind))
        if self.kind == "multistep" and not self.milestones:
            raise InputError("milestones", self.milestones, "at least one epoch or fraction of the run, or the schedule constant")
        for milestone in self.milestones:
            if not (milestone > 0 and math.isfinite(milestone)):
                raise InputError("milestones", milestone, "an epoch from 1, or a fraction of the run between 0 and 1")
        if not 0 < self.factor <= 1:
            raise InputError("factor", self.factor, "a number above 0 and up to 1")
        if not (self.warmup_epochs >= 0 and math.isfinite(self.warmup_epochs)):
            raise InputError("warmup_epochs", self.warmup_epochs, "a number of epochs from 0")
        if self.kind == "onecycle" and self.warmup_epochs:
            raise InputError("warmup_epochs", self.warmup_epochs, "0 with the schedule onecycle, which rises by itself")
        if not 0 < self.peak < 1:
            raise InputError("peak", self.peak, "a share of the run between 0 and 1")
        if self.floor is not None:
            at_least_zero("floor", self.floor)

    def rate(self, base_lr: float, *, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The learning rate of one step.

        Args:
            base_lr: the full rate.
            step: steps before this one, over the whole run.
            steps_per_epoch: steps in one epoch.
            epochs: epochs of the run.

        Raises:
            InputError: a count is out of its range, or the warm-up does not end within the run.
        """
        for name, count, least in (("step", step, 0), ("steps_per_epoch", steps_per_epoch, 1), ("epochs", epochs, 1)):
            if count < least:
                raise InputError(name, count, f"a number from {least}")
        if not self.warmup_epochs < epochs:
            raise InputError("warmup_epochs", self.warmup_epochs, f"fewer than the run's epochs ({epochs})")
        warmup_steps = self.warmup_epochs * steps_per_epoch
        if self.kind == "linear":
            floor = min(self.floor or 0.0, base_lr)
            return floor + (base_lr - floor) * linear_factor(step, warmup_steps, epochs * steps_per_epoch)
        if self.floor is None:
            return self._after_warmup(base_lr, step, warmup_steps, steps_per_epoch, epochs) * warmup_factor(step + 1, warmup_steps)
        floor = min(self.floor, base_lr)
        risen = step / max(warmup_steps - 1, 1) if step < warmup_steps else 1.0
        return floor + self._after_warmup(base_lr - floor, step, warmup_steps, steps_per_epoch, epochs) * min(risen, 1.0)

    def _after_warmup(self, base_lr: float, step: int, warmup_steps: float, steps_per_epoch: int, epochs: int) -> float:
        if self.kind == "multistep":
            return multistep_lr(step // steps_per_epoch + 1, base_lr, self._stages(epochs), self.factor)
        if self.kind in ("cosine", "poly"):
            done = min(max((step - warmup_steps) / (epochs * steps_per_epoch - warmup_steps), 0.0), 1.0)
            return base_lr * (0.5 * (1 + math.cos(math.pi * done)) if self.kind == "cosine" else (1 - done) ** _POWER)
        if self.kind == "onecycle":
            return self.cycle(step, epochs * steps_per_epoch, (base_lr / _START, base_lr, base_lr / _START / _END))
        return base_lr

    def cycle(self, step: int, steps: int, values: tuple[float, float, float]) -> float:
        """Half a cosine from the first value to the second, which is reached at `peak`, and another one to the third at the last step.

        As `torch.optim.lr_scheduler.OneCycleLR` (Smith and Topin 2018).
        """
        start, full, end = values
        top, last = self.peak * steps - 1, steps - 1
        if step <= top:
            return _between(start, full, step / top if top > 0 else 1.0)
        return _between(full, end, (step - top) / (last - top))

    def _stages(self, epochs: int) -> list[float]:
        return [max(1, round(m * epochs)) if m < 1 else m for m in self.milestones]


def _between(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))
