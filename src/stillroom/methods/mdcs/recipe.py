"""MDCS's experiment: the same experts on the same two views with cross-entropy, with the diversity loss alone, and with both terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from stillroom.engine import Experiment, Lab, Networks, Report, Room, Teacher, Trained, Training
from stillroom.engine.report.results import Metric
from stillroom.engine.run.recorder import evaluating
from stillroom.engine.study.space import Float
from stillroom.errors import InputError
from stillroom.methods.mdcs.data import LongTailedImages
from stillroom.methods.mdcs.distiller import MDCS
from stillroom.methods.mdcs.measures import expert_divergence
from stillroom.tasks.classification import Batch, ImageData
from stillroom.tasks.images.networks import ExpertBottleneckResNet

SHORT = Training(epochs=100, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, schedule="cosine", step_per="epoch")


def build(
    student: nn.Module,
    teacher: Teacher | None,
    data: ImageData,
    *,
    lambdas: tuple[float, ...] = (-0.5, 1.0, 2.5),
    ramp_epochs: float = 10,
    **options: Any,
) -> MDCS:
    """The distiller for `data`. There is no teacher: the one that comparisons hand to every method is left alone.

    Args:
        student, teacher, data: what learns, what is left alone, on what.
        lambdas: prior exponent of each expert: below 0 favours classes of many images, 1 is balanced, above 1 favours few-shot classes.
        ramp_epochs: epochs over which the consistency term grows to its weight: the paper's 20 of 400, or a tenth of a short run.
        options: those of `MDCS`.

    Raises:
        InputError: as `MDCS`, or there are not as many exponents as the student has experts.
    """
    made = MDCS(student, class_counts=data.class_counts, lambdas=lambdas, ramp_epochs=ramp_epochs, **options)
    if (experts := _count_experts(student, data)) != len(lambdas):
        raise InputError("lambdas", list(lambdas), f"one number for each of the student's {experts} experts")
    return made


def recipe(
    lab: Lab,
    data: LongTailedImages,
    plan: Training = SHORT,
    student: str = "stillroom/convnet_experts",
    pretrained: str | None = None,
    lambdas: tuple[float, ...] = (-0.5, 1.0, 2.5),
    consistency_weight: float = 0.6,
    **options: Any,
) -> Report:
    """Train a network of experts on unbalanced classes: with cross-entropy, with MDCS's diversity loss, and with MDCS; compare them.

    Args:
        lab, data, plan: where to run, on what, and how to train; see `Room`.
        student: network; one of experts: stillroom/convnet_experts, resnet32_experts (small images), resnet50_experts, resnext50_experts,
            resnet50_experts_full, resnet152_experts_full (photographs), or your own with a method ``experts(images)`` -> [B, E, C].
        pretrained: file of weights of a plain ResNet-50 or ResNet-152 to start a student ending in _full from.
        lambdas: prior exponent of each expert: below 0 favours classes of many images, 1 is balanced, above 1 favours few-shot classes.
        consistency_weight: of the consistency term.
        options: those of `build`.
    """

    def start(fresh: nn.Module) -> nn.Module:
        if pretrained is not None:
            if not isinstance(fresh, ExpertBottleneckResNet):
                raise InputError("student", student, "a ResNet for photographs, such as stillroom/resnet50_experts_full, to be pretrained")
            fresh.load_backbone(pretrained, trust_pickle=lab.options.trust_pickle, argument="pretrained")
        return fresh

    def distiller(fresh: nn.Module, exponents: Sequence[float], share: float) -> MDCS:
        return build(start(fresh), None, data, lambdas=tuple(exponents), consistency_weight=share, **options)

    def trained(name: str, exponents: Sequence[float], share: float) -> Trained:
        return experiment.trained(name, lambda fresh: distiller(fresh, exponents, share))

    experiment = Experiment(lab, data, plan, Networks(student=student))
    experiment.rehearse(lambda fresh, _: distiller(fresh, lambdas, consistency_weight))
    arms = {
        "alone": trained("alone", [0.0] * len(lambdas), 0.0),
        "diverse": trained("diverse", lambdas, 0.0),
        "distilled": trained("distilled", lambdas, consistency_weight),
    }
    for arm in arms.values():
        arm.result.metrics |= _experts_alone(lab, arm, data)
    report = lab.report("mdcs", data, arms)
    report.metric_formats |= _shown(data, len(lambdas))
    report.notes += _notes(data, lambdas)
    return report


def _count_experts(student: nn.Module, data: ImageData) -> int:
    example = data.example_inputs()
    with evaluating(student):
        return int(student.experts(example.to(next(student.parameters(), example).device)).shape[1])  # type: ignore[operator]


def _experts_alone(lab: Lab, arm: Trained, data: LongTailedImages) -> dict[str, float]:
    """Every expert's accuracies on the validation images, in %, and how far the experts are apart (`expert_divergence`), in nats."""
    assert arm.network is not None
    student = arm.network.to(lab.device)
    evaluators = [data.evaluator().to(lab.device) for _ in range(_count_experts(student, data))]
    divergence, count = 0.0, 0
    with evaluating(student):
        for batch in data.eval_loader():
            logits_BEC = student.experts(batch.images.to(lab.device))  # type: ignore[operator]
            on_device = Batch(*(tensor.to(lab.device) for tensor in batch[:3]))
            for expert, evaluator in enumerate(evaluators):
                evaluator.update(logits_BEC[:, expert], on_device)
            if len(evaluators) > 1:
                divergence += float(expert_divergence(logits_BEC).sum())
            count += len(batch.ids)
    student.cpu()
    names = ("top1", *data.groups)
    figures = [evaluator.compute() for evaluator in evaluators]
    return {
        **{f"expert{expert + 1}_{name}": found[name] for expert, found in enumerate(figures) for name in names},
        "expert_divergence": divergence / count,
    }


