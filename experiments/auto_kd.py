"""Does a tree search find better distillers than random search, and than those that people made? And does a short training tell?

    python experiments/auto_kd.py

Drawn pictures of 60 classes, of which the teacher has seen ten times as many. Per seed: two searches of equally many candidates, the winner
of each and hand-made points of the same space trained whole. One seed: how the scores of random candidates rank them, beside their whole
trainings; and what each acceleration saves. All is kept and gone on with
under --runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from record import Numbers, side, write
from scipy.stats import kendalltau

from stillroom.engine import Experiment, Lab, LabOptions, Trained, Training
from stillroom.methods.auto_kd.distiller import make_searched
from stillroom.methods.auto_kd.reward import reward_of
from stillroom.methods.auto_kd.search import Found, Ground, Proxy, Search, distiller_of, prepare, run_search
from stillroom.methods.auto_kd.space import SMALL
from stillroom.tasks.classification import TASK, ImageData

DATA = "shapes,train=20,teacher=200"
PLAN = Training(epochs=30, lr=0.4, schedule="onecycle")
SHORT = Training(epochs=6, lr=0.1, milestones=(10 / 24, 20 / 24))
HAND = {"SP": "sample>gl2*3000", "CWD": "channel>kl4*3"}
TRIALS, RANKED = 16, 8
SHARE = 0.5  # of the training pictures, that candidates see
TOP1 = "top-1, %"


class Bench:
    """The arms of one seed."""

    def __init__(self, seed: int, out: Path) -> None:
        self.data = ImageData(DATA, augment="none")
        options = LabOptions(out=out, seeds=3, accelerator="cpu", checkpoint_seconds=1e9)
        self.lab = Lab(options, seed, {}, quiet=True)
        networks: Any = replace(TASK.networks, student="stillroom/convnet12", teacher_epochs=6, teacher_lr=0.2)
        self.experiment = Experiment(self.lab, self.data, PLAN, networks)
        self.taught = self.experiment.teacher()

    def whole(self, name: str, distiller: str) -> float:
        """Top-1 after a whole training, %."""

        def made(student: Any, teacher: Any) -> Any:
            return make_searched(student, [teacher], self.data, distiller)

        return top1(self.experiment.distilled(name, made))

    def ground(self, search: Search) -> Ground:
        """What searches stand on."""
        return prepare(self.lab, self.data, search, self.experiment.networks.student, [self.taught], None, None, "equal")


def top1(trained: Trained) -> float:
    return float(trained.result.metrics["top1"])


def searched(bench: Bench) -> dict[str, dict[str, float]]:
    """Both searches, their winners, and what they are compared with."""
    search = Search(SMALL, TRIALS, Proxy(SHORT, share=SHARE))
    ground = bench.ground(search)
    numbers: dict[str, dict[str, float]] = {
        "teacher": {TOP1: top1(bench.taught)},
        "alone": {TOP1: top1(bench.experiment.alone())},
        **{name: {TOP1: bench.whole(name, distiller)} for name, distiller in HAND.items()},
    }
    for way in ("random", "auto-kd"):
        found = run_search(way, search, bench.lab, ground)
        print(way, found.distiller, found.finals, flush=True)
        numbers[way] = {TOP1: bench.whole(f"{way}-{found.best.number}", found.distiller), **told(found, ground)}
    return numbers


def told(found: Found, ground: Ground) -> dict[str, float]:
    """What a search's trials say."""
    scores = [trial.score for trial in found.trials if trial.state == "complete" and trial.score is not None]
    rewards = [reward_of(float("nan") if trial.score is None else trial.score, ground.baseline) for trial in found.trials]
    return {
        "best score": min(scores),
        "mean reward of the second half": fmean(rewards[len(rewards) // 2 :]),
        "candidates": len(found.trials),
        "candidates given up": sum(trial.state == "pruned" for trial in found.trials),
        "seconds": found.seconds,
        "images trained on": found.noted("images"),
        "images asked of a teacher": ground.asked + found.noted("teacher_images"),
    }


def rank_correlation(bench: Bench) -> dict[str, dict[str, float]]:
    """Kendall's tau between the scores of random candidates, sparse and dense, and their whole trainings."""
    search = Search(SMALL, RANKED, Proxy(SHORT, share=SHARE, pruner="none"), finalists=1, study="ranked")
    ground = bench.ground(search)
    found = run_search("random", search, bench.lab, ground)
    distillers = [distiller_of(trial) for trial in found.trials if trial.state == "complete"]
    scores = [trial.score for trial in found.trials if trial.state == "complete"]
    whole = [bench.whole(f"ranked-{i}", distiller) for i, distiller in enumerate(distillers)]
    print(list(zip(distillers, scores, whole, strict=True)), flush=True)
    accuracy = [trial.told["top1"] for trial in found.trials if trial.state == "complete"]
    tau = float(kendalltau(-np.array(scores, float), whole).statistic)
    return {
        "proxy score and whole training": {"Kendall's tau": tau, "candidates": len(whole)},
        "proxy top-1 and whole training": {"Kendall's tau": float(kendalltau(accuracy, whole).statistic), "candidates": len(whole)},
    }


def costs(bench: Bench) -> dict[str, dict[str, float]]:
    """Of one candidate, with each acceleration on and off."""
    on = Proxy(SHORT, share=SHARE)
    cases = {
        "all on": on,
        "all images": replace(on, share=1.0),
        "online teacher": replace(on, offline=False),
        "dense": replace(on, density=1.0),
        "whole length": replace(on, plan=replace(SHORT, epochs=PLAN.epochs)),
        "all off": Proxy(replace(SHORT, epochs=PLAN.epochs), share=1.0, offline=False, density=1.0, pruner="none"),
    }
    numbers = {}
    for name, proxy in cases.items():
        ground = bench.ground(Search(SMALL, 1, proxy))
        training = ground.training
        start = time.process_time()
        _, parameters = training.train("cost", "channel>kl4*1")
        seconds = time.process_time() - start
        images = proxy.plan.epochs * len(training.data.train_loader(seed=0)) * training.data.batch_size
        numbers[name] = {"seconds of processor time": seconds, "parameters trained": parameters, "images trained on": images}
        numbers[name]["images asked of a teacher"] = training.asked * images
        numbers[name]["images asked of a teacher before"] = ground.asked
    return numbers


def verdict(found: dict[str, Numbers]) -> str:
    """What the numbers say, in words made from the numbers alone."""
    lines = []
    pairs = [("auto-kd", "random"), ("auto-kd", "alone"), *(("auto-kd", name) for name in HAND)]
    for arm, over in pairs:
        for metric, unit in ((TOP1, " points"), ("best score", ""), ("mean reward of the second half", "")):
            mine, other = found[f"shapes: {arm}"], found[f"shapes: {over}"]
            if metric not in mine or metric not in other:
                continue
            word, change, spread = side(mine[metric], other[metric], "equal within noise to")
            digits = 1 if metric == TOP1 else 3
            name = metric.partition(",")[0]
            lines.append(f"{name} of {arm} is {word} that of {over} ({change:+.{digits}f} +- {spread:.{digits}f}{unit})")
    for pair in ("proxy score and whole training", "proxy top-1 and whole training"):
        numbers = found.get(f"rank correlation: {pair}", {})
        for seed, tau in numbers.get("Kendall's tau", {}).items():
            lines.append(f"Kendall's tau of {pair} is {tau:.2f} over {numbers['candidates'][seed]:.0f} candidates (one seed)")
    return f"{'; '.join(lines)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/auto-kd"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path("results/auto_kd.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds: Sequence[int] = arguments.seeds
    found: dict[str, dict[str, dict[int, float]]] = {}

    def take(group: str, seed: int, arms: dict[str, dict[str, float]]) -> None:
        for arm, numbers in arms.items():
            for metric, value in numbers.items():
                found.setdefault(f"{group}: {arm}", {}).setdefault(metric, {})[seed] = value

    setting = {
        "data": "1200 drawn pictures of 60 classes to train on (20 of each), 1200 to validate; the teacher has seen 12 000",
        "networks": "stillroom/convnet24 teaches stillroom/convnet12; whole trainings: 30 epochs, onecycle up to 0.4",
        "candidates": "6 epochs on two fifths of the training pictures, scored on a tenth; half of the weights, teacher asked once",
        "search": f"{TRIALS} distinct candidates of the 576 of the small space; median pruner; the best 3 trained once more, densely",
        "by hand": ", ".join(f"{name} {distiller}" for name, distiller in HAND.items()),
        "seeds": "one teacher; students, first weights of candidates and proposals of their own; ranks and costs of the first seed",
    }
    command = f"python experiments/auto_kd.py --seeds {' '.join(map(str, seeds))}"

    def keep() -> None:
        write(arguments.out, "auto-kd", command, list(seeds), found, verdict(found), setting)

    for seed in seeds:
        take("shapes", seed, searched(Bench(seed, arguments.runs)))
    keep()
    first = Bench(seeds[0], arguments.runs)
    take("rank correlation", seeds[0], rank_correlation(first))
    take("cost of a candidate", seeds[0], costs(first))
    keep()
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
