"""MDCS's small-scale experiment: what the prior shift, the consistency term and its sampling each do on a long tail.

    python experiments/mdcs.py --cifar10 cifar10.zip                  # some 15 minutes on one core

CIFAR-10 at 16 x 16 pixels with 1 500 to 15 training images a class, 4 000 balanced test images, three experts of four layers. Arms, with
the same seeds, initial weights, two views and number of steps: CE (exponents 0, no consistency); LA (exponents 1: balanced softmax); DL
(-0.5, 1, 2.5); DL+CS with confident instances (MDCS), and with all instances; CE+CS. Measured after the last step on the test images:
accuracy, also within the three largest and the three smallest classes; each expert's; how far the experts are apart; how far the answers
to the weak and the strong view of a test image are apart. Over the seeds: the error of the majority, and how often a run differs from it.
Runs that were killed go on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from record import Numbers, is_clear, paired, write
from torch import Tensor, nn
from torch.nn.functional import kl_div

from stillroom.engine import Experiment, Lab, LabOptions, Networks, Training
from stillroom.engine.loading import sample_seeds
from stillroom.engine.run.recorder import evaluating
from stillroom.methods.mdcs import LongTailedImages, build, two_views
from stillroom.methods.mdcs.measures import bias_and_variance, expert_divergence
from stillroom.tasks.classification import Batch

SHIFTS = (-0.5, 1.0, 2.5)
ARMS: dict[str, dict[str, Any]] = {
    "CE": {"lambdas": (0.0, 0.0, 0.0), "consistency_weight": 0.0},
    "LA": {"lambdas": (1.0, 1.0, 1.0), "consistency_weight": 0.0},
    "DL": {"lambdas": SHIFTS, "consistency_weight": 0.0},
    "MDCS": {"lambdas": SHIFTS, "consistency_weight": 0.6},
    "MDCS, all instances": {"lambdas": SHIFTS, "consistency_weight": 0.6, "confident_only": False},
    "CE+CS": {"lambdas": (0.0, 0.0, 0.0), "consistency_weight": 0.6},
}
CLASSES = {"": slice(None), ", 3 largest classes": slice(0, 3), ", 3 smallest classes": slice(7, 10)}
ACCURACY, SMALLEST, APART = "accuracy, %", "accuracy, 3 smallest classes, %", "weak to strong view, nats"


def in_two_views(data: LongTailedImages) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """The test batches, and the weak and the strong view of their images, the same for every network."""
    mean_C, std_C = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
    views = two_views("small", data.image_size, data.mean, data.std)
    for batch in data.eval_loader():
        pixels = ((batch.images * std_C + mean_C) * 255).round().to(torch.uint8)
        weak, strong = (view.batch(pixels, sample_seeds(number, 0, batch.ids.numpy())) for number, view in enumerate(views))
        yield batch, weak, strong


def measure(network: nn.Module, data: LongTailedImages) -> tuple[dict[str, float], np.ndarray]:
    """What the arms are compared by, and the predicted classes."""
    labels, answers, divergence, apart = [], [], [], []
    with evaluating(network):
        for batch, weak, strong in in_two_views(data):
            logits_BEC = network.experts(batch.images)
            labels.append(batch.labels)
            answers.append(torch.cat([logits_BEC.argmax(-1), logits_BEC.mean(1).argmax(-1, keepdim=True)], 1))
            divergence.append(expert_divergence(logits_BEC))
            log_p, log_q = network(weak).log_softmax(-1), network(strong).log_softmax(-1)
            apart.append(kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1))
    answers_NA, labels_N = torch.cat(answers), torch.cat(labels)
    right_CA = torch.stack([(answers_NA[labels_N == c] == c).double().mean(0) for c in range(data.num_classes)])
    found = {}
    for place, which in enumerate(("expert 1 ", "expert 2 ", "expert 3 ", "")):
        found |= {f"{which}accuracy{name}, %": 100 * float(right_CA[classes, place].mean()) for name, classes in CLASSES.items()}
    found |= {"divergence of the experts, nats": float(torch.cat(divergence).mean()), APART: float(torch.cat(apart).mean())}
    return found, answers_NA[:, -1].numpy()


def experiment(data: LongTailedImages, plan: Training, seeds: list[int], out: Path) -> tuple[dict[str, Numbers], dict[str, float]]:
    """Every arm with every seed; and the error of each arm's majority over the seeds, in %."""
    options = LabOptions(out=out, seeds=len(seeds), accelerator="cpu")
    found: dict[str, dict[str, dict[int, float]]] = {arm: {} for arm in ARMS}
    predicted: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        stages = Experiment(Lab(options, seed), data, plan, Networks(student="stillroom/convnet_experts"))
        for arm, numbers in ARMS.items():
            trained = stages.trained(
                arm.replace(" ", "").replace(",", "-"),
                lambda fresh, numbers=numbers: build(fresh, None, data, ramp_epochs=0.1 * plan.epochs, view_style="small", **numbers),
            )
            measured, answers = measure(trained.network, data)
            for metric, value in {**measured, "seconds": trained.result.seconds}.items():
                found[arm].setdefault(metric, {})[seed] = value
            predicted[arm].append(answers)
    majority = {}
    for arm, answers in predicted.items():
        majority[arm], differs = bias_and_variance(np.stack(answers), data.val_labels.numpy())
        found[arm]["differs from the majority of seeds, %"] = dict(zip(seeds, differs.tolist(), strict=True))
    return found, majority


