"""Who proposes a trial's values, and who stops one early: Optuna's, by name.

A sampler is made anew for every trial, from the study's seed and the trial's number. So a study that goes on proposes what it would have
proposed had it never stopped, and no generator's state needs to be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from stillroom.errors import one_of

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

MakeSampler: TypeAlias = "Callable[[int], BaseSampler]"  # from a seed
SAMPLERS = ("tpe", "gp", "random")
PRUNERS = ("none", "median", "hyperband")
STARTUP = 10  # trials that are drawn at random


def make_sampler(name: str, seed: int, *, startup: int = STARTUP, parallel: bool = False) -> BaseSampler:
    """Optuna's sampler of that name.

    Args:
        name: tpe (tree-structured Parzen estimator), gp (Gaussian process) or random.
        seed: of its draws.
        startup: trials that tpe and gp draw at random first.
        parallel: whether other trials run meanwhile, which tpe then keeps away from.
    """
    from optuna import samplers

    one_of("sampler", name, SAMPLERS)
    if name == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=parallel)
    if name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=startup)
    return samplers.RandomSampler(seed=seed)


def make_pruner(name: str) -> BasePruner:
    """Optuna's pruner of that name: none, median (worse than half of the earlier trials at that epoch) or hyperband."""
    from optuna import pruners

    one_of("pruner", name, PRUNERS)
    if name == "median":
        return pruners.MedianPruner()
    return pruners.HyperbandPruner() if name == "hyperband" else pruners.NopPruner()
