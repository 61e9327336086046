"""DOT's small-scale experiment: is the trade-off between task and distillation loss there, and does DOT lift it?

    python experiments/dot.py                                         # scikit-learn's digits, some 3 minutes on two cores
    python experiments/dot.py --cifar10 cifar10.zip                   # and CIFAR-10 at 16 x 16 pixels, also with a student of 78 000
                                                                      # parameters, some two hours more
    python experiments/dot.py --cifar10 cifar10.zip --weights resnet56.safetensors   # instead: a teacher that somebody trained, and DKD

Arms, with the same seeds, initial weights and number of steps: labels only; KD; KD with its two weights multiplied by what DOT's
momenta multiply them by in effect (a constant gradient piles up to 1 / (1 - momentum)), for each gap; DOT with that gap; DOT with a
negative gap. Measured after the last step, in eval mode on the clean training images: the task loss and the distillation loss, both
unweighted; and the accuracy on the test images. The claim asks for DOT below KD in *both* training losses, and not so for the
rescaled weights. Runs that were killed go on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from cifar_resnet import NETWORK, STATISTICS
from record import Numbers, is_clear, paired, write
from torch import Tensor, nn

from stillroom.engine import Distiller, Experiment, Lab, LabOptions, Networks, Teacher, Trained, Training
from stillroom.engine.cache import Storage, Views, build_cache
from stillroom.methods.dkd import DKD
from stillroom.methods.dot import DOT
from stillroom.methods.kd import KD
from stillroom.tasks.classification import ImageData

MU, TASK, DISTILL = 0.9, 0.1, 0.9
STUDENT = "stillroom/resnet8"


def effective(delta: float) -> tuple[float, float]:
    """What DOT's two momenta multiply a constant task and distillation gradient by, relative to plain momentum SGD."""
    return (1 - MU) / (1 - (MU - delta)), (1 - MU) / (1 - (MU + delta))


TRAINED = "CIFAR-10, trained teacher"
WARMUP = 2.0  # epochs over which DKD grows; the paper's 20 of 240


def rescaled(delta: float) -> str:
    """The name of KD's arm with the weights that a gap has in effect."""
    task, distill = effective(delta)
    return f"KD, weights x ({task:.3f}, {distill:.3g})"


def arms(deltas: tuple[float, ...]) -> dict[str, Callable[[nn.Module, Teacher], Distiller]]:
    """The distillers to compare, by their names."""
    made: dict[str, Callable[[nn.Module, Teacher], Distiller]] = {"KD": lambda student, teacher: KD(student, teacher)}
    for delta in deltas:
        task, distill = effective(delta)
        if delta > 0:
            made[rescaled(delta)] = lambda student, teacher, task=task, distill=distill: KD(
                student, teacher, task_weight=TASK * task, kd_weight=DISTILL * distill
            )
        made[f"KD + DOT, gap {delta}"] = lambda student, teacher, delta=delta: DOT(KD(student, teacher), delta=delta)
    return made


def arms_of_trained(deltas: tuple[float, ...]) -> dict[str, Callable[[nn.Module, Teacher], Distiller]]:
    """Those of KD, with the weights rescaled for the last gap alone; and DKD as a second host."""

    def dkd(student: nn.Module, teacher: Teacher) -> DKD:
        return DKD(student, teacher, warmup=WARMUP)

    of_kd = arms(deltas)
    for delta in deltas[:-1]:
        del of_kd[rescaled(delta)]
    return {**of_kd, "DKD": dkd, f"DKD + DOT, gap {deltas[-1]}": lambda *pair: DOT(dkd(*pair), delta=deltas[-1])}


@torch.no_grad()
def train_losses(student: nn.Module, teacher: Teacher, data: ImageData) -> tuple[float, float]:
    """Unweighted task and distillation loss (KD's) over the clean training images, in eval mode."""
    probe = KD(student, teacher, task_weight=1.0, kd_weight=1.0).eval()
    task = distill = 0.0
    for batch in data.train_eval_loader():
        losses = probe.losses(batch)
        task += float(losses.task["ce"]) * len(batch.ids)
        distill += float(losses.distill["kd"]) * len(batch.ids)
    count = len(data.train_labels)
    return task / count, distill / count