def verdict(found: dict[str, Numbers], majority: dict[str, float]) -> str:
    """What the numbers say about the claims, in words made from the numbers alone."""

    def differs(arm: str, over: str, metric: str = ACCURACY) -> str:
        change, spread = paired(found[arm][metric], found[over][metric])
        clear = is_clear(change, spread, len(found[arm][metric]))
        word = ("lower" if change < 0 else "higher") if clear else "equal within noise"
        return f"{word} ({change:+.2f} +- {spread:.2f})"

    def average(arm: str, metric: str) -> float:
        return mean(found[arm][metric].values())

    def by_expert(classes: str) -> str:
        return ", ".join(f"{average('DL', f'expert {e} accuracy, {classes}, %'):.1f}" for e in (1, 2, 3))

    best = max(average("DL", f"expert {e} {ACCURACY}") for e in (1, 2, 3))
    lines = [
        f"prior shift: DL against CE {differs('DL', 'CE')} points, in the smallest classes {differs('DL', 'CE', SMALLEST)}; "
        f"DL against LA {differs('DL', 'LA')}",
        f"DL's experts 1, 2, 3 have {by_expert('3 largest classes')} % in the largest and {by_expert('3 smallest classes')} % in the "
        f"smallest classes; together {average('DL', ACCURACY):.1f} %, the best of them alone {best:.1f} %",
        f"consistency: MDCS against DL {differs('MDCS', 'DL')} points, weak to strong view {differs('MDCS', 'DL', APART)} nats; "
        f"without DL, CE+CS against CE {differs('CE+CS', 'CE')} points",
        f"confident instances: MDCS against all instances {differs('MDCS', 'MDCS, all instances')} points, in the smallest classes "
        f"{differs('MDCS', 'MDCS, all instances', SMALLEST)}",
        "a run differs from its arm's majority on "
        + ", ".join(f"{average(arm, 'differs from the majority of seeds, %'):.1f} % ({arm})" for arm in ("CE", "DL", "MDCS"))
        + "; the majority's error is "
        + ", ".join(f"{majority[arm]:.1f} % ({arm})" for arm in ("CE", "DL", "MDCS")),
    ]
    return "; ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", required=True, help="CIFAR-10 as image folders, in a folder or a zip")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/mdcs"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/mdcs.json"))
    parser.add_argument(
        "--note", action="append", default=[], help="what a reader of the numbers should know, e.g. that the machine was shared"
    )
    arguments = parser.parse_args()
    seeds = list(range(arguments.seeds))
    plan = Training(epochs=arguments.epochs, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, schedule="cosine", step_per="epoch")
    spec = f"imagefolder:{arguments.cifar10},imbalance=exp:100,largest=1500"
    data = LongTailedImages(spec, batch_size=64, image_size=16, val_subset=4000)
    found, majority = experiment(data, plan, seeds, arguments.runs)
    setting = {
        "data": "CIFAR-10, resized to 16 x 16, long-tailed; 4 000 balanced test images",
        "training images of each class": data.class_counts.tolist(),
        "network": "stillroom/convnet_experts",
        "steps": plan.epochs * (data.train_size // data.batch_size),
        "majority's error, %": majority,
    }
    command = "python experiments/mdcs.py --cifar10 cifar10.zip" + (f" --seeds {len(seeds)}" if len(seeds) != 5 else "")
    write(arguments.out, "mdcs", command, seeds, found, verdict(found, majority) + ".", setting, notes=arguments.note)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
