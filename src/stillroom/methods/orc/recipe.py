"""ORC's experiment: the pivot, the student alone, with KD from the frozen pivot, and in ORC's group of networks."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from stillroom import catalog
from stillroom.engine import Distiller, Experiment, Lab, Networks, Report, Room, Teacher, Trained, Training
from stillroom.engine.report.results import Metric
from stillroom.engine.study.space import Float
from stillroom.errors import InputError
from stillroom.methods.orc.distiller import ORC
from stillroom.tasks.classification import CIFAR100, DIGITS, IMAGENET, SHAPES, TASK, ImageData

NETWORKS = Networks("stillroom/convnet16", "stillroom/convnet6")
GROUP = "stillroom/convnet12,stillroom/convnet9"


def build(
    student: nn.Module,
    teacher: Teacher,
    data: ImageData,
    *,
    group: list[str] | str = GROUP,
    **options: Any,
) -> ORC:
    """The distiller for `data`; its pivot is a copy of the teacher's network.

    Args:
        student, teacher, data: the target, the pivot as it is given, and on what they learn.
        group: the other networks of the student group, of sizes between the two: ``stillroom/convnet12,stillroom/convnet9`` or a list.
        options: those of `ORC`.

    Raises:
        InputError: as `ORC`; the teacher is an ensemble or a cache, or a network of the group has other classes than the data.
    """
    specs = specs_of(group)
    members = [TASK.build(spec, data, TASK.networks, trust_pickle=False, argument="group").network for spec in specs]
    return _around(student, teacher, specs, members, **options)


def recipe(
    lab: Lab,
    data: ImageData,
    plan: Training = DIGITS,
    networks: Networks = NETWORKS,
    group: list[str] | str = GROUP,
    balance: float = 0.9,
    temperature: float = 4.0,
    **options: Any,
) -> Report:
    """Train (or load) a pivot teacher, a student alone, the student with KD from the frozen pivot, and the student in ORC's group.

    Args:
        lab: where and how to run.
        data: the images.
        plan: how the networks are trained; the pivot is trained further with a smaller learning rate, see `pivot_lr_factor`.
        networks: the teacher is the pivot, the student the target: the network that is delivered.
        group: the other networks of the student group, of sizes between the two: ``stillroom/convnet12,stillroom/convnet9`` or a list.
        balance: beta, balance of the labels (1 - beta) and the teachers (beta), from 0 to 1; KD's, too.
        temperature: temperature of softened class probabilities, T > 0; KD's, too.
        options: those of `ORC`.
    """
    specs = specs_of(group)

    def kd(fresh: nn.Module, taught: Teacher) -> Distiller:
        hosted = catalog.load("kd").build
        assert hosted is not None
        return hosted(fresh, taught, data, temperature=temperature, task_weight=1 - balance, kd_weight=balance)

    def orc(fresh: nn.Module, taught: Teacher) -> ORC:
        members = [experiment.network(spec, "group").network for spec in specs]
        trained.append(_around(fresh, taught, specs, members, balance=balance, temperature=temperature, **options))
        return trained[-1]

    experiment = Experiment(lab, data, plan, networks)
    trained: list[ORC] = []
    experiment.rehearse(orc)
    taught, alone = experiment.teacher(), experiment.alone()
    by_kd, by_orc = experiment.distilled("kd", kd), experiment.distilled("orc", orc)
    scored = _score_group(lab, data, by_orc, trained[-1], [*specs, taught.result.model])
    report = lab.report("orc", data, {"teacher": taught, "alone": alone, "kd": by_kd, "orc": by_orc}, baseline="kd", ship="orc")
    report.metric_formats |= {
        name: Metric(name, "%", 1, True if "top-1" in name else None) for name in by_orc.result.metrics if " of " in name
    }
    report.notes.append(_note(lab, data, by_orc, trained[-1], scored))
    return report


def specs_of(group: list[str] | str) -> list[str]:
    """The specifications in a list, or in words with commas between them."""
    return [spec.strip() for spec in group.split(",") if spec.strip()] if isinstance(group, str) else list(group)


def resnet26(num_classes: int) -> nn.Module:
    """ResNet34's blocks, 3, 3, 3 and 3 of them."""
    return ResNet(BasicBlock, [3, 3, 3, 3], num_classes=num_classes)


def resnet22(num_classes: int) -> nn.Module:
    """ResNet34's blocks, 2, 3, 3 and 2 of them."""
    return ResNet(BasicBlock, [2, 3, 3, 2], num_classes=num_classes)


