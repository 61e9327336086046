"""FerKD's small-scale experiment: are stored labels, SelfMix and the adaptation of labels worth it, and what does storing them cost?

    python experiments/ferkd.py --cifar10 cifar10.zip                    # some ten minutes on one core
    python experiments/ferkd.py --cifar10 cifar10.zip --weights resnet56.safetensors   # instead: a teacher that somebody trained

CIFAR-10 at 16 x 16 pixels. A teacher is trained on random crops of 10 000 images and labels 32 crops of each of 2 000 of them. Students
see stored crops only, four of an image at a time, with the same seeds, initial weights, crops and number of steps in every arm. Thresholds
and epsilon are the specification's, not tuned on the test images. Groups of arms:

- adaptation: hard labels of the same crops, FKD, FKD with CutMix and MixUp over images, FKD with SelfMix, discarding only, calibrating
  only, FerKD, FerKD with SelfMix;
- speed: the same crops and teacher, but the teacher in the loop, against the stored labels;
- storage: FKD from labels with 1, 3 and all classes (the group above has 5);
- a fair chance for the calibration: crops of 20 to 100 % of the area, fewer calibrated ones (to the 8 % quantile), epsilon 0.3, more steps;
- with `--weights` instead: the same chance at 32 x 32 pixels with a ResNet-56 as the teacher.

Runs that were killed go on; what is measured is written after each group.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from cifar_resnet import NETWORK, STATISTICS
from record import side, write
from torch import Tensor, nn

from stillroom.engine import Experiment as Stages
from stillroom.engine import Lab, LabOptions, Losses, Networks, Teacher, Trained, Training
from stillroom.methods.ferkd import Calibration, FerKD, adapted_bank
from stillroom.methods.ferkd.bank.reader import LabelBank
from stillroom.methods.ferkd.crops import CropRule
from stillroom.methods.ferkd.labelling import Labelling, label_images
from stillroom.methods.ferkd.loss import soft_cross_entropy
from stillroom.methods.ferkd.replay import CropBatch
from stillroom.tasks.classification import ImageData
from stillroom.tasks.images.networks import ConvNet

Found = dict[str, dict[str, dict[int, float]]]
MAIN, SPEED, STORAGE, FAIR, TRAINED = "adaptation", "speed", "storage", "fair chance", "trained teacher"
TRUTH = Calibration((0.0, 1.0, 1.0), absolute=True, label_smoothing=0.0, score="truth")  # every label becomes the ground truth
CALIBRATIONS = {
    "hard labels": TRUTH,
    "discard only": Calibration((0.03, 0.03, 0.97)),
    "calibrate only": Calibration((0.0, 0.2, 1.0)),
    "FerKD": Calibration(),
}
FAIR_CALIBRATION = Calibration((0.01, 0.08, 0.99), label_smoothing=0.3)


def network(width: int) -> ConvNet:
    return ConvNet(width, num_classes=10)


class Undecided(nn.Module):
    """Labels crops that only their ground truth is wanted of."""

    def forward(self, images: Tensor) -> Tensor:
        """All classes alike."""
        return images.new_zeros(len(images), 10)


class InTheLoop(FerKD):
    """FKD with the teacher asked at every step: what storing its labels saves."""

    def losses(self, batch: CropBatch) -> Losses:
        """The same loss with fresh labels."""
        assert self.teacher is not None
        labels_RC = self.teacher(batch.images).softmax(-1)
        return Losses(task={}, distill={"soft_ce": soft_cross_entropy(self.student(batch.images), labels_RC)})


class Experiment:
    """All arms, measured into `found`. The teacher is trained first, or has weights."""

    def __init__(self, cifar10: str, out: Path, seeds: list[int], teacher_epochs: int, weights: str | None) -> None:
        self.seeds, self.out, self.found = seeds, out, {}
        self.options = LabOptions(out=out, accelerator="cpu", teacher_precision="fp32")
        lab = Lab(self.options)
        if weights:
            self.data = ImageData(f"imagefolder:{cifar10}", subset=2000, val_subset=2000, workers=0, augment="none", **STATISTICS)
            self.taught = Stages(lab, self.data, Training(), Networks(f"{NETWORK}:resnet56@{weights}", "stillroom/convnet6")).teacher()
            self.teacher = lab.teach(self.taught)
            return
        shared = {"data": f"imagefolder:{cifar10}", "image_size": 16, "val_subset": 2000, "workers": 0, "augment": "none"}
        self.data, teaching = (ImageData(**shared, subset=subset) for subset in (2000, 10_000))
        undecided = label_images(out / "truth", Teacher(Undecided(), precision="fp32"), teaching, Labelling(16, "smoothing"))
        truth = adapted_bank(undecided, TRUTH)
        plan = Training(epochs=teacher_epochs, lr=0.05, weight_decay=5e-4, schedule="cosine")
        with lab.shared():
            teacher = FerKD(network(24), truth, num_crops=1, mix="none")
            teacher.plan = plan
            self.taught = lab.fit(teacher, teacher.training_data(teaching), plan, name="teacher", model="convnet24")
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
            stage = f"{group}-{name}".replace(" ", "_")
            trained: Trained = lab.fit(distiller, distiller.training_data(self.data), plan, name=stage, model="convnet8")
            self.note(group, name, seed, trained)

    def note(self, group: str, name: str, seed: int, trained: Trained) -> None:
        """Takes a measurement down."""
        measured = {"test accuracy, %": trained.result.metrics["top1"], "seconds": trained.result.seconds}
        for metric, value in measured.items():
            self.found.setdefault(f"{group}: {name}", {}).setdefault(metric, {})[seed] = value


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
    told = []
    for group, arm, over in (
        (MAIN, "FKD", "hard labels"),
        (MAIN, "FKD + SelfMix", "FKD + cross-image mixing"),
        (MAIN, "FKD + SelfMix", "FKD"),
        (MAIN, "discard only", "FKD"),
        (MAIN, "calibrate only", "FKD"),
        (MAIN, "FerKD", "FKD"),
        (MAIN, "FerKD + SelfMix", "FKD + SelfMix"),
        (FAIR, "FerKD", "FKD"),
        (TRAINED, "FKD", "hard labels"),
        (TRAINED, "FKD + SelfMix", "FKD"),
        (TRAINED, "FerKD", "FKD"),
        (TRAINED, "FerKD + SelfMix", "FKD + SelfMix"),
    ):
        if f"{group}: {arm}" in found:
            ours = found[f"{group}: {arm}"]["test accuracy, %"]
            word, change, spread = side(ours, found[f"{group}: {over}"]["test accuracy, %"], "equal within noise to")
            told.append(f"{'with a fair chance ' * (group == FAIR)}{arm} is {word} {over} ({change:+.2f} +- {spread:.2f} points)")
    if f"{SPEED}: teacher in the loop" in found:
        stored, loop = (
            float(np.mean(list(found[f"{SPEED}: {arm}"]["seconds"].values()))) for arm in ("stored labels", "teacher in the loop")
        )
        told.append(f"training takes {stored / loop:.2f} of the time that it takes with the teacher in the loop")
    return "; ".join(told) + "."


def trained_teacher(made: Experiment, fair: LabelBank, adapted: LabelBank, epochs: int, out: Path) -> None:
    """The arms of a teacher with weights, beside what the file holds of the others."""
    made.found[f"{TRAINED}: teacher"] = {"test accuracy, %": {0: made.taught.result.metrics["top1"]}}
    banks = {"hard labels": adapted_bank(fair, TRUTH), "FKD": fair, "FerKD": adapted}
    for name, bank in banks.items():
        made.arm(TRAINED, name, bank, epochs)
    for name in ("FKD", "FerKD"):
        made.arm(TRAINED, f"{name} + SelfMix", banks[name], epochs, "selfmix")
    setting = {
        TRAINED: {
            "data": "CIFAR-10, 2 000 images to train on, 2 000 test images, 32 x 32",
            "networks": "ResNet-56 that somebody trained on CIFAR-10 -> ConvNet of width 8",
            "bank": "32 crops of each image, area 0.2 to 1, marginal_smoothing_k5",
            "steps": epochs * 31,
            "adaptation": adapted.about["adaptation"],
        }
    }
    command = "python experiments/ferkd.py --cifar10 cifar10.zip --weights resnet56.safetensors"
    command += f" --seeds {len(made.seeds)} --fair_epochs {epochs}"
    write(out, "ferkd", command, made.seeds, made.found, f"{TRAINED}: {verdict(made.found)}", setting, only=True)
    print(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", required=True, help="CIFAR-10 as image folders, in a folder or a zip")
    parser.add_argument("--weights", help="of a trained teacher, experiments/cifar_resnet.py:resnet56; measures with it alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher_epochs", type=int, default=16, help="156 steps each")
    parser.add_argument("--epochs", type=int, default=16, help="31 steps each")
    parser.add_argument("--fair_epochs", type=int, default=32)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/ferkd"), help="where banks and trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/ferkd.json"))
    arguments = parser.parse_args()
    started, seeds = time.perf_counter(), list(range(arguments.seeds))
    torch.set_num_threads(1)
    made = Experiment(arguments.cifar10, arguments.runs, seeds, arguments.teacher_epochs, arguments.weights)
    if arguments.weights:
        fair = made.bank("fair", rule=CropRule(area=(0.2, 1.0)))
        trained_teacher(made, fair, adapted_bank(fair, FAIR_CALIBRATION), arguments.fair_epochs, arguments.out)
        return
    bank = made.bank("bank")
    banks = {name: adapted_bank(bank, calibration) for name, calibration in CALIBRATIONS.items()}
    setting = {
        "data": "CIFAR-10, 10 000 images for the teacher, 2 000 of them for the students, 2 000 test images, 16 x 16",
        "networks": "ConvNet of width 24 (37 714 parameters) -> width 8",
        "bank": "32 crops of each image, area 0.08 to 1 (fair chance: 0.2 to 1), marginal_smoothing_k5",
        "steps": {"each arm": arguments.epochs * 31, "fair chance": arguments.fair_epochs * 31, "teacher": arguments.teacher_epochs * 156},
        "adaptation": banks["FerKD"].about["adaptation"],
        "reading, crops a second on one core": round(reading(bank)),
    }
    notes = [
        "The networks have four convolutions where the specification's have five. Seconds were measured on shared cores, with an "
        "evaluation after every epoch; the two arms of the group speed were trained one after the other.",
    ]

    def tell() -> None:
        setting["seconds so far"] = round(time.perf_counter() - started)
        command = "python experiments/ferkd.py --cifar10 cifar10.zip"
        write(arguments.out, "ferkd", command, seeds, made.found, verdict(made.found), setting, notes=notes)

    made.found[f"{MAIN}: teacher"] = {"test accuracy, %": {0: made.taught.result.metrics["top1"]}}
    made.arm(MAIN, "hard labels", banks["hard labels"], arguments.epochs)
    made.arm(MAIN, "FKD", bank, arguments.epochs)
    made.arm(MAIN, "FKD + cross-image mixing", bank, arguments.epochs, "cross")
    made.arm(MAIN, "FKD + SelfMix", bank, arguments.epochs, "selfmix")
    for name in ("discard only", "calibrate only", "FerKD"):
        made.arm(MAIN, name, banks[name], arguments.epochs)
    made.arm(MAIN, "FerKD + SelfMix", banks["FerKD"], arguments.epochs, "selfmix")
    tell()
    made.arm(SPEED, "stored labels", bank, arguments.epochs)
    made.arm(SPEED, "teacher in the loop", bank, arguments.epochs, kind=InTheLoop)
    tell()
    for name, label_type in (("1 class", "smoothing"), ("3 classes", "marginal_smoothing_k3"), ("all classes", "ori")):
        stored = made.bank(label_type, label_type=label_type)
        made.arm(STORAGE, name, stored, arguments.epochs)
        size = sum(array.nbytes for label, array in stored.arrays.items() if label in ("classes", "values"))
        made.found[f"{STORAGE}: {name}"]["label bytes a crop"] = {0: size / (len(stored) * stored.crops)}
    tell()
    fair = made.bank("fair", rule=CropRule(area=(0.2, 1.0)))
    adapted = adapted_bank(fair, FAIR_CALIBRATION)
    setting["fair adaptation"] = adapted.about["adaptation"]
    made.arm(FAIR, "FKD", fair, arguments.fair_epochs)
    made.arm(FAIR, "FerKD", adapted, arguments.fair_epochs)
    tell()
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