def experiment(
    name: str, data: ImageData, plan: Training, pair: tuple[str, str], deltas: tuple[float, ...], seeds: list[int], out: Path
) -> dict[str, Numbers]:
    """Every arm with every seed; `pair` are the specifications of teacher and student."""
    options = LabOptions(out=out / name, seeds=len(seeds), teacher_precision="fp32", accelerator="cpu")
    found: dict[str, dict[str, dict[int, float]]] = {}

    def note(arm: str, seed: int, trained: Trained, teacher: Teacher) -> None:
        task, distill = train_losses(trained.network.eval(), teacher, data)
        measured = {
            "test accuracy, %": trained.result.metrics["top1"],
            "best epoch's test accuracy, %": trained.result.best["top1"],
            "train task loss": task,
            "train distillation loss": distill,
            "seconds": trained.result.seconds,
        }
        for metric, value in measured.items():
            found.setdefault(f"{name}: {arm}", {}).setdefault(metric, {})[seed] = value

    for seed in seeds:
        lab = Lab(options, seed)
        stages = Experiment(lab, data, plan, Networks(*pair))
        taught = stages.teacher()
        teacher = lab.teach(taught)
        note("labels only", seed, stages.alone(), teacher)
        for arm, make in arms(deltas).items():
            student = stages.network(pair[1], "student").network
            note(arm, seed, lab.fit(make(student, teacher), data, plan, name=arm.replace(" ", ""), model=pair[1]), teacher)
    found[f"{name}: teacher"] = {"test accuracy, %": dict.fromkeys(seeds, taught.result.metrics["top1"])}
    return found


def trained_teacher(
    name: str, data: ImageData, plan: Training, pair: tuple[str, str], deltas: tuple[float, ...], seeds: list[int], out: Path
) -> dict[str, Numbers]:
    """Every arm with every seed from stored answers of a teacher that somebody trained, to eight crops of each image."""
    options = LabOptions(out=out / pair[1].replace("/", "-"), seeds=len(seeds), teacher_precision="fp32", accelerator="cpu")
    found: dict[str, dict[str, dict[int, float]]] = {}
    first = Lab(options, seeds[0])
    taught = Experiment(first, data, plan, Networks(*pair)).teacher()
    asked = first.teach(taught)
    cache = build_cache(out / "trained" / "answers", asked, data, taught.result, views=Views(8, 0), storage=Storage("fp32"))
    found[f"{name}: teacher"] = {"test accuracy, %": dict.fromkeys(seeds, taught.result.metrics["top1"])}
    with torch.no_grad():  # what it says of the clean images, once for all students
        clean = torch.cat([asked(batch) for batch in data.train_eval_loader()])

    class Clean(nn.Module):
        """Answers of the teacher to the clean training images, which are asked for in their order."""

        def __init__(self) -> None:
            super().__init__()
            self.place = 0

        def forward(self, images: Tensor) -> Tensor:
            self.place += len(images)
            return clean[self.place - len(images) : self.place]

    for seed in seeds:
        experiment = Experiment(Lab(options, seed), data, plan, Networks(f"cache:{cache.folder}", pair[1]))
        trained = {"labels only": experiment.alone()}
        for arm, make in arms_of_trained(deltas).items():
            trained[arm] = experiment.distilled(arm.replace(" ", ""), make)
        for arm, one in trained.items():
            assert one.network is not None
            task, distill = train_losses(one.network.eval(), Teacher(Clean(), precision="fp32", fold=False), data)
            measured = {"test accuracy, %": one.result.metrics["top1"], "best epoch's test accuracy, %": one.result.best["top1"]}
            measured |= {"train task loss": task, "train distillation loss": distill, "seconds": one.result.seconds}
            for metric, value in measured.items():
                found.setdefault(f"{name}: {arm}", {}).setdefault(metric, {})[seed] = value
    return found


