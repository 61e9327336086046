"""WAD's small-scale experiment on scikit-learn's digits: classes 0 .. 4 are to be learned, 5 .. 9 lie among the unlabelled.

    python experiments/wad.py                                         # some 25 minutes on one core

Every seed has its own split, teacher and initial weights. Arms with the same number of steps and the same first weights of the student:
labels only; classical self-training (each round on the student's own pseudo-labels, w = 1); the teacher's pseudo-labels with w = 1; WAD's
weights without promotion; WAD. Besides the accuracy on the target classes' test images: how well the weight tells target from unknown
images (AUROC), how often pseudo-labels of target images are right, and the share of unknown images among the promoted. True labels of
unlabelled images are used to measure these, and nowhere else. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from record import Numbers, side, write
from sklearn.metrics import roc_auc_score
from torch import nn

from stillroom.engine import Experiment, Lab, LabOptions, Networks, Trained, Training
from stillroom.methods.wad import WAD
from stillroom.methods.wad.pool import Pool, RoundData, benchmark
from stillroom.methods.wad.recipe import ROUND, make_encoder, supervised_rounds, teacher_stage
from stillroom.methods.wad.rounds import RoundLog, Rounds, answers, train_in_rounds
from stillroom.methods.wad.views import ScanViews
from stillroom.tasks.classification import ImageData

STUDENT = TEACHER = "stillroom/convnet24"
ACCURACY = "test accuracy, %"


def self_training(lab: Lab, pool: Pool, student: nn.Module, plan: Training, how: Rounds) -> Trained:
    """Rounds in which the student is its own teacher, of hard pseudo-labels; the first has none."""
    labels_N = torch.zeros(pool.data.train_size, dtype=torch.int64)
    for number in range(1, how.rounds + 2):
        if number > 1:
            labels_N = answers(student, pool.data, lab.device).argmax(1)
        labels_N[pool.labelled] = pool.data.train_labels[pool.labelled]
        unlabelled = pool.unlabelled[:0] if number == 1 else pool.unlabelled
        data = RoundData(pool.data, pool.labelled, unlabelled, how.iterations, number)
        trained = lab.fit(WAD(student, labels_N.clone(), torch.ones(len(labels_N))), data, plan, name=f"self{number}")
        assert trained.network is not None
        student = trained.network
    return trained


def diagnosis(pool: Pool, logs: list[RoundLog]) -> dict[str, float]:
    """What the rounds did, against the truth."""
    assert pool.truth is not None
    found: dict[str, float] = {}
    for name, log in (("first", logs[0]), ("last", logs[-1])):
        truth = pool.truth[log.unlabelled.numpy()]
        target = truth >= 0
        found[f"AUROC of the weight, {name} round"] = float(roc_auc_score(target, log.weights.numpy()))
        found[f"pseudo-labels right on target images, {name} round, %"] = 100 * float((log.labels.numpy()[target] == truth[target]).mean())
    found["unknown among unlabelled, %"] = 100 * float((pool.truth[pool.unlabelled] < 0).mean())
    promoted = torch.cat([log.promoted for log in logs]).numpy()
    if len(promoted):
        found["promoted images"] = float(len(promoted))
        found["unknown among promoted, %"] = 100 * float((pool.truth[promoted] < 0).mean())
    return found


def experiment(labelled: int, seeds: list[int], teacher_epochs: int, how: Rounds, plan: Training, out: Path) -> dict[str, Numbers]:
    """Every arm with every seed."""
    data = ImageData("digits", batch_size=32)
    found: dict[str, dict[str, dict[int, float]]] = {}

    def note(arm: str, seed: int, numbers: dict[str, float]) -> None:
        for metric, value in numbers.items():
            found.setdefault(f"{labelled} labels: {arm}", {}).setdefault(metric, {})[seed] = value

    for seed in seeds:
        lab = Lab(LabOptions(out=out / f"labels{labelled}", accelerator="cpu"), seed)
        pool = benchmark(data, None, labelled, 0.6, even=True, seed=seed)

        def fresh(lab: Lab = lab, pool: Pool = pool) -> nn.Module:
            return Experiment(lab, pool.data, plan, Networks(student=STUDENT)).network(STUDENT, "student").network

        contrast = Training(epochs=teacher_epochs, lr=2e-3, optimizer="adam", weight_decay=1e-6, schedule="constant")
        encoder = make_encoder(lab, TEACHER, pool.data, 64, 64)
        taught = teacher_stage(lab, pool, encoder, ScanViews(), contrast, released=False)
        note("teacher, nearest labelled image", seed, {ACCURACY: taught.result.metrics["top1"], "seconds": taught.result.seconds})
        alone = supervised_rounds(lab, pool, fresh(), plan, how)
        note("labels only", seed, {ACCURACY: alone.result.metrics["top1"], "seconds": alone.result.seconds})
        own = self_training(lab, pool, fresh(), plan, how)
        note("self-training", seed, {ACCURACY: own.result.metrics["top1"]})
        variants = {
            "w = 1": ("hard", replace(how, weighted=False)),
            "weights, no promotion": ("still", replace(how, promote=0.0)),
            "WAD": ("wad", how),
        }
        for arm, (name, variant) in variants.items():
            trained, logs = train_in_rounds(lab, pool, encoder, ScanViews(), fresh(), plan, variant, name=name)
            note(arm, seed, {ACCURACY: trained.result.metrics["top1"], "seconds": trained.result.seconds, **diagnosis(pool, logs)})
    return found


def verdict(labelled: int, found: dict[str, Numbers]) -> str:
    """What the numbers say, in words made from the numbers alone."""
    lines = []
    pairs = (
        ("WAD", "labels only"),
        ("WAD", "self-training"),
        ("WAD", "w = 1"),
        ("WAD", "weights, no promotion"),
        ("weights, no promotion", "labels only"),
        ("weights, no promotion", "w = 1"),
    )
    for arm, over in pairs:
        numbers = found[f"{labelled} labels: {arm}"][ACCURACY]
        word, change, spread = side(numbers, found[f"{labelled} labels: {over}"][ACCURACY], "equal within noise to")
        lines.append(f"{arm} is {word} {over} ({change:+.2f} +- {spread:.2f} points)")
    return f"{labelled} labels: " + "; ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="with one label for each class")
    parser.add_argument("--more_seeds", type=int, default=5, help="with four labels for each class")
    parser.add_argument("--teacher_epochs", type=int, default=40, help="of 28 steps")
    parser.add_argument("--iterations", type=int, default=100, help="steps of each of the six rounds")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/wad"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/wad.json"))
    arguments = parser.parse_args()
    how, plan = Rounds(iterations=arguments.iterations), ROUND
    found: dict[str, Numbers] = {}
    said = []
    for labelled, count in ((5, arguments.seeds), (20, arguments.more_seeds)):
        if count:
            found |= experiment(labelled, list(range(count)), arguments.teacher_epochs, how, plan, arguments.runs)
            said.append(verdict(labelled, found))
    setting = {
        "data": "scikit-learn's digits, 8 x 8: 900 training images, of them 5 or 20 labelled (evenly), 450 test images of classes 0 .. 4",
        "student and teacher's trunk": STUDENT,
        "teacher": f"NT-Xent, {arguments.teacher_epochs} epochs of 28 steps of 32 images, Adam 2e-3",
        "student": f"6 rounds of {arguments.iterations} steps of 32 + 32 images, Adam 2e-3, renewed in each round (labels only: once)",
    }
    command = f"python experiments/wad.py --seeds {arguments.seeds} --more_seeds {arguments.more_seeds}"
    write(arguments.out, "wad", command, list(range(arguments.seeds)), found, ". ".join(said) + ".", setting)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
