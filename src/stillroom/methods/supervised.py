"""Plain training on labels: the yardstick of every other method, and a way to make a teacher."""

from __future__ import annotations

from stillroom.engine import Lab, Report, Training
from stillroom.tasks.classification import CIFAR100, DIGITS, IMAGENET, TINY_IMAGENET, ImageData, supervised_stage


def recipe(lab: Lab, data: ImageData, plan: Training = DIGITS, student: str = "stillroom/convnet4") -> Report:
    """Train one network on labels alone.

    Args:
        lab: where and how to run.
        data: the images.
        plan: how the network is trained.
        student: network, optionally with weights after ``@`` to start from.
    """
    alone = supervised_stage(lab, data, plan, student)
    return lab.report("supervised", data, {"alone": alone}, ship="alone")


def _without_teacher(preset: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in preset.items() if name != "teacher"}


PRESETS = {
    "paper": _without_teacher(CIFAR100),
    "paper:tiny-imagenet": _without_teacher(TINY_IMAGENET),
    "paper:imagenet": _without_teacher(IMAGENET),
}
