"""L2D's small-scale experiment: do logits taken label by label (MLD) and the structure of label-wise embeddings (LED) help a student?

    python experiments/l2d.py --cifar10 cifar10.zip --bccd bccd_voc.zip         # some 14 minutes on one idle core

CIFAR-10 mosaics: 2 x 2 grids of 16 x 16 tiles, each cell filled with probability 0.7; 800 to train the student on, 4 000 the teacher,
1 000 of CIFAR-10's test images to test; new mosaics and new initial weights in every seed. BCCD (blood cells under the microscope, in
Pascal VOC's layout): 205 images to train on, 159 to test; "at least so many" red cells and platelets are the labels, since nearly every
image shows a red and a white cell. A new teacher and new initial weights in every seed.

Arms of one seed have the same teacher, initial weights, order of images and number of steps. Besides the method and its parts there are
controls that should not help as much: the structure of a teacher whose embeddings are shuffled, softmax distillation over the labels,
and the structure of whole-image features (as RKD). Runs that were killed go on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from record import Numbers, is_clear, paired, write
from torch import Tensor, nn

from stillroom.engine import Distiller, Experiment, Lab, LabOptions, Losses, Teacher, Trained, Training, tap
from stillroom.methods.l2d import L2D
from stillroom.methods.l2d.loss import structure_losses
from stillroom.tasks.multilabel import MOSAICS, Batch, MultiLabelData, MultiLabelDistiller, MultiLabelNetworks, summed_bce

CD, ID = 10.0, 20.0
PUBLISHED = {"class_aware_weight": 100.0, "instance_aware_weight": 1000.0}
PLAIN, FULL = "labels only", "MLD + LED"


class Shuffled(L2D):
    """L2D whose teacher's label-wise embeddings are dealt out anew among images and labels."""

    def taught(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits, and the shuffled embeddings."""
        logits_BK, embeddings_BKE = super().taught(batch)
        rows = embeddings_BKE.flatten(0, 1)
        return logits_BK, rows[torch.randperm(len(rows))].view_as(embeddings_BKE)


class WholeImages(MultiLabelDistiller):
    """The distances among the batch's pooled features, as relational knowledge distillation compares them."""

    def __init__(self, student: nn.Module, teacher: Teacher, *, weight: float) -> None:
        super().__init__(student, teacher)
        self.weight = weight
        self._student, self._teacher = tap(student, "backbone"), self.teacher.tap("backbone")

    def losses(self, batch: Batch) -> Losses:
        """Cross-entropy, and the distance of the relative distances."""
        logits_BK, mine = self._student(batch.inputs)
        _, theirs = self._teacher(batch)
        pooled = [features["backbone"].float().mean((2, 3))[None] for features in (mine, theirs)]
        (structure,) = structure_losses(*pooled)
        return Losses(task={"bce": summed_bce(logits_BK, batch.labels)}, distill={"structure": self.weight * structure})


def arms(controls: bool) -> dict[str, Callable[[nn.Module, Teacher], Distiller]]:
    """The distillers to compare, by their names."""
    weights = {"class_aware_weight": CD, "instance_aware_weight": ID}
    made: dict[str, Callable[[nn.Module, Teacher], Distiller]] = {
        "MLD": lambda student, teacher: L2D(student, teacher, embedding_weight=0.0),
        "LED": lambda student, teacher: L2D(student, teacher, logits_weight=0.0, **weights),
        FULL: lambda student, teacher: L2D(student, teacher, **weights),
        "MLD + LED, published weights": lambda student, teacher: L2D(student, teacher, **PUBLISHED),
    }
    if controls:
        made["LED, shuffled teacher"] = lambda student, teacher: Shuffled(student, teacher, logits_weight=0.0, **weights)
        made["softmax KD"] = lambda student, teacher: L2D(student, teacher, embedding_weight=0.0, logits_loss="softmax")
        # one set in the place of ten
        made["structure of whole images"] = lambda student, teacher: WholeImages(student, teacher, weight=10 * CD)
    return made


def experiment(
    name: str, data_of: Callable[[int], MultiLabelData], plan: Training, teacher_epochs: int, seeds: list[int], out: Path, controls: bool
) -> dict[str, Numbers]:
    """Every arm with every seed."""
    found: dict[str, dict[str, dict[int, float]]] = {}

    def note(arm: str, seed: int, trained: Trained) -> None:
        result = trained.result
        measured = {**{metric: result.metrics[metric] for metric in ("mAP", "OF1", "CF1")}, "best mAP": result.best["mAP"]}
        for metric, value in {**measured, "seconds": result.seconds}.items():
            found.setdefault(f"{name}: {arm}", {}).setdefault(metric, {})[seed] = value

    for seed in seeds:
        options = LabOptions(
            out=out / name.replace(" ", "-") / f"{plan.epochs}-epochs-seed{seed}", seed=seed, teacher_precision="fp32", accelerator="cpu"
        )
        lab = Lab(options)
        networks = MultiLabelNetworks("stillroom/strided64", "stillroom/strided24", teacher_epochs=teacher_epochs)
        stages = Experiment(lab, data_of(seed), plan, networks)
        note("teacher", seed, stages.teacher())
        note(PLAIN, seed, stages.alone())
        for arm, make in arms(controls).items():
            stage = arm.replace(" ", "").replace(",", "-")
            note(arm, seed, stages.distilled(stage, make))
    return found


def verdict(name: str, found: dict[str, Numbers]) -> str:
    """What the numbers say about the claims, in words made from the numbers alone."""

    def differs(arm: str, over: str) -> str:
        change, spread = paired(found[f"{name}: {arm}"]["mAP"], found[f"{name}: {over}"]["mAP"])
        clear = is_clear(change, spread, len(found[f"{name}: {arm}"]["mAP"]))
        return f"{('higher' if change > 0 else 'lower') if clear else 'equal within noise'} ({change:+.2f} +- {spread:.2f})"

    lines = [f"{name}: the teacher's mAP is {differs('teacher', PLAIN)} against labels only"]
    lines += [
        f"{arm} against labels only: {differs(arm, PLAIN)}"
        for arm in (found_arm.removeprefix(f"{name}: ") for found_arm in found if found_arm.startswith(f"{name}: "))
        if arm not in ("teacher", PLAIN)
    ]
    lines.append(f"{FULL} against MLD: {differs(FULL, 'MLD')}")
    if f"{name}: softmax KD" in found:
        lines.append(f"MLD against softmax KD: {differs('MLD', 'softmax KD')}")
        lines.append(f"LED against the structure of whole images: {differs('LED', 'structure of whole images')}")
    return "; ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", required=True, help="CIFAR-10 as image folders, in a folder or a zip")
    parser.add_argument("--bccd", required=True, help="BCCD in Pascal VOC's layout, a folder or a zip")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bccd_seeds", type=int, default=3)
    parser.add_argument("--bccd_size", type=int, default=64)
    parser.add_argument("--bccd_epochs", type=int, default=40, help="six steps each")
    parser.add_argument("--only", choices=("mosaics", "bccd"), help="train the stages of one set, and write nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/l2d"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/l2d.json"))
    arguments = parser.parse_args()
    seeds, bccd_seeds = list(range(arguments.seeds)), list(range(arguments.bccd_seeds))

    def mosaics(seed: int) -> MultiLabelData:
        return MultiLabelData(f"mosaics:imagefolder:{arguments.cifar10},tile=16,seed={seed}", workers=0)

    labels = "RBC:8:10:12:14:16+Platelets:1:2:3"
    place = f"voc:{arguments.bccd},train=train,val=val+test,counts={labels}"
    cells = MultiLabelData(place, image_size=arguments.bccd_size, batch_size=32, augment="turn", workers=0)
    cells_plan = Training(**{**vars(MOSAICS), "epochs": arguments.bccd_epochs, "lr": 2e-3})
    longer = round(1.5 * cells_plan.epochs)
    found: dict[str, Numbers] = {}
    if arguments.only != "bccd":
        found |= experiment("CIFAR-10 mosaics", mosaics, MOSAICS, 12, seeds, arguments.runs, controls=True)
    if arguments.only != "mosaics":
        found |= experiment("BCCD", lambda seed: cells, cells_plan, longer, bccd_seeds, arguments.runs, controls=False)
    if arguments.only:
        return
    setting = {
        "CIFAR-10 mosaics": "800 train / 1 000 test, 32 x 32, 10 labels, 2.5 on an image; 20 epochs of 12 steps; "
        "teacher: 4 000 train, 12 epochs of 62 steps",
        "BCCD": f"205 train / 159 test, {cells.image_size} x {cells.image_size}, turned and mirrored, 8 labels ({labels}); "
        f"{cells_plan.epochs} epochs of 6 steps, teacher {longer}",
        "networks": "three convolutions of 16-32-64 (teacher) and 8-16-24 channels, ML-Decoder with D = 64, 4 heads, FFN 128",
        "training": f"adam, onecycle up to {MOSAICS.lr} (BCCD {cells_plan.lr}) at 0.2 of the run, weight decay {MOSAICS.weight_decay}",
        "weights": f"logits 10, embeddings 1, CD {CD:g}, ID {ID:g}; published: CD 100, ID 1000; whole images {10 * CD:g}",
    }
    said = ". ".join(verdict(name, found) for name in ("CIFAR-10 mosaics", "BCCD")) + "."
    write(arguments.out, "l2d", "python experiments/l2d.py --cifar10 cifar10.zip --bccd bccd_voc.zip", seeds, found, said, setting)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
