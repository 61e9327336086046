"""CIFAR-10's pictures, a ResNet-56 that somebody trained, and a student of a tenth of its size: alone, by KD, DKD and CRD.

    python experiments/cifar10.py --pictures cifar10.zip --weights resnet56.safetensors

Stores the teacher's answers and compares the methods, into `runs/cifar`; `experiments/kd.py` writes what was measured to `results/kd.json`.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

NETWORK = Path(__file__).with_name("cifar_resnet.py")
MEAN, STD = "[0.485,0.456,0.406]", "[0.229,0.224,0.225]"  # what the teacher was trained with
STORED, RUN = "runs/cifar-cache", "runs/cifar"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", required=True, help="a zip of folders train/CLASS and test/CLASS")
    parser.add_argument("--weights", required=True, help="of the teacher, experiments/cifar_resnet.py:resnet56")
    parser.add_argument("--subset", default="5000", help="pictures to train on")
    parser.add_argument("--val-subset", default="2500", help="pictures to measure with")
    parser.add_argument("--epochs", default="20")
    asked = parser.parse_args()
    data = ("--data", f"imagefolder:{asked.pictures}", "--augment", "cifar", "--subset", asked.subset, "--val-subset", asked.val_subset)
    data = (*data, "--batch-size", "128", "--mean", MEAN, "--std", STD)
    teacher = ("--teacher", f"{NETWORK}:resnet56@{asked.weights}", "--teacher-mean", MEAN, "--teacher-std", STD)
    subprocess.run(["stillroom", "cache", *data, *teacher, "--views", "10", "--taps", "linear:input", "--out", STORED], check=True)
    plan = ("--epochs", asked.epochs, "--optimizer", "sgd", "--lr", "0.1", "--weight-decay", "0.0005", "--schedule", "cosine")
    student = ("--student", "stillroom/resnet8", *plan, "--seeds", "3", "--out", RUN)
    crd = ("--options.crd", '{teacher_layer: "linear:input"}')
    subprocess.run(["stillroom", "compare", "kd", "dkd", "crd", *crd, *data, "--teacher", f"cache:{STORED}", *student], check=True)


if __name__ == "__main__":
    main()
