"""How a stage is trained: optimiser, schedule, length; and where a run stands in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from stillroom.engine.schedule import Schedule
from stillroom.errors import InputError, one_of
from stillroom.modules.lars import LARS


@dataclass(frozen=True)
class Progress:
    """Where training stands, for ramps and schedules inside a loss.

    Args:
        epoch: the current epoch, counted from 1.
        epochs: epochs in all.
        step: batches seen before this one, over the whole stage. Epochs that show chosen samples only count as whole ones.
        steps_per_epoch: batches in one epoch of all samples.
    """

    epoch: int = 1
    epochs: int = 1
    step: int = 0
    steps_per_epoch: int = 1

    @property
    def steps(self) -> int:
        """Batches in all."""
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Args:
        epochs: passes over the training set.
        optimizer: sgd (with momentum), adam, adamw, or lars for large batches.
        lr: learning rate at the start (after warm-up).
        momentum: that of sgd and lars; beta1 of adam and adamw.
        weight_decay: L2 penalty (sgd, adam) or decoupled decay (adamw).
        nesterov: Nesterov momentum for sgd.
        schedule: multistep (times `decay` after each milestone), cosine (to zero, per step), linear (per step up from zero
            and straight down to it), poly (to zero, per step, with the power 0.9 of what is left), onecycle (per step up to `lr` and down
            to next to nothing, the momentum down by 0.1 and up again) or constant.
        milestones: epochs after which multistep decays, as numbers above 1, or as fractions of the run below 1.
        decay: multistep's factor.
        peak: share of the run after which onecycle has its full rate.
        warmup_epochs: length of a linear warm-up of the learning rate; 0 for none.
        step_per: whether the learning rate moves with every step or, as in many releases, once per epoch.
        lr_floor: learning rate that the schedule falls to and that a warm-up rises from; by default it falls to nothing, and a warm-up
            begins with a share of the rate.
        clip_norm: largest norm of the whole gradient; larger ones are scaled down. None for no clipping.
        accumulate: batches whose gradients make one optimiser step.
    """

    epochs: int = 30
    optimizer: Literal["sgd", "adam", "adamw", "lars"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    schedule: Literal["multistep", "cosine", "linear", "poly", "onecycle", "constant"] = "multistep"
    milestones: tuple[float, ...] = field(default=(0.62, 0.85))
    decay: float = 0.1
    peak: float = 0.3
    warmup_epochs: float = 0.0
    step_per: Literal["step", "epoch"] = "step"
    lr_floor: float | None = None
    clip_norm: float | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("accumulate", 1), ("lr", 0), ("weight_decay", 0), ("momentum", 0)):
            if not low <= getattr(self, name) < float("inf"):
                raise InputError(name, getattr(self, name), f"a finite number of at least {low}")
        if not self.momentum < 1:
            raise InputError("momentum", self.momentum, "a number below 1")
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            raise InputError("momentum", self.momentum, "a number above 0 for nesterov")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError("clip_norm", self.clip_norm, "a number above 0, or none")
        object.__setattr__(self, "milestones", tuple(self.milestones))
        one_of("step_per", self.step_per, ("step", "epoch"))
        if self.lr_floor is not None and not 0 <= self.lr_floor <= self.lr:
            raise InputError("lr_floor", self.lr_floor, f"a number from 0 to the learning rate ({self.lr:g}), or none")
        if not 0 < self.decay <= 1:
            raise InputError("decay", self.decay, "a number above 0 and up to 1")
        _ = self._schedule  # validates milestones and warm-up
        if self.warmup_epochs and not self.warmup_epochs < self.epochs:
            raise InputError("warmup_epochs", self.warmup_epochs, f"fewer than the run's epochs ({self.epochs})")
        if self.step_per == "epoch" and self.warmup_epochs % 1:
            raise InputError("warmup_epochs", self.warmup_epochs, "a whole number for a rate that moves once per epoch (step_per)")

    @property
    def _schedule(self) -> Schedule:
        return Schedule(self.schedule, self.milestones, self.decay, self.warmup_epochs, self.peak, self.lr_floor)

    def rate(self, base_lr: float, progress: Progress) -> float:
        """The learning rate at `progress` of a parameter group that starts at `base_lr`."""
        place = self._stepped(progress)
        return self._schedule.rate(base_lr, step=place.step, steps_per_epoch=place.steps_per_epoch, epochs=place.epochs)

    def momentum_at(self, progress: Progress) -> float | None:
        """The momentum (or beta1) at `progress`; None where the schedule leaves it alone."""
        if self.schedule != "onecycle":
            return None
        place = self._stepped(progress)
        return self._schedule.cycle(place.step, place.steps, (self.momentum, max(self.momentum - 0.1, 0.0), self.momentum))

    def _stepped(self, progress: Progress) -> Progress:
        """Where the schedule stands: a whole epoch is a single step of one that moves once per epoch."""
        return progress if self.step_per == "step" else replace(progress, step=progress.epoch - 1, steps_per_epoch=1)

    def build_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser over parameter groups (torch.optim's form)."""
        if self.optimizer == "lars":
            return LARS(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        if self.optimizer != "sgd":
            kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.optimizer]
            return kind(groups, lr=self.lr, betas=(self.momentum, 0.999), weight_decay=self.weight_decay)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov)


def with_fitting_warmup(settings: Mapping[str, Any], usual_epochs: int) -> dict[str, Any]:
    """Arguments of `Training` of which nobody asked for the warm-up: it is as it is where it fits, else it gives way.

    In a run that is too short for it, it keeps its share (in whole epochs, where the rate moves once per epoch); under the schedule
    onecycle, which rises by itself, there is none. A warm-up that a user asked for and that does not fit is refused by `Training`.

    Args:
        settings: by name.
        usual_epochs: of the run that the warm-up was meant for.
    """
    warmup, epochs = settings["warmup_epochs"], settings["epochs"]
    if settings["schedule"] == "onecycle":
        warmup = 0.0
    elif warmup >= epochs:
        warmup *= epochs / usual_epochs
        warmup = math.floor(warmup) if settings["step_per"] == "epoch" else warmup
    return {**settings, "warmup_epochs": warmup}


@dataclass(frozen=True)
class Stopped(Training):
    """A training that is stopped before its schedule has ended.

    Args:
        of: epochs of the whole schedule.
    """

    of: int = 1

    def rate(self, base_lr: float, progress: Progress) -> float:
        """As of the whole schedule."""
        return super().rate(base_lr, replace(progress, epochs=self.of))

    def momentum_at(self, progress: Progress) -> float | None:
        """As of the whole schedule."""
        return super().momentum_at(replace(progress, epochs=self.of))
