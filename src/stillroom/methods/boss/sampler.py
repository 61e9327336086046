"""The surrogate as a sampler of Optuna, which keeps the trials; imported where a search runs, since it imports Optuna."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from stillroom.methods.boss.parzen import CANDIDATES, STARTUP, Dimension, propose

if TYPE_CHECKING:
    import optuna


class ParzenSampler(BaseSampler):
    """Proposes each dimension by itself, by `parzen.propose` over the completed trials of the study; running ones are ignored.

    Args:
        seed: of the draws; one sampler serves one trial.
        startup: completed trials before which proposals are uniform.
        candidates: values that are drawn, of which the best is taken.
    """

    def __init__(self, seed: int, *, startup: int = STARTUP, candidates: int = CANDIDATES) -> None:
        self._generator = np.random.default_rng(seed)
        self.startup, self.candidates = startup, candidates

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing is proposed together."""
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Nothing is proposed together."""
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """One dimension's value; of choices without an order one drawn at random, which the paper's spaces have none of."""
        if isinstance(param_distribution, CategoricalDistribution):
            return param_distribution.choices[int(self._generator.integers(len(param_distribution.choices)))]
        assert isinstance(param_distribution, FloatDistribution | IntDistribution)
        integer = isinstance(param_distribution, IntDistribution)
        dimension = Dimension(param_distribution.low, param_distribution.high, log=param_distribution.log, integer=integer)
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        observed = [float(one.params.get(param_name, math.nan)) for one in done]
        values = [sign * float(one.value) for one in done if one.value is not None]
        value = propose(observed, values, dimension, self._generator, startup=self.startup, candidates=self.candidates)
        return int(value) if integer else value
