"""What a study costs besides its trials: milliseconds of a trial for sampler, storage and bookkeeping, by the number of trials.

Auto-KD's tree search over its 2520 distillers, with Optuna's TPE over the same beside it; and five numbers and choices.

python benchmarks/study.py [--trials 500]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from stillroom.engine.study.samplers import MakeSampler, make_sampler
from stillroom.engine.study.space import Choice, Float, Space
from stillroom.engine.study.study import Study
from stillroom.engine.study.tree_sampler import TreeSampler
from stillroom.engine.study.trial import Trial
from stillroom.methods.auto_kd.space import FULL
from stillroom.methods.boss.search import sampler_of

TREE = {level: Choice(options) for level, options in FULL.items()}
SPACE = {f"x{i}": Float(1e-3, 1.0, log=True) for i in range(4)} | {"kind": Choice(tuple("abcdef"))}


def score(trial: Trial) -> float:
    return float(sum(trial.params[f"x{i}"] for i in range(4)))


def reward(trial: Trial) -> float:
    return (
        0.2 + 0.2 * (trial.params["inter"] == "channel") + 0.2 * (trial.params["distance"] == "kl4") + 0.02 * trial.params["weight"] ** 0.5
    )


def tree(seed: int) -> TreeSampler:
    return TreeSampler(FULL, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    trials = parser.parse_args().trials
    samplers: dict[str, tuple[MakeSampler, Space, Callable[[Trial], float]]] = {
        "tree search, 2520 leaves": (tree, TREE, reward),
        "tpe, 2520 leaves": (partial(make_sampler, "tpe"), TREE, reward),
        "random": (partial(make_sampler, "random"), SPACE, score),
        "tpe": (partial(make_sampler, "tpe"), SPACE, score),
        "parzen": (partial(sampler_of, "parzen", 10, False), SPACE, score),
    }
    for kind in ("sqlite", "journal"):
        for name, (sampler, space, objective) in samplers.items():
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                storage = f"journal:{folder}/journal.log" if kind == "journal" else None
                study = Study(Path(folder), "s", space, sampler, trials=trials, storage=storage)
                study.begin()
                start, wall = time.process_time(), time.perf_counter()
                while study.run_one(objective) is not None:
                    pass
                cpu, wall = time.process_time() - start, time.perf_counter() - wall
            print(
                f"{kind}, {name}: {1000 * cpu / trials:.1f} ms of processor time a trial, {1000 * wall / trials:.1f} ms in all", flush=True
            )


if __name__ == "__main__":
    main()
