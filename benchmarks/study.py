"""What a study costs besides its trials: milliseconds of a trial for sampler, storage, bookkeeping and the line that is said of it.

Auto-KD's tree search over its 2520 distillers, with Optuna's TPE over the same beside it; and five numbers and choices. Each trial notes
what one of Auto-KD's does.

python benchmarks/study.py [--trials 500] [--only tree] [--storage sqlite]
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
    note(trial)
    return float(sum(trial.params[f"x{i}"] for i in range(4)))


def reward(trial: Trial) -> float:
    note(trial)
    return (
        0.2 + 0.2 * (trial.params["inter"] == "channel") + 0.2 * (trial.params["distance"] == "kl4") + 0.02 * trial.params["weight"] ** 0.5
    )


def note(trial: Trial) -> None:
    trial.note(distiller="satt>local4>channel>kl4*10", images=1024, teacher_images=0, parameters=123456, top1=81.25, gap=0.125)


def tree(seed: int) -> TreeSampler:
    return TreeSampler(FULL, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--only", default="", help="samplers whose name begins so")
    parser.add_argument("--storage", choices=("sqlite", "journal"), help="by default both")
    given = parser.parse_args()
    trials: int = given.trials
    samplers: dict[str, tuple[MakeSampler, Space, Callable[[Trial], float]]] = {
        "tree search, 2520 leaves": (tree, TREE, reward),
        "tpe, 2520 leaves": (partial(make_sampler, "tpe"), TREE, reward),
        "random": (partial(make_sampler, "random"), SPACE, score),
        "tpe": (partial(make_sampler, "tpe"), SPACE, score),
        "parzen": (partial(sampler_of, "parzen", 10, False), SPACE, score),
    }
    for kind in ("sqlite", "journal") if given.storage is None else (given.storage,):
        for name, (sampler, space, objective) in samplers.items():
            if name.startswith(given.only):
                print(f"{kind}, {name}: {measured(kind, sampler, space, objective, trials)}", flush=True)


def measured(kind: str, sampler: MakeSampler, space: Space, objective: Callable[[Trial], float], trials: int) -> str:
    """One study, in words."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        storage = f"journal:{folder}/journal.log" if kind == "journal" else None
        study = Study(Path(folder), "s", space, sampler, trials=trials, storage=storage)
        study.begin()
        times = [(time.process_time(), time.perf_counter())]

        def timed(trial: Trial) -> float:
            times.append((time.process_time(), time.perf_counter()))
            return objective(trial)

        study.run(timed)
        times.append((time.process_time(), time.perf_counter()))
    processor, wall = (1000 * (times[-1][i] - times[0][i]) / trials for i in (0, 1))
    tenth = max(trials // 10, 1)
    late = 1000 * (times[-1][0] - times[-1 - tenth][0]) / tenth
    return f"{processor:.1f} ms of processor time a trial ({late:.1f} in the last tenth), {wall:.1f} ms in all"


if __name__ == "__main__":
    main()
