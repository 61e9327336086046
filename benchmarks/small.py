"""What the Lab costs where a step costs little: the default job of `stillroom run kd` beside a plain loop, by processor time.

Both train a teacher, the student alone and the student distilled on scikit-learn's digits, from the same loaders, with the same
networks, losses, optimiser and rates, and evaluate after every epoch. The loop counts right answers and keeps nothing. The Lab also scores
likelihood, calibration and five best answers, watches for numbers that are not finite, seeds every step, and writes checkpoints, best
weights, TensorBoard's events and its record, and measures each network at the end. They take turns, whole runs at a time.

    python benchmarks/small.py [--epochs 100] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import Turns, keep, setting, show, verdict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from stillroom.engine import Lab, LabOptions, Teacher
from stillroom.methods import kd
from stillroom.tasks.classification import Batch, ImageData
from stillroom.tasks.images.networks import NETWORKS

LOOP, LAB = "plain loop", "stillroom run kd"
LIMIT = 1.25


def right(network: nn.Module, data: ImageData) -> float:
    """The share of right answers."""
    network.eval()
    with torch.no_grad():
        found = sum(int((network(batch.images).argmax(1) == batch.labels).sum()) for batch in data.eval_loader())
    network.train()
    return found / len(data.val_labels)


def train(network: nn.Module, data: ImageData, epochs: int, loss: Callable[[Tensor, Batch], Tensor]) -> float:
    """Plain PyTorch; answers with the last epoch's accuracy."""
    plan = kd.DIGITS
    optimizer = torch.optim.SGD(network.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(epochs * share) for share in plan.milestones], plan.decay)
    loader, accuracy = data.train_loader(seed=0), 0.0
    network.train()
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss(network(batch.images), batch).backward()
            optimizer.step()
        schedule.step()
        accuracy = right(network, data)
    return accuracy


def loop(data: ImageData, epochs: int) -> None:
    """The three trainings by hand, with the teacher prepared by Stillroom."""
    torch.manual_seed(0)
    teacher, alone, distilled = (NETWORKS[name](num_classes=10) for name in ("convnet24", "convnet4", "convnet4"))
    for network in (teacher, alone):
        train(network, data, epochs, lambda logits, batch: cross_entropy(logits, batch.labels))
    frozen = Teacher(teacher)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        wanted = log_softmax(frozen(batch) / 4, 1)
        soft = 16 * kl_div(log_softmax(logits / 4, 1), wanted, log_target=True, reduction="batchmean")
        return 0.1 * cross_entropy(logits, batch.labels) + 0.9 * soft

    train(distilled, data, epochs, loss)


def run(data: ImageData, epochs: int) -> None:
    """The recipe in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        kd.recipe(Lab(LabOptions(out=Path(folder), accelerator="cpu")), data, replace(kd.DIGITS, epochs=epochs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, turns = ImageData("digits"), Turns()
    contenders: dict[str, Callable[[ImageData, int], Any]] = {LOOP: loop, LAB: run}
    for contender in contenders.values():
        contender(data, 1)  # first calls, and what is imported late
    for number in range(options.rounds):
        for name in sorted(contenders, reverse=bool(number % 2)):
            started = time.process_time()
            contenders[name](data, options.epochs)
            turns.note(name, time.process_time() - started)
    about = setting(options.note)
    lines = [
        {"benchmark": "small", "what": name, "epochs": options.epochs, "epoch_s": turns.median(name) / options.epochs, "target": LIMIT,
         "ratio": turns.ratio(name, LOOP), "spread": turns.spread(name, LOOP), "rounds": turns.rounds}
        for name in contenders
    ]  # fmt: skip
    show(
        f"KD on digits, {options.epochs} epochs of three trainings, processor time, {turns.rounds} rounds",
        ["who", "an epoch of all three, s", "to the loop", "verdict"],
        [
            [line["what"], f"{line['epoch_s']:.3f}", f"{line['ratio']:.2f} [{line['spread'][0]:.2f}, {line['spread'][1]:.2f}]",
             "" if line["what"] == LOOP else verdict(line["ratio"], LIMIT, at_most=True)]
            for line in lines
        ],
        about,
    )  # fmt: skip
    keep("small", lines, about)


if __name__ == "__main__":
    main()
