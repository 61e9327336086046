"""SSD-Det's small-scale experiment: does a refiner with spatial self-distillation make noisy boxes better, and the detector with them?

    python experiments/ssd_det.py --bccd bccd_voc.zip --jobs 16

Scenes at 64 x 64 pixels, and blood cells (BCCD) at 120 x 160, with noise of 40 % of the boxes' sides. Arms with the same seeds, first
weights of the detector, images and number of steps: the detector on clean and on noisy boxes; with a refiner that is SPSD's first step
alone (how much is averaging), two stages of MIL, these with SPSD, and all of SSD-Det; the detector from scratch on SSD-Det's boxes. First
comes how much the training boxes overlap with the true ones, then what the detector finds on clean test images. Runs that were killed go
on.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Numbers, side, write

from stillroom.engine import Experiment, Lab, LabOptions, Networks, Training
from stillroom.methods.ssd_det.distiller import Plain, SSDDet
from stillroom.methods.ssd_det.noise import noised
from stillroom.methods.ssd_det.pages import figures
from stillroom.methods.ssd_det.recipe import SMALL, STUDENT, trained_refiner
from stillroom.tasks.detection import DetectionData

NOISE, BAG = 0.4, {"ratios": (1.0, 1.25, 0.8), "negative_boxes": 60}
REFINERS: dict[str, dict[str, Any]] = {
    "SPSD-I alone": {"mil": False},
    "MIL": {"spsd": False, "sisd": False},
    "MIL + SPSD": {"sisd": False},
    "SSD-Det": {},
}


@dataclass(frozen=True)
class Work:
    """One group's data and training, one seed, one arm; `again` trains the detector on the arm's boxes as well."""

    group: str
    data: str
    options: tuple[tuple[str, Any], ...]
    plan: Training
    out: Path
    seed: int
    arm: str
    again: bool = False


def measured(work: Work) -> dict[str, dict[str, float]]:
    """The figures of the arm, and of the detector that was trained again, by the names that they have in the results."""
    torch.set_num_threads(1)
    true = DetectionData(work.data, **dict(work.options))
    data = true.derive(("noisy boxes", NOISE), train=noised(true.trained, NOISE))
    true_N4 = np.concatenate(true.trained.boxes)
    true_N4[np.concatenate(true.trained.crowd) > 0] = np.nan
    name = work.arm.replace(" ", "")
    lab = Lab(LabOptions(out=work.out / work.group / name, accelerator="cpu"), work.seed)
    experiment = Experiment(lab, true if work.arm == "clean boxes" else data, work.plan, Networks(student=STUDENT))
    if work.arm not in REFINERS:
        trained = experiment.trained("plain", Plain)
        found = {} if work.arm == "clean boxes" else figures(np.concatenate(data.trained.boxes), true_N4)
        return {work.arm: {**_detected(trained), **found}}
    trained, refined = trained_refiner(experiment, "refiner", lambda fresh: SSDDet(fresh, **BAG, **REFINERS[work.arm]), true_N4)
    answer = {work.arm: {**_detected(trained), **figures(refined["boxes"], true_N4, refined["stage1"])}}
    if work.again:
        counts = np.cumsum([len(boxes) for boxes in data.trained.boxes])[:-1]
        better = data.derive("refined boxes", train=replace(data.trained, boxes=np.split(refined["boxes"], counts)))
        again = Experiment(lab, better, work.plan, Networks(student=STUDENT)).trained("again", Plain)
        answer[f"trained again on {work.arm}'s boxes"] = _detected(again)
    return answer


def _detected(trained: Any) -> dict[str, float]:
    names = ("AP", "AP50", "AP75")
    return {**{name: trained.result.metrics[name] for name in names}, "seconds": trained.result.seconds}


def verdict(group: str, found: dict[str, Numbers]) -> str:
    """What the numbers say, in words made from the numbers alone."""
    lines = []
    for metric, arm, over in (
        ("box_iou", "SSD-Det", "noisy boxes"),
        ("box_iou", "SSD-Det", "SPSD-I alone"),
        ("box_iou", "SSD-Det", "MIL"),
        ("box_iou", "MIL + SPSD", "MIL"),
        ("box_iou", "SSD-Det", "MIL + SPSD"),
        ("AP", "SSD-Det", "noisy boxes"),
        ("AP", "trained again on SSD-Det's boxes", "noisy boxes"),
    ):
        if not {f"{group}: {arm}", f"{group}: {over}"} <= set(found):
            continue
        word, change, spread = side(found[f"{group}: {arm}"][metric], found[f"{group}: {over}"][metric], "level within noise with")
        lines.append(f"{arm} is {word} {over} ({change:+.1f} +- {spread:.1f} {'points of boxes IoU' if metric == 'box_iou' else 'AP'})")
    return f"{group}: {'; '.join(lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bccd", help="BCCD in Pascal VOC's layout, in a folder or a zip")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=600, help="to train on")
    parser.add_argument("--epochs", type=int, default=6, help="of the scenes")
    parser.add_argument("--bccd-epochs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="arms that are trained at the same time, a core each")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/ssd_det"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/ssd_det.json"))
    given = parser.parse_args()
    seeds, works = list(range(given.seeds)), []
    scenes = f"scenes:size=64,train={given.scenes},val=200,teacher={given.scenes}"
    groups = {"scenes": (scenes, (("batch_size", 8),), replace(SMALL, epochs=given.epochs), [*REFINERS, "clean boxes", "noisy boxes"])}
    if given.bccd:
        cells = (("batch_size", 8), ("image_size", 120))
        groups["BCCD"] = (f"voc:{given.bccd}", cells, replace(SMALL, epochs=given.bccd_epochs), ["SPSD-I alone", "SSD-Det", "noisy boxes"])
    for group, (data, options, plan, arms) in groups.items():
        works += [Work(group, data, options, plan, given.runs, seed, arm, arm == "SSD-Det") for arm in arms for seed in seeds]
    works.sort(key=lambda work: (work.arm not in REFINERS, work.group != "BCCD", work.arm == "SPSD-I alone"))  # the longest first
    found: dict[str, dict[str, dict[int, float]]] = {}
    with ProcessPoolExecutor(given.jobs) as pool:
        for work, answer in zip(works, pool.map(measured, works), strict=True):
            for arm, numbers in answer.items():
                for metric, value in numbers.items():
                    found.setdefault(f"{work.group}: {arm}", {}).setdefault(metric, {})[work.seed] = value
    setting = {
        "detector": "stillroom/faster-rcnn_24, 74 k parameters",
        "noise": "each box moved and scaled by up to 40 % of its sides, drawn once",
        "scenes": f"64 x 64 pixels, 6 classes; {given.scenes} to train on, {given.epochs} epochs of batch 8; 200 clean ones to test",
        "BCCD": f"120 x 160 pixels, 3 classes; {given.bccd_epochs} epochs of batch 8" if given.bccd else "not run",
        "boxes": "box_iou: mean IoU of the training boxes with the true ones, %; box_iou_1: of stage I; box_good: share of IoU 0.5 or more",
    }
    command = "python experiments/ssd_det.py" + (" --bccd bccd_voc.zip" if given.bccd else "")
    write(given.out, "ssd-det", command, seeds, found, ". ".join(verdict(group, found) for group in groups) + ".", setting)
    print(given.out.read_text())


if __name__ == "__main__":
    main()
