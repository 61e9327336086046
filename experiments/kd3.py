"""KD^3's small-scale experiment: what does each of its parts add, and does its selection find the images of the teacher's classes?

    python experiments/kd3.py --cifar10 cifar10.zip                   # CIFAR-10 at 16 x 16 pixels, some 30 minutes on one core

Original domain: five classes of CIFAR-10, 8 000 training images for the teacher and the 5 000 test images. Web set: 4 000 unlabelled
training images that the teacher never saw; 40 % of the same classes in another style, 20 % of them as they are, 40 % of the other five
classes. Arms, with the same seeds, initial weights and number of updates: plain KD on the whole web set; the connector and the teacher's
classifier, unweighted; the same with weights; with selection too; with the contrast too, which is all of KD^3. As ceilings the teacher, and
the student trained on the original images and labels with as many updates. Measured after the last epoch, on the test images; of each
epoch's selection the share of images of the teacher's classes. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from record import Numbers, side, write
from torch import Tensor

from stillroom.engine import Experiment, Lab, LabOptions, Networks, Trained, Training
from stillroom.methods.kd3 import KD3, WebKD
from stillroom.methods.kd3.restyle import restyled
from stillroom.methods.kd3.shared_classifier import share_classifier
from stillroom.methods.kd3.web import WebData
from stillroom.tasks.classification import ImageData
from stillroom.tasks.images.stores import MemoryImages

CLASSES = (0, 1, 3, 7, 8)  # airplane, automobile, cat, horse, ship
TEACHER, STUDENT = "stillroom/wrn_16_2", "stillroom/resnet8"
IMAGES, SIZE, BATCH = 4000, 16, 128
ARMS = {  # KD^3's parts, one after the other
    "connector + teacher's classifier": {"selection": False, "weighted": False, "contrast_weight": 0.0},
    "+ weights": {"selection": False, "contrast_weight": 0.0},
    "+ selection": {"contrast_weight": 0.0},
    "+ contrast (KD3)": {},
}


class Watched(KD3):
    """Writes down which share of each epoch's images is of the teacher's classes."""

    def __init__(self, *parts: object, truth: Tensor, **options: object) -> None:
        super().__init__(*parts, **options)  # type: ignore[arg-type]
        self._truth = truth

    def select(self) -> Tensor | None:
        """KD^3's choice."""
        kept = super().select()
        if kept is not None:
            path = Path(self.trainer.default_root_dir) / "precision.json"
            before = json.loads(path.read_text()) if path.exists() else {}
            kinds = self._truth[kept]
            shares = {"in class, %": 100 * float((kinds > 0).float().mean()), "kept, %": 100 * len(kept) / len(self._truth)}
            path.write_text(json.dumps({**before, str(self.progress.epoch): shares}))
        return kept


def collections(archive: str) -> tuple[ImageData, MemoryImages, Tensor]:
    """The teacher's data; the web images; of each whether it is of another class (0), of the teacher's (1) or of them and restyled (2)."""
    whole = ImageData(f"imagefolder:{archive}", image_size=SIZE, batch_size=BATCH, subset=20_800)
    ours = whole.restricted(classes=CLASSES)
    others = whole.restricted(classes=[number for number in range(10) if number not in CLASSES])

    def each(data: ImageData, first: int, last: int) -> np.ndarray:
        places = [np.flatnonzero(data.train_labels.numpy() == label)[first:last] for label in range(5)]
        return np.stack(places, 1).reshape(-1)  # the classes take turns, so that any part has all of them

    same, foreign = (
        part.restricted(train=which)._train for part, which in ((ours, each(ours, 1600, 2080)), (others, each(others, 0, 320)))
    )
    assert isinstance(same, MemoryImages)
    assert isinstance(foreign, MemoryImages)
    pixels = torch.cat((restyled(same.pixels[:1600]), same.pixels[1600:], foreign.pixels))
    truth = torch.tensor([2] * 1600 + [1] * 800 + [0] * 1600)
    return ours.restricted(train=each(ours, 0, 1600)), MemoryImages(pixels, truth.numpy(), [str(i) for i in range(IMAGES)]), truth


