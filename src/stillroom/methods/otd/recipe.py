"""OTD's experiment: source and few labels alone, and what pseudo labels, the two streams and history add to them."""

from __future__ import annotations

from typing import Any

from torch import nn

from stillroom.engine import Experiment, Lab, Networks, Report, Room, Training
from stillroom.errors import InputError
from stillroom.methods.otd.data import DomainData
from stillroom.methods.otd.distiller import OTD

ALONE, METHOD = "alone", "otd"
# What each arm leaves out.
ARMS: dict[str, tuple[str, ...]] = {
    ALONE: ("mixing",),
    "mixing": ("domain", "classes", "history"),
    "domain": ("classes", "history"),
    "streams": ("history",),
    METHOD: (),
    "unprojected": ("projection",),
}
SMALL = Training(epochs=5, optimizer="adam", lr=3e-3, weight_decay=0.0, schedule="cosine")


def recipe(
    lab: Lab,
    data: DomainData,
    plan: Training = SMALL,
    student: str = "stillroom/nuclei8_3",
    arms: str = "alone+mixing+otd",
    **options: Any,
) -> Report:
    """Carry a network for nuclei to another stain and finer classes, by a few labelled pictures and its own gradients.

    Args:
        lab: where and how to run.
        data: both domains.
        plan: how each arm is trained.
        student: network, optionally with weights after ``@``.
        arms: of the experiment, the first is the baseline, the last is shipped: ``alone`` (source and few), ``mixing`` (and pseudo labels
            mixed with the few's nuclei), ``domain`` (and the stream from source to target), ``streams`` (and that from reliable to new
            classes), ``otd`` (and history), ``unprojected`` (otd without subspaces of moments).
        options: those of `OTD`.
    """
    wanted = [arm.strip() for arm in arms.split("+")]
    if len(set(wanted)) < len(wanted) or not set(wanted) <= set(ARMS):
        raise InputError("arms", arms, f"some of {'+'.join(ARMS)}, each once")

    def make(network: nn.Module, without: tuple[str, ...]) -> OTD:
        return OTD(network, data.taxonomy, without=without, **options)

    experiment = Experiment(lab, data, plan, Networks(student=student))
    makes = {arm: lambda network, _=None, without=ARMS[arm]: make(network, without) for arm in wanted}
    made: list[Any] = experiment.rehearse(*makes.values())
    lab.say(METHOD, f"gradient banks take at most {max(one.bank_bytes for one in made) / 1e6:.1f} MB")
    notes = []
    if not (data.taxonomy.new and data.taxonomy.reliable):
        notes.append("No class is new, or none is reliable: the stream between classes is left out.")
    stages = {arm: experiment.trained(arm, one) for arm, one in makes.items()}
    report = lab.report(METHOD, data, stages, baseline=wanted[0] if len(wanted) > 1 else None, ship=wanted[-1])
    report.notes += notes
    return report


# Drawn nuclei: banks that have subspaces within so short a run.
DRAWN = {"refresh_capacities": 2, "history_capacity": 60}

# The setting of the released code: patches of PanNuke and Lizard.
PRESETS = {
    "paper": {
        "source": "pannuke:data/pannuke",
        "target": "lizard:data/lizard",
        "taxonomy": "data/lizard_to_pannuke.yaml",
        "few": "data/lizard_30shot.txt",
        "new_classes": "neutrophil+plasma+eosinophil",
        "student": "stillroom/hovernet",
        "arms": "alone+mixing+domain+streams+otd",
        "image_size": 128,
        "batch_size": 4,
        "augment": "stain",
        "epochs": 15,
        "optimizer": "adam",
        "lr": 1e-4,
        "weight_decay": 0.0,
        "schedule": "multistep",
        "milestones": [15],
        "warmup_epochs": 0.0,
    }
}

ROOM = Room(
    recipe,
    tasks=("nuclei",),
    presets=PRESETS,
    default={**DRAWN, "target": "drawn:domain=target,val=100", "source": "drawn:domain=source,train=280", "batch_size": 4},
    expect="Mixing pseudo labels with the few's nuclei was +38.2 +- 15.0 points of Dice of classes over source and few alone on such "
    "nuclei (3 seeds). Of OTD over mixing, at weights of its streams that are a hundred times the default's, three seeds cannot tell: "
    "-2.8 +- 2.5 points.",
    reason="carries a network from one data set to another: its arms are an experiment of their own",
)