def verdict(name: str, found: dict[str, Numbers], deltas: tuple[float, ...]) -> str:
    """What the numbers say about the claim, in words made from the numbers alone."""

    def differs(arm: str, over: str, metric: str) -> tuple[str, float, float]:
        change, spread = paired(found[f"{name}: {arm}"][metric], found[f"{name}: {over}"][metric])
        clear = is_clear(change, spread, len(found[f"{name}: {arm}"][metric]))
        return ("lower" if change < 0 else "higher") if clear else "equal within noise", change, spread

    lines = []
    if f"{name}: DKD" in found:
        arm = next(one.partition(": ")[2] for one in found if one.startswith(f"{name}: DKD + DOT"))
        word, change, spread = differs(arm, "DKD", "test accuracy, %")
        lines.append(f"{arm} against DKD: accuracy {word} ({change:+.2f} +- {spread:.2f})")
        word, change, spread = differs("KD", "labels only", "test accuracy, %")
        lines.append(f"KD against labels only: accuracy {word} ({change:+.2f} +- {spread:.2f})")
    word, change, spread = differs("KD", "labels only", "train task loss")
    lines.append(f"KD's train task loss is {word} against labels only ({change:+.4f} +- {spread:.4f})")
    for delta in deltas:
        arm = f"KD + DOT, gap {delta}"
        task, distill, accuracy = (differs(arm, "KD", m) for m in ("train task loss", "train distillation loss", "test accuracy, %"))
        says = "holds" if task[0] == distill[0] == "lower" else "does not hold"
        lines.append(
            f"gap {delta} against KD: task loss {task[0]} ({task[1]:+.4f} +- {task[2]:.4f}), distillation loss {distill[0]} "
            f"({distill[1]:+.4f} +- {distill[2]:.4f}), accuracy {accuracy[0]} ({accuracy[1]:+.2f} +- {accuracy[2]:.2f}): "
            f"'both losses lower' {says}"
        )
        if delta > 0 and f"{name}: {(arm := rescaled(delta))}" in found:
            both = [differs(arm, "KD", m) for m in ("train task loss", "train distillation loss")]
            lines.append(
                f"rescaled weights for gap {delta}: task loss {both[0][0]} ({both[0][1]:+.4f}), "
                f"distillation loss {both[1][0]} ({both[1][1]:+.4f})"
            )
    return f"{name}: {'; '.join(lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", help="CIFAR-10 as image folders, in a folder or a zip")
    parser.add_argument("--weights", help="of a trained teacher, experiments/cifar_resnet.py:resnet56; measures with it alone")
    parser.add_argument("--student", default=STUDENT, help="of that teacher")
    parser.add_argument("--trained_images", type=int, default=30_000, help="to train on with that teacher; 5000 others measure")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--larger_seeds", type=int, default=3, help="with the larger networks on CIFAR-10")
    parser.add_argument("--epochs", type=int, default=100, help="on digits: 14 steps each")
    parser.add_argument("--cifar_epochs", type=int, default=40, help="on CIFAR-10: 78 steps each")
    parser.add_argument("--runs", type=Path, default=Path("runs/experiments/dot"), help="where the trained stages are kept")
    parser.add_argument("--out", type=Path, default=Path("results/dot.json"))
    arguments = parser.parse_args()
    seeds = list(range(arguments.seeds))
    if arguments.weights:
        data = ImageData(
            f"imagefolder:{arguments.cifar10}", subset=arguments.trained_images, val_subset=5000, augment="cifar", **STATISTICS
        )
        plan = Training(epochs=arguments.cifar_epochs, lr=0.05, weight_decay=5e-4, milestones=(0.62, 0.85))
        name = f"{TRAINED}, {arguments.student.removeprefix('stillroom/')}"
        pair = (f"{NETWORK}:resnet56@{arguments.weights}", arguments.student)
        found = trained_teacher(name, data, plan, pair, (0.05, 0.075), seeds, arguments.runs)
        command = (
            f"python experiments/dot.py --cifar10 cifar10.zip --weights resnet56.safetensors --trained_images {arguments.trained_images}"
        )
        command += f" --cifar_epochs {arguments.cifar_epochs} --seeds {arguments.seeds}"
        command += f" --student {arguments.student}" * (arguments.student != STUDENT)
        told = f"ResNet-56 that somebody trained, eight stored crops of each image -> {arguments.student}"
        told += f"; {arguments.trained_images} train / 5 000 test"
        told += f", 32 x 32, {plan.epochs} epochs of {arguments.trained_images // data.batch_size} steps; DKD grows over {WARMUP:g} epochs"
        said = f"{verdict(name, found, (0.05, 0.075))}."
        write(arguments.out, "dot", command, seeds, found, said, {name: told}, only=True)
        print(arguments.out.read_text())
        return
    # Fewer than some 3 000 steps: the distillation buffer's memory of 1 / (1 - 0.975) = 40 steps and more is long for them, hence 0.05 too.
    deltas = (0.05, 0.075, -0.05)
    plan = Training(epochs=arguments.epochs, lr=0.05, weight_decay=5e-4, milestones=(0.62, 0.85))
    small = "stillroom/convnet24", "stillroom/convnet4"
    found = experiment("digits", ImageData("digits"), plan, small, deltas, seeds, arguments.runs)
    said = [verdict("digits", found, deltas)]
    setting = {"digits": "convnet24 -> convnet4, 900 train / 897 test, 8 x 8", "steps": {"digits": plan.epochs * 14}}
    command = "python experiments/dot.py"
    if arguments.cifar10:
        plan = Training(epochs=arguments.cifar_epochs, lr=0.05, weight_decay=5e-4, milestones=(0.62, 0.85))
        data = ImageData(f"imagefolder:{arguments.cifar10}", image_size=16, subset=5000, val_subset=5000)
        deltas = (0.075, -0.05)
        found |= experiment("CIFAR-10", data, plan, small, deltas, seeds, arguments.runs)
        said.append(verdict("CIFAR-10", found, deltas))
        name, deltas, seeds_of_larger = "CIFAR-10, larger", (0.075,), seeds[: arguments.larger_seeds]
        found |= experiment(name, data, plan, ("stillroom/wrn_16_2", "stillroom/resnet8"), deltas, seeds_of_larger, arguments.runs)
        said.append(verdict(name, found, deltas))
        setting |= {"CIFAR-10": "convnet24 -> convnet4, 5 000 train / 5 000 test, 16 x 16, crops and flips"}
        setting |= {name: "the same, wrn_16_2 -> resnet8"}
        setting["steps"] |= dict.fromkeys(("CIFAR-10", name), plan.epochs * 78)
        command += " --cifar10 cifar10.zip"
        if arguments.larger_seeds != parser.get_default("larger_seeds"):
            command += f" --larger_seeds {arguments.larger_seeds}"
    write(arguments.out, "dot", command, seeds, found, ". ".join(said) + ".", setting)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
