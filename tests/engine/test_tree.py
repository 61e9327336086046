"""Tree search: what it promises by itself, and as a sampler of Optuna."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import optuna
import pytest

from stillroom.engine.study.space import Choice
from stillroom.engine.study.study import Study
from stillroom.engine.study.tree import Leaf, Tree
from stillroom.engine.study.tree_sampler import TreeSampler
from stillroom.errors import InputError

LEVELS: dict[str, list[Any]] = {"where": ["map", "logits"], "how": ["l2", "kl", "cos"], "weight": [0.1, 1.0, 10.0]}
optuna.logging.set_verbosity(optuna.logging.ERROR)


def worth(trial: Any) -> float:
    params = trial.params if isinstance(trial.params, dict) and trial.params else {}
    where, how, weight = (params.get(name) or trial.suggest_categorical(name, LEVELS[name]) for name in LEVELS)
    return 0.2 + 0.3 * (where == "logits") + 0.3 * (how == "kl") + 0.2 * (weight == 10.0)


def in_memory(sampler: TreeSampler, trials: int = 18, **options: Any) -> optuna.Study:
    study = optuna.create_study(direction="maximize", sampler=sampler, **options)
    study.optimize(worth, n_trials=trials)
    return study


def tried(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [tuple(trial.params[name] for name in LEVELS) for trial in study.trials]


# The tree ---------------------------------------------------------------------------------------------------------------------------------


def search(levels: list[int], table: Callable[[Leaf], float], trials: int, explore: float, seed: int) -> list[float]:
    """Rewards of the distinct leaves that UCT tries; with `explore` infinite, of distinct leaves drawn at random."""
    generator, tree, known = np.random.default_rng(seed), Tree(levels, explore), dict[Leaf, float]()
    while len(known) < trials and tree.root.visits < 10 * trials:
        if math.isinf(explore):
            known.setdefault(leaf := tuple(int(generator.integers(count)) for count in levels), table(leaf))
            continue
        leaf, depth = tree.dispatch(lambda level, options: int(generator.integers(options)))
        tree.reward(leaf, depth, known.setdefault(leaf, table(leaf)))
    return list(known.values())


def test_equal_rewards_are_a_balanced_sweep_in_the_order_of_options() -> None:
    tree = Tree([2, 3])
    seen = []
    for _ in range(24):
        leaf, depth = tree.dispatch(lambda level, options: 0)
        tree.reward(leaf, depth, 0.5)
        seen.append(leaf)
    assert seen[:2] == [(0, 0), (1, 0)]
    counts = [child.visits for child in tree.root.children.values()]
    assert counts == [12, 12]
    assert {leaf for leaf in seen if seen.count(leaf) >= 3} == set(product(range(2), range(3)))


def test_one_option_in_a_level_and_forbidden_beginnings() -> None:
    tree = Tree([1, 3, 2], allowed=lambda path: path[:2] != (0, 1))
    assert len(list(tree.leaves())) == 4
    seen = set()
    for _ in range(40):
        leaf, depth = tree.dispatch(lambda level, options: options - 1)
        tree.reward(leaf, depth, 0.1)
        seen.add(leaf)
    assert seen == {(0, 0, 0), (0, 0, 1), (0, 2, 0), (0, 2, 1)}


def test_it_finds_better_leaves_than_random_search_and_concentrates() -> None:
    """The specification's pilot: effects of options, one interaction and noise; 40 distinct evaluations of 432 leaves."""
    levels = [3, 3, 3, 4, 4]
    ranks: dict[float, list[float]] = {0.3: [], math.inf: []}
    late: dict[float, list[float]] = {0.3: [], math.inf: []}
    for seed in range(40):
        generator = np.random.default_rng(seed)
        effects = [generator.normal(size=count) for count in levels]
        pairs = generator.normal(size=(4, 4))
        raw = {
            leaf: sum(effect[option] for effect, option in zip(effects, leaf, strict=True)) + pairs[leaf[3], leaf[4]]
            for leaf in product(*map(range, levels))
        }
        table = {leaf: 1 / (1 + math.exp(-0.5 * (value + 0.3 * generator.normal()))) for leaf, value in raw.items()}
        for explore, found in ranks.items():
            rewards = search(levels, table.__getitem__, 40, explore, seed)
            found.append(sum(value > max(rewards) for value in table.values()) / len(table))
            late[explore].append(fmean(rewards[len(rewards) // 2 :]))
    assert fmean(ranks[0.3]) < 0.7 * fmean(ranks[math.inf])
    assert fmean(late[0.3]) > fmean(late[math.inf]) + 0.05


# The sampler ------------------------------------------------------------------------------------------------------------------------------


def test_each_leaf_is_tried_once_and_then_it_ends() -> None:
    study = in_memory(TreeSampler(LEVELS, seed=1), trials=50)
    assert len(study.trials) == len(set(tried(study))) == 18
    assert study.best_value == pytest.approx(1.0)


def test_it_goes_on_from_any_process_as_if_it_had_never_stopped() -> None:
    whole = in_memory(TreeSampler(LEVELS, seed=3), trials=10)
    storage = optuna.storages.InMemoryStorage()
    in_memory(TreeSampler(LEVELS, seed=3), trials=4, storage=storage, study_name="s")
    again = in_memory(TreeSampler(LEVELS, seed=3), trials=6, storage=storage, study_name="s", load_if_exists=True)
    assert tried(again) == tried(whole)


def test_it_is_the_tree_search_of_the_levels() -> None:
    study = in_memory(TreeSampler(LEVELS, seed=0, paths=100), trials=8)
    generators = {number: np.random.default_rng((0, number)) for number in range(8)}
    tree, known = Tree([2, 3, 3]), dict[Leaf, float]()
    for number, trial in enumerate(study.trials):
        while True:
            leaf, depth = tree.dispatch(lambda level, options, number=number: int(generators[number].integers(options)))
            new = leaf not in known
            if new:
                assert [options[place] for options, place in zip(LEVELS.values(), leaf, strict=True)] == list(trial.params.values())
                known[leaf] = float(trial.value or 0.0)
            tree.reward(leaf, depth, known[leaf])
            if new:
                break


def test_workers_keep_apart_and_failed_trials_are_not_tried_again() -> None:
    study = optuna.create_study(direction="maximize", sampler=TreeSampler(LEVELS))
    space = {name: optuna.distributions.CategoricalDistribution(options) for name, options in LEVELS.items()}
    running = [study.ask(space) for _ in range(6)]
    assert len({tuple(trial.params.values()) for trial in running}) == 6
    assert {trial.params["where"] for trial in running[:2]} == {"map", "logits"}
    for trial in running:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    later = [study.ask(space) for _ in range(12)]
    assert len({tuple(trial.params.values()) for trial in running + later}) == 18


def test_what_somebody_enqueued_is_part_of_the_tree() -> None:
    study = optuna.create_study(direction="maximize", sampler=TreeSampler(LEVELS))
    study.enqueue_trial({"where": "logits", "how": "kl", "weight": 10.0})
    study.enqueue_trial({"how": "cos"})
    study.optimize(worth, n_trials=18)
    found = tried(study)
    assert found[0] == ("logits", "kl", 10.0)
    assert found[1][1] == "cos"
    assert len(set(found)) == 18


def test_without_paths_it_is_random_search_that_tries_nothing_twice() -> None:
    first, second = (tried(in_memory(TreeSampler(LEVELS, seed=seed, paths=0))) for seed in (0, 1))
    assert len(set(first)) == len(set(second)) == 18
    assert first != second


def test_a_minimised_study_and_rewards_of_scores() -> None:
    study = optuna.create_study(direction="minimize", sampler=TreeSampler(LEVELS, reward=lambda score: math.exp(-score)))
    study.optimize(lambda trial: 2 - worth(trial), n_trials=10)
    assert study.best_value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"levels": {}}, "levels"),
        ({"levels": {"a": []}}, "levels"),
        ({"levels": {"a": [1, 1]}}, "levels"),
        ({"levels": LEVELS, "explore": -1.0}, "explore"),
        ({"levels": LEVELS, "paths": -1}, "paths"),
    ],
)
def test_refuses_what_it_cannot_use(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=rf"^{said}: "):
        TreeSampler(**options)


def test_a_parameter_that_is_no_level() -> None:
    study = optuna.create_study(sampler=TreeSampler(LEVELS))
    with pytest.raises(InputError, match="without lr"):
        study.optimize(lambda trial: trial.suggest_float("lr", 0, 1), n_trials=1)


def test_a_study_of_stillroom_takes_it(tmp_path: Path) -> None:
    space = {name: Choice(tuple(options)) for name, options in LEVELS.items()}
    study = Study(tmp_path, "s", space, lambda seed: TreeSampler(LEVELS, seed=seed), trials=6)
    found = study.run(worth)
    assert len({tuple(trial.params.values()) for trial in found}) == 6
    longer = Study(tmp_path, "s", space, lambda seed: TreeSampler(LEVELS, seed=seed), trials=18)
    assert len({tuple(trial.params.values()) for trial in longer.run(worth)}) == 18
    assert longer.best.score == pytest.approx(1.0)
