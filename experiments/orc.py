"""ORC's small-scale experiment: does changing the roles keep false knowledge out, and does the target gain from it?

    python experiments/orc.py                                         # scikit-learn's digits, some 20 minutes on one core
    python experiments/orc.py --cifar10 cifar10.zip                   # and CIFAR-10 at 16 x 16 pixels, some 20 minutes more
    python experiments/orc.py --cifar10 cifar10.zip --weights resnet20.safetensors   # instead: a pivot somebody trained, 30 minutes

Arms, with the same seeds, initial weights of the target and number of steps, and one pivot for all: the target with labels only; KD from
the frozen pivot; everyone teaches everyone (the frozen pivot and all networks of the group, one KL term for each teacher: the failure that
ORC is to prevent); ORC; ORC without intensive teaching; without intensive and private teaching; ORC with the largest network as the fixed
temporary teacher. Then the contrast: "everyone" and ORC with an immature network more in the group, of width 1. The claim asks for ORC
above KD and above "everyone", and for "everyone" to suffer from the immature network where ORC does not. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from cifar_resnet import NETWORK, STATISTICS
from record import Numbers, side, write
from torch import nn
from torch.nn.functional import cross_entropy

from stillroom.engine import Distiller, Experiment, Lab, LabOptions, Losses, Networks, Teacher, Trained, Training
from stillroom.losses.logits import kd_loss
from stillroom.methods.kd import KD
from stillroom.methods.orc import ORC
from stillroom.tasks.classification import Batch, ImageData
from stillroom.tasks.images.networks import ConvNet

BETA, TEMPERATURE = 0.9, 4.0
ACCURACY = "test accuracy, %"
LABELS, KD_ARM, EVERYONE, FULL = "labels only", "KD from the frozen pivot", "everyone teaches everyone", "ORC"
IMMATURE = ", with an immature member"
TRAINED = "CIFAR-10, trained pivot"

Made = Callable[[nn.Module, list[nn.Module], Teacher], Distiller]


class Everyone(Distiller):
    """The frozen pivot and all other networks of the group teach every network of the group, all the time."""

    teacher: Teacher

    def __init__(self, student: nn.Module, group: Sequence[nn.Module], teacher: Teacher) -> None:
        super().__init__(student, teacher)
        self.group = nn.ModuleList(group)

    def losses(self, batch: Batch) -> Losses:
        """Sums over the networks; each network's part has a gradient for that network only, so one optimiser serves them all."""
        pivot = self.teacher(batch)
        logits = [member(batch.images) for member in (*self.group, self.student)]
        ce = torch.stack([cross_entropy(z, batch.labels) for z in logits]).sum()
        kd = [kd_loss(z, t, TEMPERATURE) for i, z in enumerate(logits) for t in (pivot, *logits[:i], *logits[i + 1 :])]
        return Losses(task={"ce": (1 - BETA) * ce}, distill={"kd": BETA * torch.stack(kd).sum()})


def orc(**options: Any) -> Made:
    """ORC around a copy of the pivot."""

    def made(student: nn.Module, group: list[nn.Module], teacher: Teacher) -> Distiller:
        return ORC(student, copy.deepcopy(teacher.networks[0]), group, balance=BETA, temperature=TEMPERATURE, **options)

    return made


ARMS: dict[str, Made] = {
    KD_ARM: lambda student, group, teacher: KD(student, teacher, temperature=TEMPERATURE, task_weight=1 - BETA, kd_weight=BETA),
    EVERYONE: Everyone,
    FULL: orc(),
    "ORC without intensive": orc(intensive=False),
    "ORC without intensive and private": orc(intensive=False, private=False),
    "ORC, the largest always promoted": orc(promotion="fixed", fixed_index=0),
}


