"""Does handing weights on help a search? BOSS against searches of equal length, each of its halves, and a chain of self-distillation.

    python experiments/boss.py
    python experiments/boss.py --xrays pneumoniamnist.zip --cifar10 cifar10.zip --human cifar10n_train.csv --few-labels

Digits: 300 training images of which a fifth has a wrong label, 400 clean ones score the trials, 897 judge the winners; whole studies, a
seed each. The same with few trials over whole ranges, where the pool is poor. Every study is kept and gone on with under --runs.
With options, the paper's other settings instead, in small: chest X-rays, CIFAR-10 with the labels that people gave it, and digits of which
100 have a label.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from record import Numbers, side, write
from torch import Tensor, nn

from stillroom.engine import Lab, LabOptions, Training
from stillroom.engine.loading import sample_order
from stillroom.methods.boss.search import Found, Search, run_search
from stillroom.methods.boss.space import CIFAR, MEDICAL, SEMI, SMALL
from stillroom.tasks.classification import TASK, ImageData
from stillroom.tasks.classification.subsets import noisy_labels

PLAN = Training(epochs=10, lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="cosine", step_per="epoch")
NETWORK = "boss.py:perceptron"
ARMS = {"digits": ["random", "bo", "sd", "warm-start", "teacher", "boss"], "digits, short": ["bo", "boss"]}
NOISE = 0.05  # standard deviation of what training adds to pixels in [0, 1]


class Perceptron(nn.Module):
    """Grey images of 8 x 8 pixels -> logits: two hidden layers of 128; while it is trained, the pixels are noisy."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        widths = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, num_classes)]
        self.layers = nn.Sequential(nn.Flatten(), *widths)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, 8, 8] -> [B, num_classes]."""
        pixels = images.mean(1)
        return self.layers(pixels + NOISE * DEVIATION * torch.randn_like(pixels) if self.training else pixels)


DEVIATION = 1 / 0.37  # of a pixel, after the images' normalisation


def perceptron(num_classes: int = 10, **_: object) -> nn.Module:
    """What builds the network by its specification."""
    return Perceptron(num_classes)


def parts(seed: int, train: int, score: int, wrong: float) -> tuple[ImageData, ImageData]:
    """What the search sees, and what judges: other images and other wrong labels with every seed."""
    whole = ImageData("digits", augment="none", batch_size=448, subset_seed=seed)
    held = whole.holding_out(score / whole.train_size)
    kept = np.sort(sample_order(seed, 2, held.train_size)[:train])
    labels = noisy_labels(held.train_labels.numpy()[kept], held.num_classes, wrong, seed=seed)
    return held.restricted(train=kept, labels=labels), whole


@dataclass(frozen=True)
class Setting:
    """One of the paper's other settings, in small.

    Args:
        data: options of `ImageData`; of the training images a share is held out to score the trials.
        held_out: the share.
        search: how long and over what.
        plan: how a trial trains.
        network: all trials'.
        told: the setting in words.
    """

    data: dict[str, Any]
    held_out: float
    search: Search
    plan: Training
    network: str
    told: str


def settings(arguments: argparse.Namespace) -> dict[str, Setting]:
    """Those that were asked for."""
    found = {}
    length: dict[str, int] = {"trials": 24, "warmup_trials": 8, "pool": 4, "startup": 4}
    words = "24 trials, 8 of them a warm-up, pool of 4"
    if arguments.xrays:
        found["X-rays"] = Setting(
            {"data": f"imagefolder:{arguments.xrays}", "subset": 1000, "augment": "none", "batch_size": 32},
            0.5,
            Search(MEDICAL, **length),
            replace(PLAN, epochs=6, lr=0.01),
            "stillroom/convnet12",
            f"PneumoniaMNIST, 28 x 28: 500 images to train on, 500 score, 524 judge; {words}, 6 epochs; the ranges for medical images",
        )
    if arguments.cifar10:
        labels = f",labels={arguments.human}:worse"
        found["human labels"] = Setting(
            {"data": f"imagefolder:{arguments.cifar10}{labels}", "image_size": 16, "subset": 3000, "val_subset": 2000, "batch_size": 32},
            1 / 3,
            Search(SMALL, **length),
            replace(PLAN, epochs=6),
            "stillroom/convnet12",
            "CIFAR-10 at 16 x 16 with its worst human labels (40 % wrong): 2000 images to train on, 1000 labelled alike score, 2000 of the "
            f"clean test images judge; {words}, 6 epochs",
        )
    if arguments.few_labels:
        found["few labels"] = Setting(
            {"data": "digits,unlabelled=digits", "subset": 200, "batch_size": 128},
            0.5,
            Search(SEMI, **length),
            replace(PLAN, epochs=6, lr=0.03),
            "stillroom/convnet12",
            f"scikit-learn's digits: 100 with a label, all 900 without, 100 score, 897 judge; {words}, 6 epochs of all; FixMatch",
        )
    return found


def setting_study(seed: int, setting: Setting, out: Path) -> dict[str, dict[str, float]]:
    """One whole study of a setting: a training with default hyper-parameters, Bayesian optimisation, and BOSS."""
    data = ImageData(subset_seed=seed, **setting.data)
    return study(seed, data.holding_out(setting.held_out), data, ["bo", "boss"], setting.search, setting.plan, setting.network, out)


def accuracy(found: Found, data: ImageData, network: str) -> float:
    """Of the best trial's network on the validation set, which took no part in the search; %."""
    built = TASK.build(network, data, TASK.networks, trust_pickle=False, argument="student").network.eval()
    found.weights.load(found.best.told["weights"], built)
    with torch.no_grad():
        right = [(built(batch.images).argmax(1) == batch.labels).float() for batch in data.eval_loader()]
    return 100 * float(torch.cat(right).mean())


