"""FerKD's small-scale experiment: are stored labels, SelfMix and the adaptation of labels worth it, and what does storing them cost?

    python experiments/ferkd.py --cifar10 cifar10.zip                    # some 12 minutes on one core

CIFAR-10 at 16 x 16 pixels. A teacher is trained on 10 000 images and labels 32 crops of each of 2 000 of them. Students see stored crops
only, four of an image at a time, with the same seeds, initial weights, crops and number of steps in every arm. Thresholds and epsilon are
the specification's, not tuned on the test images. Groups of arms:

- adaptation: hard labels of the same crops, FKD, FKD with CutMix and MixUp over images, FKD with SelfMix, discarding only, calibrating
  only, FerKD, FerKD with SelfMix;
- a fair chance for the calibration: crops of 20 to 100 % of the area, fewer calibrated ones (to the 8 % quantile), epsilon 0.3, more steps;
- storage: FKD from labels with 1, 3, 5 and all classes;
- speed: the same crops and teacher, but the teacher in the loop, against the stored labels.

Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from record import paired, write

from stillroom.engine import Lab, LabOptions, Losses, Trained, Training
from stillroom.engine.cache.bank import LabelBank
from stillroom.methods.ferkd import Calibration, FerKD, adapted_bank
from stillroom.methods.ferkd.loss import soft_cross_entropy
from stillroom.tasks.classification import ImageData, Supervised
from stillroom.tasks.classification.bank import CropBatch
from stillroom.tasks.classification.crops import CropRule
from stillroom.tasks.classification.labelling import Labelling, label_images
from stillroom.tasks.classification.networks import ConvNet

Found = dict[str, dict[str, dict[int, float]]]
MAIN, FAIR, STORAGE, SPEED = "adaptation", "fair chance", "storage", "speed"
TEACHER = Training(epochs=16, lr=0.05, weight_decay=5e-4, schedule="cosine")  # 156 steps each
FAIR_CALIBRATION = Calibration((0.01, 0.08, 0.99), epsilon=0.3)


def network(width: int) -> ConvNet:
    return ConvNet(width, num_classes=10)


class InTheLoop(FerKD):
    """FKD with the teacher asked at every step: what storing its labels saves."""

    def losses(self, batch: CropBatch) -> Losses:
        """The same loss with fresh labels."""
        labels_RC = self.teacher(batch.images).softmax(-1)
        return Losses(task={}, distill={"soft_ce": soft_cross_entropy(self.student(batch.images), labels_RC)})


class Experiment:
    """All arms, measured into `found`."""

    def __init__(self, cifar10: str, out: Path, seeds: list[int]) -> None:
        self.seeds, self.out, self.found = seeds, out, {}
        shared = {"data": f"imagefolder:{cifar10}", "image_size": 16, "val_subset": 2000, "workers": 0}
        self.data = ImageData(**shared, batch_size=64, subset=2000, augment="none")
        teaching = ImageData(**shared, batch_size=64, subset=10_000, augment="imagenet")
        self.options = LabOptions(out=out, accelerator="cpu", teacher_precision="fp32")
        lab = Lab(self.options)
        with lab.shared():
            self.taught = lab.fit(Supervised(network(24)), teaching, TEACHER, name="teacher", model="convnet24")
        self.teacher = lab.teach(self.taught)

    def bank(self, name: str, **options: object) -> LabelBank:
        """The teacher's labels, stored in one way."""
        return label_images(self.out / name, self.teacher, self.data, Labelling(crops=32, **options), result=self.taught.result)

    def arm(self, group: str, name: str, bank: LabelBank, epochs: int, mix: str = "none", kind: type[FerKD] = FerKD) -> None:
        """One arm with every seed."""
        plan = Training(epochs=epochs, lr=0.05, weight_decay=5e-4, schedule="cosine")
        for seed in self.seeds:
            lab = Lab(self.options, seed)
            distiller = kind(network(8), bank, mix=mix)
            distiller.plan = plan
            if kind is InTheLoop:
                distiller.teacher = self.teacher
            stage = f"{group}-{name}".replace(" ", "_").replace("/", "-")
            trained: Trained = lab.fit(distiller, distiller.shown(self.data), plan, name=stage, model="convnet8")
            measured = {"test accuracy, %": trained.result.metrics["top1"], "seconds": trained.result.seconds}
            for metric, value in measured.items():
                self.found.setdefault(f"{group}: {name}", {}).setdefault(metric, {})[seed] = value
        print(
            group,
            name,
            {metric: [round(value, 2) for value in values.values()] for metric, values in self.found[f"{group}: {name}"].items()},
        )


def reading(bank: LabelBank) -> float:
    """Crops whose labels and boxes are read and made dense in a second, at random places, on one core; the best of five tries."""
    numbers = np.random.default_rng(0)
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(50):
            images, crops = numbers.integers(len(bank), size=1024), numbers.integers(bank.crops, size=1024)
            bank.format.dense(bank.soft(images, crops))
            bank.boxes(images, crops)
        rates.append(50 * 1024 / (time.perf_counter() - start))
    return max(rates)


