"""What was tried for the default job, on drawn pictures that it does not report (`shapes,seed=1`):  python experiments/choose_default.py

A plain loop with Stillroom's data, networks and losses, one seed each; every line of TRIES is a row of `results/default/tried.jsonl`:
top-1 of the student alone and distilled (KD), and the processor time of both. Wanted: a clear gain for little time, with a student alone
that is as good as it gets in that time. Rows that are there already are not run again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Training
from stillroom.engine.training import Progress
from stillroom.losses.logits import kd_loss
from stillroom.tasks.classification import ImageData, build_classifier

OUT = Path("results/default/tried.jsonl")
USUAL = {
    "data": "shapes,seed=1",
    "teacher_data": "shapes,seed=1",
    "teacher": 24,
    "teacher_epochs": 20,
    "teacher_lr": 0.2,
    "student": 6,
    "epochs": 20,
    "lr": 0.4,
    "schedule": "onecycle",
    "augment": "none",
    "batch": 64,
    "temperature": 4.0,
    "seed": 0,
    "teacher_seed": 0,
}
SLOW = {"teacher_lr": 0.05, "student": 4, "lr": 0.05, "schedule": "cosine", "augment": "digits"}  # these three by `stillroom run kd`
FEW = {"data": "shapes,train=20,seed=1", "teacher_data": "shapes,train=20,seed=1"}
SHAKEN = {"augment": "digits", "lr": 0.3, "seed": 100}
MORE = {**FEW, "teacher_data": "shapes,train=200,seed=1", "teacher_epochs": 6, "epochs": 30, "seed": 100, "teacher_seed": 1000}
TRIES: list[dict[str, Any]] = [
    {**SLOW, "teacher_epochs": 40, "schedule": "multistep"},
    {**SLOW, **FEW, "teacher": 16, "teacher_epochs": 60, "epochs": 40},
    {**SLOW, "teacher": 16, "teacher_epochs": 30, "epochs": 16},
    {**FEW, "teacher": 16, "teacher_epochs": 30, "student": 4, "epochs": 30, "lr": 0.2},
    {"teacher": 16, "student": 4, "lr": 0.2},
    {"teacher": 16, "lr": 0.2},
    {"teacher": 16},
    {"teacher": 16, "batch": 128},
    {},
    {"temperature": 2.0},
    {"temperature": 8.0},
    {**FEW, "teacher_epochs": 40, "epochs": 40},
    {"temperature": 16.0},
    {"epochs": 12, "temperature": 8.0},
    {"student": 4, "temperature": 8.0},
    {"temperature": 8.0, "seed": 1},
    {"temperature": 8.0, "seed": 2},
    {"temperature": 8.0, "teacher_seed": 2},  # by `stillroom run kd`
    {**SHAKEN, "teacher_seed": 1000},
    {**SHAKEN, "temperature": 8.0, "teacher_seed": 1000},
    {**SHAKEN, "teacher_seed": 1001},
    {**SHAKEN, "temperature": 8.0, "teacher_seed": 1001},
    {**MORE, "student": 12, "lr": 0.2},
    {**MORE, "student": 12, "lr": 0.2, "temperature": 8.0},
    {**MORE, "student": 12, "lr": 0.2, "augment": "digits"},
    {**MORE, "student": 12},
    {**MORE},
    {**MORE, "student": 12, "epochs": 60},
    {**MORE, "student": 12, "teacher_seed": 1001},
]


def network(width: int, seed: int) -> nn.Module:
    """A ConvNet with its initial weights of that seed."""
    torch.manual_seed(seed)
    return build_classifier(f"stillroom/convnet{width}", num_classes=60).network


def trained(
    net: nn.Module, data: ImageData, plan: Training, seed: int, teacher: nn.Module | None, temperature: float
) -> tuple[float, float]:
    """Trains on labels, or with KD; answers with top-1 in % on the validation pictures and processor time in s."""
    started, loader, step = time.process_time(), data.train_loader(seed=seed), 0
    optimizer = plan.build_optimizer([{"params": list(net.parameters())}])
    for epoch in range(plan.epochs):
        for batch in loader:
            progress = Progress(epoch + 1, plan.epochs, step, loader.whole)
            for group in optimizer.param_groups:
                group["lr"] = plan.rate(plan.lr, progress)
                group["momentum"] = plan.momentum_at(progress) or plan.momentum
            logits = net(batch.images)
            loss = cross_entropy(logits, batch.labels)
            if teacher is not None:
                with torch.no_grad():
                    answers = teacher(batch.images)
                loss = 0.1 * loss + 0.9 * kd_loss(logits, answers, temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    net.eval()
    with torch.no_grad():
        right = sum(int((net(batch.images).argmax(1) == batch.labels).sum()) for batch in data.eval_loader())
    return 100 * right / len(data.val_labels), time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in OUT.read_text().splitlines()] if OUT.exists() else []
    teachers: dict[tuple[Any, ...], tuple[nn.Module, float]] = {}
    for tried in ({**USUAL, **differs} for differs in TRIES):
        if any(row["tried"] == tried for row in rows):
            continue
        data = ImageData(tried["data"], batch_size=tried["batch"], augment=tried["augment"])
        plan = Training(epochs=tried["epochs"], lr=tried["lr"], schedule=tried["schedule"])
        taught = tuple(
            tried[name] for name in ("teacher_data", "teacher", "teacher_epochs", "teacher_lr", "schedule", "augment", "teacher_seed")
        )
        if taught not in teachers:
            seed, more = tried["teacher_seed"], "train=200" in tried["teacher_data"]  # the teacher of more pictures sees them as they are
            of_teacher = Training(epochs=tried["teacher_epochs"], lr=tried["teacher_lr"], schedule=tried["schedule"])
            shown = ImageData(tried["teacher_data"], augment="none" if more else tried["augment"])
            net = network(tried["teacher"], seed)
            teachers[taught] = net, trained(net, shown, of_teacher, seed, None, 1.0)[0]
        teacher, score = teachers[taught]
        (alone, alone_s), (distilled, distilled_s) = (
            trained(network(tried["student"], tried["seed"]), data, plan, tried["seed"], by, tried["temperature"]) for by in (None, teacher)
        )
        found = {"teacher": score, "alone": alone, "distilled": distilled}
        took = {"alone": alone_s, "distilled": distilled_s}
        rows.append({"tried": tried, **{k: round(v, 1) for k, v in found.items()}, "seconds": {k: round(v, 1) for k, v in took.items()}})
        OUT.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(rows[-1])


if __name__ == "__main__":
    main()
