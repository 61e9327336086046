"""Does handing weights on help a search? BOSS against searches of equal length, each of its halves, and a chain of self-distillation.

    python experiments/boss.py

Digits: 300 training images of which a fifth has a wrong label, 400 clean ones score the trials, 897 judge the winners; whole studies, a
seed each. The same with few trials over whole ranges, where the pool is poor. Every study is kept and gone on with under --runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from record import Numbers, side, write
from torch import Tensor, nn

from stillroom.engine import Lab, LabOptions, Training
from stillroom.engine.loading import sample_order
from stillroom.methods.boss.search import Found, Search, run_search
from stillroom.methods.boss.space import CIFAR, SMALL
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


def accuracy(found: Found, data: ImageData) -> float:
    """Of the best trial's network on the validation set, which took no part in the search; %."""
    network = TASK.build(NETWORK, data, TASK.networks, trust_pickle=False, argument="student").network.eval()
    found.weights.load(found.best.told["weights"], network)
    with torch.no_grad():
        right = [(network(batch.images).argmax(1) == batch.labels).float() for batch in data.eval_loader()]
    return 100 * float(torch.cat(right).mean())


def study(seed: int, arms: Sequence[str], search: Search, out: Path) -> dict[str, dict[str, float]]:
    """Every arm of one whole study."""
    held, data = parts(seed, 300, 400, 0.2)
    held = held.in_batches_of(32)  # where it is not searched
    lab = Lab(LabOptions(out=out / f"study{seed}", accelerator="cpu", checkpoint_seconds=1e9), seed)
    lab.begin()
    numbers: dict[str, dict[str, float]] = {}
    for arm in ("alone", *arms):
        found = run_search(arm, search, lab, held, PLAN, NETWORK)
        scores = [trial.score for trial in found.trials if trial.score is not None]
        late = [trial.score for trial in found.trials[search.warmup_trials :] if trial.score is not None]
        numbers[arm] = {"test accuracy, %": accuracy(found, data), "best score, %": max(scores), "seconds": found.seconds}
        numbers[arm] |= {"images trained on": found.noted("images"), "images asked of a teacher": found.noted("teacher_images")}
        if late:
            numbers[arm]["mean score after the warm-up, %"] = fmean(late)
            numbers[arm]["failed trials"] = sum(trial.state == "failed" for trial in found.trials)
    return numbers


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
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/boss"), help="where the studies are kept")
    parser.add_argument("--out", type=Path, default=Path("results/boss.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    usual = Search(SMALL, trials=40, warmup_trials=12, pool=4, startup=4)
    short = replace(usual, space=CIFAR, trials=24, warmup_trials=8)
    found: dict[str, dict[str, dict[int, float]]] = {}
    seeds = arguments.seeds
    for group, search in {"digits": usual, "digits, short": short}.items():
        for seed in seeds:
            for arm, numbers in study(seed, ARMS[group], search, arguments.runs / group.replace(", ", "-")).items():
                for metric, value in numbers.items():
                    found.setdefault(f"{group}: {arm}", {}).setdefault(metric, {})[seed] = value
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
