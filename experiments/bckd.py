"""BCKD's small-scale experiment: does distilling inside the sigmoid's protocol beat distilling under a softmax?

    python experiments/bckd.py                                        # procedural scenes
    python experiments/bckd.py --bccd bccd_voc.zip --only bccd        # blood cells, 120 x 160 pixels

Scenes: a GFL teacher trained on 3 000 scenes, students of 42 k parameters on the first 300 of them, 300 other scenes to test. The softmax
baseline's divergence is a mean over classes, with a weight (10) chosen for 80 classes: it is run as it is and scaled by C / 80, and over
all positions (BCKD's release) and positives alone (LD's). All arms have the same seeds, initial weights and number of steps. Runs that
were killed go on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from record import Numbers, side, write

from stillroom.engine import Distiller, Lab, LabOptions, Teacher, Trained, Training
from stillroom.methods.bckd import BCKD, LD, SoftmaxKD
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.detection.detector import DenseDetector
from stillroom.tasks.detection.models import build_detector
from stillroom.tasks.detection.supervised import DetectionDistiller

Make = Callable[[DenseDetector, Teacher], Distiller]


def arms(classes: int, *, few: bool = False) -> dict[str, Make]:
    """The distillers to compare, by their names."""
    scaled = 10 * classes / 80
    found: dict[str, Make] = {
        "none": lambda student, teacher: DetectionDistiller(student),
        "BCKD": lambda student, teacher: BCKD(student, teacher),
        "softmax KL, all positions, weight 10": lambda student, teacher: SoftmaxKD(student, teacher),
        f"softmax KL, all positions, weight {scaled:g}": lambda student, teacher: SoftmaxKD(student, teacher, kd_weight=scaled),
        "LD": lambda student, teacher: LD(student, teacher),
    }
    if not few:
        found["BCKD, classification only"] = lambda student, teacher: BCKD(student, teacher, loc_weight=0)
        found["BCKD, localisation only"] = lambda student, teacher: BCKD(student, teacher, cls_weight=0)
        found["softmax KL, positives, weight 10"] = lambda student, teacher: SoftmaxKD(student, teacher, region="positives")
    return found


def experiment(
    name: str, data: DetectionData, teacher_plan: Training, plan: Training, seeds: list[int], out: Path, *, few: bool
) -> dict[str, Numbers]:
    """Every arm with every seed; one teacher for all."""
    options = LabOptions(out=out / name, seeds=len(seeds), accelerator="cpu")
    found: dict[str, dict[str, dict[int, float]]] = {}

    def note(arm: str, seed: int, trained: Trained) -> None:
        measured = {**{metric: trained.result.metrics[metric] for metric in ("AP", "AP50", "AP75")}, "seconds": trained.result.seconds}
        for metric, value in measured.items():
            found.setdefault(f"{name}: {arm}", {}).setdefault(metric, {})[seed] = value

    for seed in seeds:
        lab = Lab(options, seed)
        with lab.shared():
            network = build_detector("stillroom/gfl_32", num_classes=data.num_classes).network
            taught = lab.fit(DetectionDistiller(network), data.for_teacher(), teacher_plan, name="teacher", model="stillroom/gfl_32")
        for arm, make in arms(data.num_classes, few=few).items():
            student = build_detector("stillroom/gfl_24", num_classes=data.num_classes).network
            folder = arm.replace(" ", "").replace(",", "-")
            note(arm, seed, lab.fit(make(student, lab.teach(taught)), data, plan, name=folder, model="stillroom/gfl_24"))
    found[f"{name}: teacher"] = {metric: dict.fromkeys(seeds, taught.result.metrics[metric]) for metric in ("AP", "AP50", "AP75")}
    return found


def verdict(name: str, found: dict[str, Numbers]) -> str:
    """What the numbers say about the claims, in words made from the numbers alone."""
    lines = []
    for over in [arm.partition(": ")[2] for arm in found if arm not in (f"{name}: BCKD", f"{name}: teacher")]:
        word, change, spread = side(found[f"{name}: BCKD"]["AP"], found[f"{name}: {over}"]["AP"], "level within noise with")
        lines.append(f"BCKD is {word} '{over}' ({change:+.1f} +- {spread:.1f} AP)")
    return f"{name}: {'; '.join(lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bccd", help="BCCD in Pascal VOC's layout, in a folder or a zip")
    parser.add_argument("--only", choices=("scenes", "bccd"), help="run one of the two; the other's numbers are left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/bckd"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/bckd.json"))
    arguments = parser.parse_args()
    seeds, found, said = list(range(arguments.seeds)), {}, []
    setting: dict[str, object] = {"students": "stillroom/gfl_24, 42 k parameters", "teacher": "stillroom/gfl_32, 101 k parameters"}
    plan = Training(epochs=27, optimizer="adamw", lr=4e-3, weight_decay=1e-4, schedule="cosine", warmup_epochs=2.6, clip_norm=10.0)
    if arguments.only != "bccd":
        data = DetectionData("scenes")
        teacher_plan = replace(plan, epochs=6, lr=3e-3, warmup_epochs=0.3)
        scenes = experiment("scenes", data, teacher_plan, plan, seeds, arguments.runs, few=False)
        found |= scenes
        said.append(verdict("scenes", scenes))
        setting["scenes"] = (
            "48 x 48 pixels, 6 classes; teacher 3 000 scenes, 1 122 steps; students 300 scenes, 486 steps of 16; 300 to test"
        )
    if arguments.bccd and arguments.only != "scenes":
        data = DetectionData(f"voc:{arguments.bccd}", image_size=120, batch_size=8)
        cells = experiment(
            "BCCD", data, replace(plan, epochs=10), replace(plan, epochs=6, warmup_epochs=1), seeds, arguments.runs, few=True
        )
        found |= cells
        said.append(verdict("BCCD", cells))
        setting["BCCD"] = f"120 x 160 pixels, 3 classes, {data.train_size} training images; teacher 10 epochs, students 6 epochs of batch 8"
    command = "python experiments/bckd.py" + (" --bccd bccd_voc.zip" if arguments.bccd else "")
    write(arguments.out, "bckd", command, seeds, found, ". ".join(said) + ".", setting)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
