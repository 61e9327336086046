"""A pruner of Optuna that compares a trial with all earlier ones that came as far; imported where a search runs, as it imports Optuna."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial


def gives_up(score: float, before: Sequence[float]) -> bool:
    """Whether a score, of which less is better, is worse than the median of the earlier ones; never where there is none."""
    return bool(before) and score > median(before)


class MedianSoFar(BasePruner):
    """Gives a trial up whose score is worse than the median of what the trials before it reported at the same step, those included that
    were given up there. (Optuna's own median is that of completed trials, after some that are never given up.)"""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is given up at the step that it reported last."""
        step = trial.last_step
        if step is None:
            return False
        sign = -1.0 if study.direction.name == "MAXIMIZE" else 1.0
        earlier = [other for other in study.get_trials(deepcopy=False) if other.number < trial.number]
        before = [sign * other.intermediate_values[step] for other in earlier if step in other.intermediate_values]
        return gives_up(sign * trial.intermediate_values[step], before)