def experiment(archive: str, epochs: int, seeds: list[int], out: Path) -> dict[str, Numbers]:
    """Every arm with every seed."""
    data, images, truth = collections(archive)
    web = WebData(data, images, steady=True)
    plan = Training(epochs=epochs, lr=0.05, weight_decay=5e-4, milestones=(0.6, 0.85))
    # As many updates as the web set gives: its batches against those of 8 000 images.
    original = Training(epochs=epochs // 2, lr=0.05, weight_decay=5e-4, milestones=(0.6, 0.85))
    found: dict[str, dict[str, dict[int, float]]] = {}

    def note(arm: str, seed: int, trained: Trained) -> None:
        result = trained.result
        measured = {"test accuracy, %": result.metrics["top1"], "best epoch's test accuracy, %": result.best["top1"]}
        if (file := trained.folder / "precision.json").exists():
            chosen = list(json.loads(file.read_text()).values())
            measured["images of the teacher's classes among the selected, mean of the epochs, %"] = mean(e["in class, %"] for e in chosen)
            measured["the same in the first epoch, %"] = chosen[0]["in class, %"]
            measured["the same in the last epoch, %"] = chosen[-1]["in class, %"]
            measured["images selected, mean of the epochs, %"] = mean(e["kept, %"] for e in chosen)
        for metric, value in {**measured, "seconds": result.seconds}.items():
            found.setdefault(arm, {}).setdefault(metric, {})[seed] = value

    for seed in seeds:
        lab = Lab(LabOptions(out=out, seeds=len(seeds), accelerator="cpu"), seed)
        networks = Networks(TEACHER, STUDENT)
        trained = Experiment(lab, data, Training(epochs=10, lr=0.05, weight_decay=5e-4, milestones=(0.6, 0.85)), networks).teacher()
        taught, stages = lab.teach(trained), Experiment(lab, data, plan, networks, taught=trained)
        note("plain KD", seed, stages.distilled("kd", lambda fresh, teacher: WebKD(fresh, teacher, web)))
        for arm, options in ARMS.items():
            built = stages.network(STUDENT, "student")
            student = share_classifier(
                built.network, taught.networks[0], data.example_inputs(), student_layer="layer3", teacher_layer="relu"
            )
            made = Watched(student, taught, web, teacher_layer="relu", truth=truth, **options)
            name = "".join(letter for letter in arm if letter.isalnum() or letter == "+")
            note(arm, seed, lab.fit(made, web, plan, name=name, model=student.specification(built.spec, TEACHER)))
        note("student on the original images and labels", seed, Experiment(lab, data, original, networks).alone())
    found["teacher"] = {"test accuracy, %": dict.fromkeys(seeds, trained.result.metrics["top1"])}
    return found


def verdict(found: dict[str, Numbers]) -> str:
    """What the numbers say about the claims, in words made from the numbers alone."""
    accuracy = "test accuracy, %"
    arms = ["plain KD", *ARMS]
    lines = []
    pairs = [*zip(arms[1:], arms[:-1], strict=True), (arms[-1], arms[0])]
    for arm, over in pairs:
        word, change, spread = side(found[arm][accuracy], found[over][accuracy], "not told apart from")
        lines.append(f"{arm} is {word} {over} ({change:+.2f} +- {spread:.2f} points)")
    shares = found["+ contrast (KD3)"]["images of the teacher's classes among the selected, mean of the epochs, %"]
    gain = mean(shares.values()) - 60
    holds = "holds" if gain >= 10 else "does not hold"
    lines.append(
        f"selected images are of the teacher's classes in {mean(shares.values()):.1f} % against 60 % of all: '10 points more' {holds}"
    )
    return "; ".join(lines) + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", required=True, help="CIFAR-10 as image folders, in a folder or a zip")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="of 31 updates each")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/kd3"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/kd3.json"))
    arguments = parser.parse_args()
    seeds = list(range(arguments.seeds))
    found = experiment(arguments.cifar10, arguments.epochs, seeds, arguments.runs)
    updates = arguments.epochs * (IMAGES // BATCH)
    setting = {
        "networks": f"{TEACHER} -> {STUDENT}",
        "original": "5 classes of CIFAR-10 at 16 x 16, 8 000 training images for the teacher, 5 000 test images",
        "web": "4 000 images: 40 % same classes restyled, 20 % same classes, 40 % other classes",
        "updates": updates,
    }
    notes = [
        f"Smaller than the specification's design, to fit a core's minutes: 16 x 16 pixels instead of 32 x 32, 4 000 web images instead of "
        f"8 000, 8 000 images for the teacher instead of 10 000, {updates} updates of batch {BATCH}; the student on the original images "
        f"has {arguments.epochs // 2 * (8000 // BATCH)}."
    ]
    write(arguments.out, "kd3", "python experiments/kd3.py --cifar10 cifar10.zip", seeds, found, verdict(found), setting, notes=notes)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
