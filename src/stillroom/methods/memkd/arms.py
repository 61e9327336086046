"""The arms of the experiment: what each one's student is, what it minimises, and how its maps are made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from stillroom.engine import Training
from stillroom.errors import arms_of
from stillroom.methods.memkd.loss import Distillation
from stillroom.methods.memkd.networks import Between, Variant
from stillroom.tasks.anomaly.maps import MapOptions


@dataclass(frozen=True)
class Arm:
    """One way to train and to use a student.

    Attributes:
        said: what it is, in words.
        between: what stands between the student's stages.
        memorises: whether the memories have losses of their own, L_NM and L_ORTH.
        variant, kd, plan, maps: where they are not those that were asked for: of a published method, its own.
    """

    said: str
    between: Between = "nothing"
    memorises: bool = False
    variant: Variant | None = None
    kd: Distillation | None = None
    plan: dict[str, Any] | None = None
    maps: dict[str, Any] | None = None

    def training(self, plan: Training) -> Training:
        """How it is trained, where the others are trained by `plan`: as long."""
        return plan if self.plan is None else replace(plan, **self.plan)

    def map_options(self, asked: MapOptions) -> MapOptions:
        """How its maps are made, where the others' are made as was asked."""
        return asked if self.maps is None else replace(asked, **self.maps)


MEMKD = "memkd"
ARMS = {
    "plain": Arm("the same student without memories"),
    "dup": Arm("each map concatenated to itself: convolutions as wide as MemKD's", between="copy"),
    "unmemorised": Arm("memories without losses of their own", between="memory"),
    "stfpm": Arm(
        "STFPM: a forward student, squared distance of normalised maps, SGD, product of the levels without blur",
        variant="forward",
        kd="squared",
        plan={"optimizer": "sgd", "lr": 0.4, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "constant"},
        maps={"combine": "product", "blur": 0.0},
    ),
    "rd4ad": Arm(
        "reverse distillation: one cosine per level and image, Adam at a constant rate, corners aligned",
        variant="reverse",
        kd="flat",
        plan={"optimizer": "adam", "lr": 0.005, "momentum": 0.5, "weight_decay": 0.0, "schedule": "constant"},
        maps={"align_corners": True},
    ),
    MEMKD: Arm("MemKD", between="memory", memorises=True),
}


def named_arms(text: str) -> dict[str, Arm]:
    """The arms of ``plain+dup+memkd``, in that order.

    Raises:
        InputError: an arm that there is not, or one twice.
    """
    return {name: ARMS[name] for name in arms_of(text, ARMS)}