def experiment(
    name: str, data: ImageData, plan: Training, pivot: str, group: list[str], target: str, arms: list[str], seeds: list[int], out: Path
) -> dict[str, Numbers]:
    """The arms with every seed; those that end in `IMMATURE` with a network of width 1 besides."""
    options = LabOptions(out=out / name.replace(" ", "-"), seeds=len(seeds), teacher_precision="fp32", accelerator="cpu")
    found: dict[str, dict[str, dict[int, float]]] = {}

    def note(arm: str, seed: int, trained: Trained) -> None:
        history = trained.result.history
        measured = {
            ACCURACY: trained.result.metrics["top1"],
            "best epoch's test accuracy, %": trained.result.best["top1"],
            "seconds": trained.result.seconds,
        }
        if "train/accuracy/pivot" in history[-1]:
            measured |= {
                "pivot: training accuracy in the last epoch, %": history[-1]["train/accuracy/pivot"],
                "pivot: mean confidence at T in the first epoch": history[0]["train/confidence/pivot"],
                "pivot: mean confidence at T in the last epoch": history[-1]["train/confidence/pivot"],
                "samples somebody got wrong, of a batch in the last epoch": history[-1]["train/feedback/samples"],
            }
            for key in (key for key in history[-1] if key.startswith("train/promoted/")):
                measured[f"promoted: {key.rpartition('/')[2]}, %"] = 100 * sum(row[key] for row in history) / len(history)
        for metric, value in measured.items():
            found.setdefault(f"{name}: {arm}", {}).setdefault(metric, {})[seed] = value

    for seed in seeds:
        lab = Lab(options, seed)
        stages = Experiment(lab, data, plan, Networks(pivot, target))
        taught = stages.teacher()
        teacher = lab.teach(taught)
        note(LABELS, seed, stages.alone())
        for arm in arms:
            student = stages.network(target, "student").network
            members = [stages.network(spec, "group").network for spec in group]
            if arm.endswith(IMMATURE):
                members.append(ConvNet(1, num_classes=data.num_classes))
            made = ARMS[arm.removesuffix(IMMATURE)](student, members, teacher)
            note(arm, seed, lab.fit(made, data, plan, name=arm.replace(" ", "-").replace(",", ""), model=target))
    found[f"{name}: pivot"] = {ACCURACY: dict.fromkeys(seeds, taught.result.metrics["top1"])}
    return found


def verdict(name: str, found: dict[str, Numbers]) -> str:
    """What the numbers say about the claim, in words made from the numbers alone."""

    def differs(arm: str, over: str) -> tuple[str, str]:
        theirs = found[f"{name}: {over}"][ACCURACY]
        word, change, spread = side(found[f"{name}: {arm}"][ACCURACY], theirs, "level within noise with")
        return word, f"{change:+.2f} +- {spread:.2f}"

    lines = []
    both = [differs(FULL, over) for over in (KD_ARM, EVERYONE)]
    holds = "holds" if all(word == "above" for word, _ in both) else "does not hold"
    lines.append(
        f"{name}: ORC is {both[0][0]} KD ({both[0][1]} points) and {both[1][0]} everyone-teaches-everyone ({both[1][1]}): the claim {holds}"
    )
    for arm in (arm for arm in ARMS if arm.startswith(("ORC ", "ORC,")) and f"{name}: {arm}" in found):
        word, numbers = differs(arm, FULL)
        lines.append(f"{arm} is {word} full ORC ({numbers})")
    if f"{name}: {FULL}{IMMATURE}" in found:
        changes = [differs(f"{arm}{IMMATURE}", arm) for arm in (EVERYONE, FULL)]
        lines.append(
            f"an immature member leaves everyone-teaches-everyone {changes[0][0]} what it was without ({changes[0][1]}) "
            f"and ORC {changes[1][0]} what it was ({changes[1][1]})"
        )
    return "; ".join(lines)


