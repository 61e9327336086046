"""TinyCLIP's experiment: a CLIP, a small one trained without it, and those that inherit from it by a fixed rule or by learned masks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from stillroom.engine import Distiller, Experiment, Lab, Networks, Report, Room, Teacher, Trained, Training
from stillroom.engine.task import WARNING
from stillroom.errors import InputError, one_of
from stillroom.methods.tinyclip.distiller import SCALE, Features, Masking, TinyCLIP
from stillroom.methods.tinyclip.inheritance import inherit, pruned, widen
from stillroom.methods.tinyclip.masks import TowerMasks
from stillroom.modules.clip import Clip, ClipShape, ImageTower, TowerShape
from stillroom.modules.clip_resnet import CELL, ResNetShape
from stillroom.tasks.images.clips import names_clip, read_clip
from stillroom.tasks.imagetext import LAION, SMALL, ImageTextData, Supervised
from stillroom.tasks.imagetext.models import name_of, shape_named
from stillroom.tasks.imagetext.task import TASK

NETWORKS = replace(TASK.networks, student="")
ARMS = ("alone", "affinity", "manual", "auto", "features", "contrast")
_MASK_RATE, _LEAST, _MOST = 20.0, 0.02, 0.2  # a mask's way from kept to dropped takes Adam some 9 / rate steps: 20 / steps is enough
_RAMP = 1000  # steps at most
_NEAR = 0.1  # share of the blocks' weights that the masks may keep beyond what was asked, without a word


def recipe(
    lab: Lab,
    data: ImageTextData,
    plan: Training = SMALL,
    networks: Networks = NETWORKS,
    arms: str = "alone+manual+auto",
    targets: tuple[float, ...] = (0.5,),
    via: tuple[str, ...] = (),
    scale: float | None = SCALE,
    affinity_share: float = 1.0,
    mask_steps: int | None = None,
    mask_lr: float | None = None,
    sparsity_ramp: int | None = None,
    two_sided: bool = False,
    joint: bool = True,
) -> Report:
    """Shrink a CLIP: by a fixed rule, or by masks that are learnt; compared with a small one that is trained without it.

    Args:
        lab: where and how to run.
        data: pairs of images and texts.
        plan: how the networks are trained.
        networks: which they are: the teacher a CLIP at hand (a folder, a file, a run), or one by name, which is trained first; the student
            by default what `targets` leave of the teacher, narrower and as deep.
        arms: of the experiment, besides the teacher: ``alone``, the student by the contrastive loss; ``affinity``, from random numbers
            as well, on the teacher's affinities; ``manual``, with the teacher's leading heads and channels; ``auto``, with what learned
            masks leave of transformers; for comparison ``features``, as manual but on the teacher's embeddings, and ``contrast``, as manual
            but by the contrastive loss. The last one is shipped.
        targets: shares of the towers' blocks that auto drops, one after the other: ``[0.5, 0.75]`` are two stages, which share the epochs.
        via: students between, for manual: each inherits from the one before, and they share the epochs.
        scale: gamma of both models, fixed; none to learn the student's.
        affinity_share: alpha, of the affinity mimicking; the rest is the contrastive loss.
        mask_steps: steps before the cut, of those of a stage; by default half of them.
        mask_lr: learning rate of the masks and of their multipliers; by default by the steps, from 0.02 for 1 000 to 0.2 for 100.
        sparsity_ramp: steps over which the sparsity that is wanted rises; by default half of mask_steps, 1 000 at most.
        two_sided: pull the sparsity to its target from above, too, as the paper has it.
        joint: one sparsity of both towers; else each has its own.
    """
    chosen = arms.split("+")
    for named in chosen:
        one_of("arms", named, ARMS)
    if any(not 0 < target < 1 for target in targets) or list(targets) != sorted(set(targets)) or not targets:
        raise InputError("targets", targets, "shares above 0 and below 1, each above the one before")
    if names_clip(networks.teacher):
        opened = read_clip(networks.teacher, trust_pickle=lab.options.trust_pickle, argument="teacher")
        data = data.as_read_by(opened)
    experiment = Experiment(lab, data, plan, networks)
    shape = _clip_of(experiment.network(networks.teacher, "teacher").network).shape
    if not networks.student:
        experiment.networks = replace(networks, student=name_of(half_shape(shape, targets[-1])))
    own: dict[str, Any] = {"scale": scale, "affinity_share": affinity_share}
    masking: dict[str, Any] = {"two_sided": two_sided, "joint": joint, **own}
    steps = _Steps(data, plan, len(targets), mask_steps, mask_lr, sparsity_ramp)

    def arm(name: str, source: Clip | None = None) -> Callable[[Any, Any], Distiller]:
        """Makes the distiller of an arm; `source`: whom it inherits from, where that is not the teacher."""

        def make(student: Clip, teacher: Teacher) -> Distiller:
            large = _clip_of(teacher.networks[0])
            if name == "auto":
                full = copy.deepcopy(large)
                masks = TowerMasks(full.shape.image), TowerMasks(full.shape.text)
                return Masking(full, teacher, masks, start=0.0, target=targets[0], ramp=steps.ramp, mask_lr=steps.mask_lr, **masking)
            if name in ("manual", "features", "contrast"):
                inherit(source or large, student)
            if name in ("alone", "contrast"):
                return Supervised(student)
            return Features(student, teacher, scale=scale) if name == "features" else TinyCLIP(student, teacher, **own)

        return make

    experiment.rehearse(*(arm(name) for name in chosen))
    stages: dict[str, Trained] = {"teacher": experiment.teacher()}
    teacher = lab.teach(stages["teacher"])
    for name in chosen:
        if name == "auto":
            stages[name] = _by_masks(lab, teacher, targets, steps, masking, own)
        elif name == "manual" and via:
            stages[name] = _by_steps(experiment, data, via, teacher, arm)
        else:
            stages[name] = experiment.distilled(name, arm(name))
    stages = {name: _told(stage, stages["teacher"], name) for name, stage in stages.items()}
    return lab.report("tinyclip", data, stages, baseline="alone" if "alone" in chosen else None, ship=chosen[-1])


# Manual ---------------------------------------------------------------------------------------------------------------------------------


def half_shape(shape: ClipShape, target: float) -> ClipShape:
    """A CLIP as deep as this one whose blocks have about `target` less in them: fewer heads of the same width, and as many neurons to a
    channel as before; a ResNet with fewer channels everywhere."""

    def narrower(tower: TowerShape) -> TowerShape:
        if not tower.even:
            raise InputError("teacher", f"a tower with {tower.heads} heads and {tower.neurons} neurons", "one whose layers are all alike")
        heads = max(1, round(tower.heads[0] * math.sqrt(1 - target)))
        width, ratio = heads * tower.head_width, tower.neurons[0] / tower.width
        return TowerShape.of(width, tower.layers, heads, round(ratio * width))

    if not isinstance(shape.image, ResNetShape):
        return replace(shape, image=narrower(shape.image), text=narrower(shape.text))
    unit = math.lcm(2, shape.image.head_width // math.gcd(shape.image.head_width, CELL))  # by which a width's heads are whole
    width = max(1, round(shape.image.width * math.sqrt(1 - target) / unit)) * unit
    return replace(shape, image=replace(shape.image, width=width), text=narrower(shape.text))


def _by_steps(experiment: Experiment, data: ImageTextData, via: tuple[str, ...], teacher: Teacher, arm: Callable[..., Any]) -> Trained:
    """Manual inheritance in stages: each student inherits from the one before; who teaches is always the large one."""
    lab, plan, last = experiment.lab, experiment.plan, experiment.networks.student
    epochs, rest = divmod(plan.epochs, len(via) + 1)
    if not epochs:
        raise InputError("via", f"{len(via)} stages between", f"at most as many as there are epochs, {plan.epochs}")
    source, stage = _clip_of(teacher.networks[0]), None
    for number, spec in enumerate((*via, last)):
        student = Clip(shape_named(spec, data, "via"))
        made = arm("manual", source)(student, teacher)
        final = number == len(via)
        name = "manual" if final else f"manual-{number + 1}"
        shorter = replace(plan, epochs=epochs + rest * final, warmup_epochs=min(plan.warmup_epochs, epochs / 2))
        stage = lab.fit(made, data, shorter, name=name, model=name_of(student.shape))
        source = student
    assert stage is not None
    return stage


# Automatic ------------------------------------------------------------------------------------------------------------------------------


class _Steps:
    """How long the phases of automatic inheritance are: as many steps as the other arms have, shared by all stages and phases.

    The engine counts epochs: a mask phase is so many whole ones as come nearest to what was asked for. Where that is less than one, it is
    an epoch of part of the images, and each epoch behind the cut leaves out some, too.

    Args:
        data, plan: of the whole arm.
        stages: that share its epochs.
        mask_steps, mask_lr, ramp: as the recipe's.

    Raises:
        InputError: there is no room for two phases of every stage.
    """

    def __init__(
        self, data: ImageTextData, plan: Training, stages: int, mask_steps: int | None, mask_lr: float | None, ramp: int | None
    ) -> None:
        per_epoch, epochs = max(1, data.train_size // data.batch_size), plan.epochs // stages
        asked = max(1, epochs * per_epoch // 2) if mask_steps is None else mask_steps
        masked = round(asked / per_epoch)
        self.steps = masked * per_epoch or asked
        left = epochs * per_epoch - self.steps
        if asked < 1 or left < 1:
            whole = f"{plan.epochs} epochs of {per_epoch} steps{f' in {stages} stages' if stages > 1 else ''}"
            raise InputError("mask_steps", asked, f"steps that leave some for after the cut, of {whole}")
        self.mask_lr = min(_MOST, max(_LEAST, _MASK_RATE / self.steps)) if mask_lr is None else mask_lr
        self.ramp = min(_RAMP, self.steps // 2) if ramp is None else ramp
        self.masked = data if masked else data.first(asked * data.batch_size)
        self.mask_plan = replace(plan, epochs=max(1, masked), warmup_epochs=0.0)
        self.data = data if masked else data.first(-(-left // epochs) * data.batch_size)
        self.plan = replace(plan, epochs=epochs - masked, warmup_epochs=0.0)


def _by_masks(
    lab: Lab, teacher: Teacher, targets: tuple[float, ...], steps: _Steps, masking: dict[str, Any], own: dict[str, Any]
) -> Trained:
    """Automatic inheritance: in each stage a mask phase, the cut, and training of what is left with a new optimiser.

    Each phase is a stage of the Lab: a run that is killed goes on from its last checkpoint on either side of a cut, which follows from the
    masks alone.
    """
    large = _clip_of(teacher.networks[0])
    small, stage, start = None, None, 0.0
    missed: list[str] = []
    for number, target in enumerate(targets):
        name = "auto" if number == len(targets) - 1 else f"auto-{number + 1}"
        full, masks = copy.deepcopy(large), (TowerMasks(large.shape.image), TowerMasks(large.shape.text))
        if small is not None:
            widen(small.state_dict(), full)
            for tower, shape in zip(masks, small.shape.transformers, strict=True):
                tower.start_from(shape)
        made = Masking(full, teacher, masks, start=start, target=target, ramp=steps.ramp, mask_lr=steps.mask_lr, **masking)
        masked = lab.fit(made, steps.masked, steps.mask_plan, name=f"{name}-masks", model=f"{name_of(full.shape)} (under masks)")
        small = pruned(full, masks[0].decide(), masks[1].decide())
        score = masked.result.metrics["I2T@1"]
        gone = 1 - share(small, large)
        left = f"{1 - gone:.0%} of the blocks' weights, of which {target:.0%} were to go"
        if gone < target - _NEAR:
            missed.append(
                f"{WARNING}{name}: {gone:.0%} of the blocks' weights were cut, not {target:.0%}: masks fall slowly, and {steps.steps} "
                "steps of them were too few (--epochs, --mask-steps), or their rate too low (--mask-lr)."
            )
            lab.say(name, missed[-1])
        origin = f"what the masks leave: {left}; before the cut image → text R@1 {score:.1f}"
        stage = lab.fit(TinyCLIP(small, teacher, **own), steps.data, steps.plan, name=name, model=name_of(small.shape), origin=origin)
        start = target
    assert stage is not None
    return replace(stage, notes=(*stage.notes, *missed))


def share(small: Clip, large: Clip) -> float:
    """The blocks' weights of one model as a part of another's; a ResNet counts as a whole."""

    def size(clip: Clip) -> int:
        image = clip.visual.transformer if isinstance(clip.visual, ImageTower) else clip.visual
        return sum(parameter.numel() for part in (image, clip.text.transformer) for parameter in part.parameters())

    return size(small) / size(large)


# ----------------------------------------------------------------------------------------------------------------------------------------


def _clip_of(network: nn.Module | None) -> Clip:
    if not isinstance(network, Clip):
        raise InputError("teacher", type(network).__name__, "a CLIP")
    return network


def _told(stage: Trained, teacher: Trained, name: str) -> Trained:
    """With a note on how much is left of the teacher."""
    if name == "teacher":
        return stage
    left = share(_clip_of(stage.network), _clip_of(teacher.network))
    return replace(stage, notes=(*stage.notes, f"{name}: {left:.0%} of the weights of the teacher's blocks."))


PAPER: dict[str, Any] = {**LAION, "arms": "manual+auto", "mask_steps": 3000, "mask_lr": 0.02, "sparsity_ramp": 1000}

ROOM = Room(
    recipe,
    tasks=("imagetext",),
    presets={"paper": PAPER},
    default={"teacher_epochs": 7},
    expect="After some 200 steps on drawn pairs half of the teacher, picked by learned masks, finds far more captions than a student from "
    "random numbers (+53.0 +- 3.6 points of R@1, 3 seeds) and more than half of it picked by a rule (+4.9 +- 1.2), as the paper says.",
    reason="makes its students from the teacher's own weights",
)