def _around(student: nn.Module, teacher: Teacher, specs: Sequence[str], members: Sequence[nn.Module], **options: Any) -> ORC:
    pivot = copy.deepcopy(teacher.networks[0])  # a cache says here that it has none
    if len(teacher.networks) > 1:
        raise InputError("teacher", f"an ensemble of {len(teacher.networks)} networks", "a single network: ORC trains it further")
    return ORC(student, pivot, members, names=[*_names(specs), "target"], renormalise=teacher.renormalise, **options)


def _names(specs: Sequence[str]) -> list[str]:
    """A short name for each, different from the others' and fit for a folder."""
    names: list[str] = []
    for spec in specs:
        short = re.sub(r"[^\w.+-]", "_", spec.partition("@")[0].rstrip("/").rpartition("/")[2])
        taken = {*names, "target", "pivot"}
        names.append(next(name for i in range(1, len(taken) + 2) if (name := f"{short}-{i}" if i > 1 else short) not in taken))
    return names


def _score_group(lab: Lab, data: ImageData, stage: Trained, distiller: ORC, specs: Sequence[str]) -> dict[str, Trained]:
    """The networks beside the target as the stage left them, each scored, and kept as a stage of its own.

    Their accuracies, and how often each network was promoted, join the stage's metrics.
    """
    scored = {}
    for (name, member), spec in zip(distiller.companions().items(), specs, strict=True):
        renormalise = distiller.renormalise if name == "pivot" else None
        scored[name] = lab.evaluate(member, data, name=f"orc-{name}", model=spec, renormalise=renormalise)
        stage.result.metrics[f"top-1 of {name}"] = scored[name].result.metrics["top1"]
    for name in distiller.names:
        stage.result.metrics[f"promotions of {name}"] = 100 * fmean(row[f"train/promoted/{name}"] for row in stage.result.history)
    return scored


def _note(lab: Lab, data: ImageData, stage: Trained, distiller: ORC, scored: dict[str, Trained]) -> str:
    """Who was promoted, which network came out best, and what became of the pivot."""
    metrics, history = stage.result.metrics, stage.result.history
    steps = len(history) * len(data.train_loader(seed=lab.seed))
    promoted = ", ".join(f"{name} {round(metrics[f'promotions of {name}'] / 100 * steps)}" for name in distiller.names)
    top1 = {name: trained.result.metrics["top1"] for name, trained in scored.items() if name != "pivot"} | {"target": metrics["top1"]}
    best = max(top1, key=top1.__getitem__)
    folder = stage.folder if best == "target" else scored[best].folder
    first, last = (history[i]["train/confidence/pivot"] for i in (0, -1))
    return (
        f"Seed {lab.seed}: temporary teacher in {steps} iterations: {promoted}. Best of the student group: {best}, {top1[best]:.1f} % "
        f"({folder.relative_to(lab.folder)}/student.safetensors). The pivot ended at {metrics['top-1 of pivot']:.1f} %, its mean "
        f"confidence on training images at the temperature of the distillation at {last:.2f} (in the first epoch {first:.2f})."
    )


_CIFAR10: dict[str, Any] = {
    **CIFAR100,
    "data": "cifar10:data/cifar10",
    "teacher": "stillroom/resnet26",
    "student": "stillroom/resnet8",
    "group": "stillroom/resnet20,stillroom/resnet14",
    "pivot_lr_factor": 0.1,
}
PRESETS = {
    "paper": _CIFAR10,
    # The numbers of the same laboratory's earlier code: evidence by relation only, since neither paper nor code of ORC's gives any.
    "paper:cifar10": {
        **_CIFAR10,
        "temperature": 5.0,
        "epochs": 160,
        "batch_size": 128,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "milestones": [80, 120],
    },
    "paper:cifar100": {
        **CIFAR100,
        "teacher": "stillroom/resnet56",
        "student": "stillroom/resnet20",
        "group": "stillroom/resnet44,stillroom/resnet32",
        "pivot_lr_factor": 0.1,
    },
    "paper:imagenet": {
        **IMAGENET,
        "group": "stillroom.methods.orc.recipe:resnet26,stillroom.methods.orc.recipe:resnet22",  # torchvision has no depth between the two
        "batch_size": 256,
        "lr": 0.1,
        "balance": 0.5,
        "temperature": 1.0,
        "pivot_lr_factor": 0.1,
    },
}

ROOM = Room(
    recipe,
    tasks=("classification",),
    presets=PRESETS,
    default={**SHAPES, "seeds": 3, "group": "stillroom/convnet16"},
    expect="ORC gives +8.8 +- 1.6 points over the student alone (3 seeds), since the teacher was trained on ten times as many "
    "pictures, but -8.8 +- 1.4 against plain KD from it; the paper sees it above KD after schedules that are hundreds of "
    "times as long.",
    build=build,
    space={"balance": Float(0.1, 0.99), "temperature": Float(1.0, 16.0, log=True)},
)
