"""What a study costs besides its trials: milliseconds of a trial for sampler, storage and bookkeeping, by the number of trials.

python benchmarks/study.py [--trials 500]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from functools import partial
from pathlib import Path

from stillroom.engine.study.samplers import make_sampler
from stillroom.engine.study.space import Choice, Float
from stillroom.engine.study.study import Study
from stillroom.engine.study.trial import Trial
from stillroom.methods.boss.search import sampler_of

SPACE = {f"x{i}": Float(1e-3, 1.0, log=True) for i in range(4)} | {"kind": Choice(tuple("abcdef"))}


def score(trial: Trial) -> float:
    return float(sum(trial.params[f"x{i}"] for i in range(4)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    trials = parser.parse_args().trials
    samplers = {
        "random": partial(make_sampler, "random"),
        "tpe": partial(make_sampler, "tpe"),
        "parzen": partial(sampler_of, "parzen", 10, False),
    }
    for kind in ("sqlite", "journal"):
        for name, sampler in samplers.items():
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
                storage = f"journal:{folder}/journal.log" if kind == "journal" else None
                study = Study(Path(folder), "s", SPACE, sampler, trials=trials, storage=storage)
                study.begin()
                start, wall = time.process_time(), time.perf_counter()
                while study.run_one(score) is not None:
                    pass
                cpu, wall = time.process_time() - start, time.perf_counter() - wall
            print(
                f"{kind}, {name}: {1000 * cpu / trials:.1f} ms of processor time a trial, {1000 * wall / trials:.1f} ms in all", flush=True
            )


if __name__ == "__main__":
    main()