def _shown(data: LongTailedImages, experts: int) -> dict[str, Metric]:
    """How the report writes what only this method measures."""
    labels = {"top1": "top-1", **{name: f"{name}-shot" for name in data.groups}}
    shown = {name: Metric(label, "%", 1, True) for name, label in labels.items() if name != "top1"}
    for expert in range(1, experts + 1):
        shown |= {f"expert{expert}_{name}": Metric(f"expert {expert} {label}", "%", 1) for name, label in labels.items()}
    return {**shown, "expert_divergence": Metric("divergence of the experts", "nats", 3)}


def _notes(data: LongTailedImages, lambdas: Sequence[float]) -> list[str]:
    """What the rows and columns of the table mean."""
    counts, groups = data.class_counts, data.groups
    sizes = {
        "many": f"more than {data.many_above}",
        "medium": f"{data.few_below} to {data.many_above}",
        "few": f"fewer than {data.few_below}",
    }
    said = "; ".join(f"{name}-shot {int(mask_C.sum())} ({sizes[name]})" for name, mask_C in groups.items())
    return [
        f"Classes have from {int(counts.max())} to {int(counts.min())} training images. Groups of classes by these: {said}. A group's "
        "accuracy is the mean over its classes of the accuracy within each.",
        "All three trainings see the same two views: alone is cross-entropy, diverse the diversity loss, distilled both terms. "
        f"The prior exponents of diverse and distilled are {', '.join(f'{value:g}' for value in lambdas)}, expert by expert.",
    ]


_SGD = {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "schedule": "multistep", "decay": 0.1, "ramp_epochs": 20}
_CIFAR: dict[str, Any] = {
    **_SGD,
    "student": "stillroom/resnet32_experts",
    "batch_size": 64,
    "epochs": 400,
    "lr": 0.1,
    "weight_decay": 5e-4,
    "warmup_epochs": 20,
    "milestones": [200, 320, 380],
    "view_style": "cifar",
    "workers": 4,  # which the views, image by image, keep busy
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.2023, 0.1994, 0.2010],
}
_PHOTOGRAPHS: dict[str, Any] = {
    **_SGD,
    "student": "stillroom/resnet50_experts",
    "image_size": 224,
    "augment": "imagenet",
    "epochs": 400,
    "view_style": "imagenet",
}
PRESETS = {
    "paper": {**_CIFAR, "data": "cifar100:data/cifar100,imbalance=exp:100"},
    "paper:cifar10": {**_CIFAR, "data": "cifar10:data/cifar10,imbalance=exp:100"},
    "paper:imagenet-lt": {
        **_PHOTOGRAPHS,
        "data": "imagefolder:data/imagenet-lt",
        "batch_size": 256,
        "lr": 0.1,
        "weight_decay": 5e-4,
        "schedule": "cosine",
    },
    "paper:inaturalist": {
        **_PHOTOGRAPHS,
        "data": "imagefolder:data/inaturalist2018",
        "batch_size": 512,
        "lr": 0.2,
        "weight_decay": 2e-4,
        "warmup_epochs": 5,
        "milestones": [200, 300, 380],
    },
    "paper:places-lt": {
        **_PHOTOGRAPHS,
        "data": "imagefolder:data/places-lt",
        "student": "stillroom/resnet152_experts_full",
        "pretrained": "data/resnet152.pth",
        "batch_size": 64,
        "lr": 0.01,
        "backbone_lr": 0.001,
        "weight_decay": 4e-4,
        "milestones": [10, 20],
        "epochs": 30,
    },
}

ROOM = Room(
    recipe,
    tasks=("classification",),
    presets=PRESETS,
    expect="On these digits +5.2 +- 1.3 points over cross-entropy (3 seeds), on a long tail of CIFAR-10 +12.3 +- 1.9, "
    "all of it by its diversity loss; the paper sees the consistency term add to it.",
    build=build,
    space={"consistency_weight": Float(0.06, 6.0, log=True), "temperature": Float(0.5, 4.0, log=True)},
)