def verdict(found: Found) -> str:
    """What the numbers say, in words made from the numbers alone."""

    def says(group: str, arm: str, over: str) -> str:
        change, spread = paired(found[f"{group}: {arm}"]["test accuracy, %"], found[f"{group}: {over}"]["test accuracy, %"])
        clear = abs(change) > 2 * spread / len(found[f"{group}: {arm}"]["test accuracy, %"]) ** 0.5
        word = ("below" if change < 0 else "above") if clear else "equal within noise to"
        return f"{arm} is {word} {over} ({change:+.2f} +- {spread:.2f} points)"

    pairs = [
        (MAIN, "FKD", "hard labels"),
        (MAIN, "FKD + SelfMix", "FKD + cross-image mixing"),
        (MAIN, "FKD + SelfMix", "FKD"),
        (MAIN, "discard only", "FKD"),
        (MAIN, "calibrate only", "FKD"),
        (MAIN, "FerKD", "FKD"),
        (MAIN, "FerKD + SelfMix", "FKD + SelfMix"),
    ]
    told = [says(*pair) for pair in pairs] + [f"with a fair chance {says(FAIR, 'FerKD', 'FKD')}"]
    stored, loop = (float(np.mean(list(found[f"{SPEED}: {arm}"]["seconds"].values()))) for arm in ("stored labels", "teacher in the loop"))
    told.append(f"training takes {stored / loop:.2f} of the time that it takes with the teacher in the loop ({stored:.1f} s, {loop:.1f} s)")
    return "; ".join(told) + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", required=True, help="CIFAR-10 as image folders, in a folder or a zip")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=16, help="31 steps each")
    parser.add_argument("--fair_epochs", type=int, default=48)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/ferkd"), help="where banks and trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/ferkd.json"))
    arguments = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(1)
    seeds = list(range(arguments.seeds))
    made = Experiment(arguments.cifar10, arguments.runs, seeds)
    bank = made.bank("bank")
    calibrations = {
        # Every label becomes the ground truth, but those that are it already.
        "hard labels": Calibration((0.0, 1.0, 1.0), absolute=True, epsilon=0.0, score="truth"),
        "discard only": Calibration((0.03, 0.03, 0.97)),
        "calibrate only": Calibration((0.0, 0.2, 1.0)),
        "FerKD": Calibration(),
    }
    banks = {name: adapted_bank(bank, calibration) for name, calibration in calibrations.items()}
    made.arm(MAIN, "hard labels", banks["hard labels"], arguments.epochs)
    made.arm(MAIN, "FKD", bank, arguments.epochs)
    made.arm(MAIN, "FKD + cross-image mixing", bank, arguments.epochs, "cross")
    made.arm(MAIN, "FKD + SelfMix", bank, arguments.epochs, "selfmix")
    for name in ("discard only", "calibrate only", "FerKD"):
        made.arm(MAIN, name, banks[name], arguments.epochs)
    made.arm(MAIN, "FerKD + SelfMix", banks["FerKD"], arguments.epochs, "selfmix")
    made.found[f"{MAIN}: teacher"] = {"test accuracy, %": {0: made.taught.result.metrics["top1"]}}
    for k in (1, 3, 5, 10):
        stored = made.bank(f"k{k}", label_type=f"marginal_smoothing_k{k}" if k > 1 else "smoothing")
        name = f"{k} class{'es' if k > 1 else ''}"
        made.arm(STORAGE, name, stored, arguments.epochs)
        size = sum(array.nbytes for label, array in stored.arrays.items() if label in ("classes", "values"))
        made.found[f"{STORAGE}: {name}"]["label bytes a crop"] = {0: size / (len(stored) * stored.crops)}
    made.arm(SPEED, "stored labels", bank, arguments.epochs)
    made.arm(SPEED, "teacher in the loop", bank, arguments.epochs, kind=InTheLoop)
    fair = made.bank("fair", rule=CropRule(area=(0.2, 1.0)))
    made.arm(FAIR, "FKD", fair, arguments.fair_epochs)
    made.arm(FAIR, "FerKD", adapted_bank(fair, FAIR_CALIBRATION), arguments.fair_epochs)
    setting = {
        "data": "CIFAR-10, 10 000 images for the teacher, 2 000 of them for the students, 2 000 test images, 16 x 16",
        "networks": "convnet of width 24 (37 714 parameters) -> width 8 (4 450 parameters)",
        "bank": "32 crops of each image, area 0.08 to 1 (fair chance: 0.2 to 1), marginal_smoothing_k5",
        "steps": {"each arm": arguments.epochs * 31, "fair chance": arguments.fair_epochs * 31, "teacher": TEACHER.epochs * 156},
        "adaptation": banks["FerKD"].about["adaptation"],
        "fair adaptation": adapted_bank(fair, FAIR_CALIBRATION).about["adaptation"],
        "reading, crops a second on one core": round(reading(bank)),
        "whole experiment, s": round(time.perf_counter() - started),
    }
    notes = [
        "The networks have four convolutions where the specification's have five. Seconds were measured on shared cores, with an "
        "evaluation after every epoch; the two arms of the group speed ran one after the other.",
    ]
    write(
        arguments.out,
        "ferkd",
        "python experiments/ferkd.py --cifar10 cifar10.zip",
        seeds,
        made.found,
        verdict(made.found),
        setting,
        notes=notes,
    )
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
