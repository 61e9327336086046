"""What BOSS searches (section 4 of its specification), and what a proposal means for a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stillroom.engine import Training
from stillroom.engine.study.space import Float, Int, Range
from stillroom.errors import InputError

# `m` is 1 - momentum, which puts resolution near a momentum of 1; `alpha` is a dimension of main trials alone.
CIFAR: dict[str, Range] = {
    "lr": Float(1e-3, 1.0, log=True),
    "weight_decay": Float(1e-5, 1e-2, log=True),
    "m": Float(1e-3, 1.0, log=True),
    "batch_size": Int(64, 256),
    "alpha": Float(0.0, 1.0),
}
# The whole ranges hold many settings that diverge, which wreck the pool of a short search.
SMALL: dict[str, Range] = {
    "lr": Float(0.01, 0.5, log=True),
    "weight_decay": Float(1e-5, 1e-2, log=True),
    "m": Float(0.03, 1.0, log=True),
    "batch_size": Int(16, 64),
    "alpha": Float(0.0, 1.0),
}
# FixMatch's two, besides; its batches have a size of their own.
SEMI: dict[str, Range] = {
    **{name: CIFAR[name] for name in ("lr", "weight_decay", "m")},
    "unlabelled_weight": Float(0.1, 10.0, log=True),
    "threshold": Float(0.7, 0.99),
    "alpha": CIFAR["alpha"],
}
MEDICAL: dict[str, Range] = {
    "lr": Float(1e-4, 1e-1, log=True),
    "weight_decay": Float(1e-6, 1e-3, log=True),
    "m": Float(1e-3, 1.0, log=True),
    "batch_size": Int(8, 64),
    "augment_strength": Float(0.0, 1.0),
    "alpha": Float(0.0, 1.0),
}
SPACES = {"small": SMALL, "cifar": CIFAR, "semi": SEMI, "medical": MEDICAL}
KNOWN = {**CIFAR, **MEDICAL, **SEMI}
ALPHA = 0.5  # where it is not searched


def plan_of(plan: Training, proposal: Mapping[str, Any]) -> Training:
    """The plan with a proposal's values; `m` is 1 - momentum, and what is no part of a plan is left alone."""
    values = {name: proposal[name] for name in ("lr", "weight_decay") if name in proposal}
    if "m" in proposal:
        values["momentum"] = 1 - proposal["m"]
    return replace(plan, **values)


def check_space(space: Mapping[str, Range]) -> None:
    """Raises InputError for a dimension that BOSS does not know."""
    for name in space:
        if name not in KNOWN:
            raise InputError("space", name, f"dimensions among {', '.join(KNOWN)}; m is 1 - momentum")


def check_for(space: Mapping[str, Range], *, unlabelled: bool) -> None:
    """Raises InputError for a dimension that says nothing about such data: pseudo-labels want images without labels, whose views are
    FixMatch's own."""
    idle = ("augment_strength",) if unlabelled else ("unlabelled_weight", "threshold")
    for name in idle:
        if name in space:
            expected = (
                "none where images without labels are shown" if unlabelled else "images without labels (--data ...,unlabelled=FOLDER)"
            )
            raise InputError("space", name, expected)