def study(
    seed: int, held: ImageData, data: ImageData, arms: Sequence[str], search: Search, plan: Training, network: str, out: Path
) -> dict[str, dict[str, float]]:
    """Every arm of one whole study: `held` is what it sees, `data` what judges."""
    lab = Lab(LabOptions(out=out / f"study{seed}", accelerator="cpu", checkpoint_seconds=1e9), seed)
    lab.begin()
    numbers: dict[str, dict[str, float]] = {}
    for arm in ("alone", *arms):
        found = run_search(arm, search, lab, held, plan, network)
        scores = [trial.score for trial in found.trials if trial.score is not None]
        late = [trial.score for trial in found.trials[search.warmup_trials :] if trial.score is not None]
        numbers[arm] = {"test accuracy, %": accuracy(found, data, network), "best score, %": max(scores), "seconds": found.seconds}
        numbers[arm] |= {"images trained on": found.noted("images"), "images asked of a teacher": found.noted("teacher_images")}
        if late:
            numbers[arm]["mean score after the warm-up, %"] = fmean(late)
            numbers[arm]["failed trials"] = sum(trial.state == "failed" for trial in found.trials)
    return numbers


def _add(found: dict[str, dict[str, dict[int, float]]], group: str, seed: int, numbers: dict[str, dict[str, float]]) -> None:
    for arm, metrics in numbers.items():
        for metric, value in metrics.items():
            found.setdefault(f"{group}: {arm}", {}).setdefault(metric, {})[seed] = value


def verdict(group: str, found: dict[str, Numbers], pairs: Sequence[tuple[str, str]]) -> str:
    """What the numbers say, in words made from the numbers alone."""
    lines = []
    for arm, over in pairs:
        for metric in ("test accuracy, %", "best score, %", "mean score after the warm-up, %"):
            mine, other = found[f"{group}: {arm}"], found[f"{group}: {over}"]
            if metric not in mine or metric not in other:
                continue
            both = {seed: value for seed, value in mine[metric].items() if seed in other[metric]}
            word, change, spread = side(both, other[metric], "equal within noise to")
            lines.append(f"{metric.partition(',')[0]} of {arm} is {word} that of {over} ({change:+.1f} +- {spread:.1f} points)")
    return f"{group}: {'; '.join(lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 2, 4, 6], help="a whole study each")
    parser.add_argument("--xrays", help="PneumoniaMNIST as image folders, a zip")
    parser.add_argument("--cifar10", help="CIFAR-10 as image folders, a zip; with --human")
    parser.add_argument("--human", help="the labels that people gave it, a table with the column worse")
    parser.add_argument("--few-labels", action="store_true")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/boss"), help="where the studies are kept")
    parser.add_argument("--out", type=Path, default=Path("results/boss.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    usual = Search(SMALL, trials=40, warmup_trials=12, pool=4, startup=4)
    short = replace(usual, space=CIFAR, trials=24, warmup_trials=8)
    found: dict[str, dict[str, dict[int, float]]] = {}
    seeds = arguments.seeds
    if chosen := settings(arguments):
        for group, one in chosen.items():
            for seed in seeds:
                numbers = setting_study(seed, one, arguments.runs / group.replace(" ", "-"))
                _add(found, group, seed, numbers)
        told = {group: one.told for group, one in chosen.items()}
        said = [verdict(group, found, [("bo", "alone"), ("boss", "alone"), ("boss", "bo")]) for group in chosen]
        options = " --xrays pneumoniamnist.zip" * bool(arguments.xrays) + " --few-labels" * arguments.few_labels
        options += " --cifar10 cifar10.zip --human cifar10n_train.csv" * bool(arguments.cifar10)
        command = f"python experiments/boss.py{options} --seeds {' '.join(map(str, seeds))}"
        write(arguments.out, "boss", command, seeds, found, ". ".join(said) + ".", told, only=True)
        print(arguments.out.read_text())
        return
    for group, search in {"digits": usual, "digits, short": short}.items():
        for seed in seeds:
            held, data = parts(seed, 300, 400, 0.2)
            held = held.in_batches_of(32)  # where it is not searched
            _add(found, group, seed, study(seed, held, data, ARMS[group], search, PLAN, NETWORK, arguments.runs / group.replace(", ", "-")))
    pairs = [("bo", "alone"), ("boss", "bo"), ("boss", "warm-start"), ("boss", "teacher"), ("boss", "sd"), ("bo", "random")]
    said = [verdict("digits", found, pairs), verdict("digits, short", found, [("boss", "bo")])]
    setting = {
        "network": "64-128-128-10, noise of 0.05 on the pixels; 10 epochs a trial, cosine",
        "data": "scikit-learn's digits: 300 to train on, 20 % of their labels wrong; 400 score the trials, 897 judge the winners",
        "digits": "40 trials, 12 of them a warm-up, pool of 4; lr 0.01 to 0.5, weight decay 1e-5 to 1e-2, m 0.03 to 1, batch 16 to 64",
        "digits, short": "24 trials, 8 of them a warm-up, pool of 4; the ranges of CIFAR: lr 1e-3 to 1, m 1e-3 to 1, batch 64 to 256",
        "sampler": "parzen, 4 random trials in each study",
        "seeds": "a whole study each, with images, wrong labels and first weights of its own",
    }
    write(
        arguments.out,
        "boss",
        f"python experiments/boss.py --seeds {' '.join(map(str, seeds))}",
        seeds,
        found,
        ". ".join(said) + ".",
        setting,
    )
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
