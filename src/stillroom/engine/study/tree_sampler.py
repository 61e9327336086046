"""Monte Carlo tree search as a sampler of Optuna, for any categorical space whose levels have an order; imported where a search runs,
since it imports Optuna.

>>> import optuna
>>> levels = {"where": ["map", "logits"], "how": ["l2", "kl"], "weight": [1.0, 10.0]}
>>> study = optuna.create_study(direction="maximize", sampler=TreeSampler(levels, seed=0))
>>> study.optimize(lambda trial: float(trial.suggest_categorical("how", levels["how"]) == "kl"), n_trials=4)  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from stillroom.engine.study.tree import EXPLORE, Leaf, Tree
from stillroom.errors import InputError, at_least, at_least_zero

if TYPE_CHECKING:
    import optuna

_PATHS = "tree:paths"  # of a trial's attributes: [leaf, depth, how often] of the paths that were dispatched for it, its own last
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class TreeSampler(BaseSampler):
    """Proposes a leaf that no trial has tried, by UCT over the trials of the study so far.

    A path that leads to a leaf which was tried before has its reward again, without a trial. The trials that run count as visits without
    reward, so that workers keep apart (virtual loss). All that the search knows stands in the study, the paths among its trials'
    attributes, the rewards among their values; draws are of the seed and a trial's number. So a study goes on from any process.

    Each leaf is tried once, as long as proposals are made one at a time. Where every leaf was tried, or is being tried, proposals are
    drawn evenly from all, and `optimize` ends.

    Args:
        levels: the options of every level, by the parameter's name, in the order of the tree.
        seed: of the draws.
        explore: the constant c of UCT, at least 0.
        reward: a trial's value as a reward in [0, 1]; by default the value itself, or in a study that minimises its negative. A trial that
            failed has the reward 0.
        allowed: whether a beginning of a path, options by their names, may be gone on with; one that may has at least one leaf below it.
        paths: how many paths there are for each trial on average, at least 1; after that proposals are drawn evenly from what is left.
            With 0 all are: random search that tries nothing twice.

    Raises:
        InputError: no level, one without options or with one twice, or a number out of its range.
    """

    def __init__(
        self,
        levels: Mapping[str, Sequence[Any]],
        *,
        seed: int = 0,
        explore: float = EXPLORE,
        reward: Callable[[float], float] | None = None,
        allowed: Callable[[Mapping[str, Any]], bool] = lambda path: True,
        paths: int = 10,
    ) -> None:
        self.levels = {name: list(options) for name, options in levels.items()}
        if not self.levels or any(not options or len(set(map(repr, options))) < len(options) for options in self.levels.values()):
            raise InputError("levels", self.levels, "at least one level, each with options that differ")
        self.seed, self.explore = at_least("seed", seed, 0), at_least_zero("explore", explore)
        self.reward, self.allowed, self.paths = reward, allowed, at_least("paths", paths, 0)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All levels are proposed together."""
        return {name: CategoricalDistribution(options) for name, options in self.levels.items()}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """A leaf; of a trial whose values somebody has set already nothing."""
        if trial.system_attrs.get("fixed_params"):
            return {}
        others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        generator = np.random.default_rng((self.seed, trial.number))
        sent, leaf = self._proposed(*self._grown(study, others), len(others), generator)
        told: Any = [[list(path), depth, times] for (path, depth), times in sent.items()]
        study._storage.set_trial_system_attr(trial._trial_id, _PATHS, told)
        return {name: options[place] for (name, options), place in zip(self.levels.items(), leaf, strict=True)}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """An option drawn evenly, of a trial some of whose values somebody has set.

        Raises:
            InputError: a parameter that is no level.
        """
        if param_name not in self.levels:
            raise InputError("levels", f"{', '.join(self.levels)} without {param_name}", "every parameter of the study as a level")
        options = self.levels[param_name]
        level = list(self.levels).index(param_name)
        return options[int(np.random.default_rng((self.seed, trial.number, level)).integers(len(options)))]

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Ends `optimize` where every leaf was tried."""
        if not study._thread_local.in_optimize_loop:  # the trials are asked and told by somebody else, who sees when to end
            return
        tried = {self._leaf(other) for other in study.get_trials(deepcopy=False, states=_ENDED)} | {self._leaf(trial)}
        if all(leaf in tried for leaf in self._tree().leaves()):
            study.stop()

    def tree(self, study: optuna.Study) -> Tree:
        """The tree as the study's trials have made it, those that run without rewards."""
        return self._grown(study, study.get_trials(deepcopy=False))[0]

    def _proposed(
        self, tree: Tree, known: Mapping[Leaf, float | None], trials: int, generator: np.random.Generator
    ) -> tuple[Counter[tuple[Leaf, int]], Leaf]:
        """The paths that are dispatched for a trial, each with how often, and the leaf that it tries, whose path is the last."""
        sent: Counter[tuple[Leaf, int]] = Counter()
        while tree.root.visits < self.paths * (trials + 1):
            leaf, depth = tree.dispatch(lambda level, options: int(generator.integers(options)))
            sent[leaf, depth] += 1
            if leaf not in known:
                return sent, leaf
            tree.reward(leaf, depth, known[leaf] or 0.0)
        leaf = self._drawn(tree, known, generator)
        own = leaf, tree.follow(leaf)
        return Counter({**{path: times for path, times in sent.items() if path != own}, own: sent[own] + 1}), leaf

    def _drawn(self, tree: Tree, known: Mapping[Leaf, float | None], generator: np.random.Generator) -> Leaf:
        """One of the leaves that were not tried, drawn evenly: by trial and error, which is quick while many are left."""
        for _ in range(50):
            leaf = tuple(int(generator.integers(options)) for options in tree.levels)
            if leaf not in known and all(tree.allowed(leaf[:depth]) for depth in range(1, len(leaf) + 1)):
                return leaf
        leaves = list(tree.leaves())
        left = [leaf for leaf in leaves if leaf not in known] or leaves
        return left[int(generator.integers(len(left)))]

    def _grown(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> tuple[Tree, dict[Leaf, float | None]]:
        """The tree of all paths so far, and each tried leaf's reward; None while a trial of it runs."""
        tree, leaves = self._tree(), [self._leaf(trial) for trial in trials]
        known = self._rewards(study, trials, leaves)
        tried: set[Leaf] = set()
        for trial, leaf in zip(trials, leaves, strict=True):
            sent = [(tuple(path), depth, times) for path, depth, times in trial.system_attrs.get(_PATHS, [])]
            if not sent and leaf in known and leaf not in tried:  # somebody set its values; not the ones of a trial that is run again
                sent = [(leaf, None, 1)]
            for path, depth, times in sent:
                tree.follow(path, depth, times, times * (known.get(path) or 0.0))
            if leaf is not None:
                tried.add(leaf)
        return tree, known

    def _rewards(self, study: optuna.Study, trials: Sequence[FrozenTrial], leaves: Sequence[Leaf | None]) -> dict[Leaf, float | None]:
        sign = -1.0 if study.direction.name == "MINIMIZE" else 1.0
        known: dict[Leaf, float | None] = {}
        for trial, leaf in zip(trials, leaves, strict=True):
            if leaf is None or trial.state == TrialState.WAITING:
                continue
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.values and math.isfinite(trial.values[0]):
                known[leaf] = sign * trial.values[0] if self.reward is None else self.reward(trial.values[0])
            else:  # a failed one is tried again perhaps, and a running one has no reward yet
                known.setdefault(leaf, 0.0 if trial.state in _ENDED else None)
        return known

    def _leaf(self, trial: FrozenTrial) -> Leaf | None:
        """What a trial tries; None where that is no leaf of this tree, or is not known yet."""
        if sent := trial.system_attrs.get(_PATHS):
            return tuple(sent[-1][0])
        try:
            return tuple(options.index(trial.params[name]) for name, options in self.levels.items())
        except (KeyError, ValueError):
            return None

    def _tree(self) -> Tree:
        names, options = list(self.levels), list(self.levels.values())

        def allowed(path: Leaf) -> bool:
            return self.allowed({name: options[level][place] for level, (name, place) in enumerate(zip(names, path, strict=False))})

        return Tree([len(one) for one in options], self.explore, allowed)