def trained_pivot(arguments: argparse.Namespace) -> None:
    """The arms with a pivot that somebody trained, beside what the file holds of the others."""
    data = ImageData(f"imagefolder:{arguments.cifar10}", subset=5000, val_subset=5000, augment="cifar", **STATISTICS)
    plan = Training(epochs=arguments.trained_epochs, lr=0.05, weight_decay=5e-4, schedule="cosine")
    pivot, group, target = f"{NETWORK}:resnet20@{arguments.weights}", ["stillroom/convnet16", "stillroom/convnet12"], "stillroom/convnet6"
    arms, seeds = [KD_ARM, EVERYONE, FULL, "ORC without intensive"], list(range(arguments.cifar_seeds))
    found = experiment(TRAINED, data, plan, pivot, group, target, arms, seeds, arguments.runs)
    command = "python experiments/orc.py --cifar10 cifar10.zip --weights resnet20.safetensors"
    command += f" --cifar_seeds {arguments.cifar_seeds} --trained_epochs {arguments.trained_epochs}"
    told = "ResNet-20 that somebody trained; convnet16, convnet12 -> convnet6; 5 000 train / 5 000 test, 32 x 32, crops and flips"
    told += f", {plan.epochs * 78} steps"
    write(arguments.out, "orc", command, seeds, found, f"{verdict(TRAINED, found)}.", {TRAINED: told}, only=True)
    print(arguments.out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", help="CIFAR-10 as image folders, in a folder or a zip")
    parser.add_argument("--weights", help="of a trained pivot, experiments/cifar_resnet.py:resnet20; measures with it alone")
    parser.add_argument("--trained_epochs", type=int, default=4, help="with that pivot: 78 steps each")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--small_seeds", type=int, default=8, help="with a target of width 3; 0 leaves this out")
    parser.add_argument("--cifar_seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=50, help="on digits: 14 steps each")
    parser.add_argument("--cifar_epochs", type=int, default=30, help="on CIFAR-10: 78 steps each")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/orc"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/orc.json"))
    arguments = parser.parse_args()
    if arguments.weights:
        trained_pivot(arguments)
        return
    seeds = list(range(arguments.seeds))
    digits, plan = ImageData("digits"), Training(epochs=arguments.epochs, lr=0.05, weight_decay=5e-4, schedule="cosine")
    immature = [f"{arm}{IMMATURE}" for arm in (EVERYONE, FULL)]
    convnet = "stillroom/convnet{}".format
    name = "digits, width 6"
    groups = {name: "convnet16; 12, 9 -> 6"}
    found = experiment(name, digits, plan, convnet(16), [convnet(12), convnet(9)], convnet(6), [*ARMS, *immature], seeds, arguments.runs)
    said = [verdict(name, found)]
    command = "python experiments/orc.py" + (f" --seeds {arguments.seeds}" if arguments.seeds != parser.get_default("seeds") else "")
    if arguments.small_seeds:
        name = "digits, width 3"
        groups[name] = "convnet16; 6, 4 -> 3"
        small, few = [KD_ARM, EVERYONE, FULL, "ORC without intensive and private"], list(range(arguments.small_seeds))
        found |= experiment(name, digits, plan, convnet(16), [convnet(6), convnet(4)], convnet(3), small, few, arguments.runs)
        said.append(verdict(name, found))
    if arguments.small_seeds != parser.get_default("small_seeds"):
        command += f" --small_seeds {arguments.small_seeds}"
    setting: dict[str, Any] = {"digits": "900 train / 897 test, 8 x 8", "steps": {"digits": plan.epochs * 14}, "groups": groups}
    if arguments.cifar10:
        plan = Training(epochs=arguments.cifar_epochs, lr=0.05, weight_decay=5e-4, schedule="cosine")
        data = ImageData(f"imagefolder:{arguments.cifar10}", image_size=16, subset=5000, val_subset=5000)
        name = "CIFAR-10"
        groups[name] = "convnet24; 16, 12 -> 6"
        chosen = [KD_ARM, EVERYONE, FULL, "ORC without intensive"]
        pairs = list(range(arguments.cifar_seeds))
        found |= experiment(name, data, plan, convnet(24), [convnet(16), convnet(12)], convnet(6), chosen, pairs, arguments.runs)
        said.append(verdict(name, found))
        setting |= {name: "5 000 train / 5 000 test, 16 x 16, crops and flips"}
        setting["steps"] |= {name: plan.epochs * 78}
        command += " --cifar10 cifar10.zip"
    write(arguments.out, "orc", command, seeds, found, ". ".join(said) + ".", setting)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
