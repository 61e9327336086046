"""Classification as a task: its default job, the papers' settings, and what the Lab and the commands ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from stillroom.engine import Distiller, Networks, Report, Training
from stillroom.engine.answers import AsLogits, looks_like_probabilities
from stillroom.engine.inference.fidelity import CLASSES
from stillroom.engine.inference.network import FileNetwork
from stillroom.engine.report.results import Section, StageResult
from stillroom.engine.task import WARNING, Built, FindLayer, Usual
from stillroom.errors import InputError
from stillroom.modules.projectors import probing
from stillroom.tasks.classification import loaded
from stillroom.tasks.classification.data import ImageData
from stillroom.tasks.classification.doubts import doubts
from stillroom.tasks.classification.metrics import agreement
from stillroom.tasks.classification.networks import ClassifierNetworks
from stillroom.tasks.classification.pages import classification_sections, confusion_sections, one_answer
from stillroom.tasks.classification.supervised import Supervised
from stillroom.tasks.images import delivered
from stillroom.tasks.images.architectures import PRETRAINED
from stillroom.tasks.images.cached import check_views, random_views
from stillroom.tasks.images.candidates import CLASSIFIERS, students_of
from stillroom.tasks.images.classifiers import build_classifier, configurations
from stillroom.tasks.images.configurations import class_names
from stillroom.tasks.images.file_networks import of_file
from stillroom.tasks.images.first_layers import parts_of
from stillroom.tasks.images.foreign import teacher_inputs
from stillroom.tasks.images.layers import middle_layer, pooled_layer
from stillroom.tasks.images.page_parts import data_section

# Where data are named and nothing else: on scikit-learn's digits some 1 500 steps. The paper of DOT sees its effect only once the longer
# memory has filled.
DIGITS = Training(epochs=100, lr=0.05, weight_decay=5e-4, milestones=(0.62, 0.85))

CONVNETS = ClassifierNetworks("stillroom/convnet24", "stillroom/convnet4")

# The default job: few drawn pictures, whose classes resemble one another, and a teacher that has seen ten times as many. Chosen on
# pictures of another seed (shapes,seed=1); docs/methods/kd.md lists what was tried.
SHAPES: dict[str, Any] = {
    "data": "shapes,train=20,teacher=200",
    "augment": "none",
    "teacher": "stillroom/convnet24",
    "teacher_epochs": 6,
    "teacher_lr": 0.2,
    "student": "stillroom/convnet12",
    "epochs": 30,
    "lr": 0.4,
    "schedule": "onecycle",
}

# The DOT specification's three rows; most papers on CIFAR-100 share the first.
CIFAR100: dict[str, Any] = {
    "data": "cifar100:data/cifar100",
    "teacher": "stillroom/resnet32x4",
    "student": "stillroom/resnet8x4",
    "batch_size": 64,
    "epochs": 240,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "multistep",
    "milestones": [150, 180, 210],
    "decay": 0.1,
}
TINY_IMAGENET: dict[str, Any] = {
    **CIFAR100,
    "data": "tiny-imagenet:data/tiny-imagenet-200",
    "teacher": "torchvision/resnet18",
    "student": "stillroom/mobilenetv2_tiny",
    "batch_size": 256,
    "epochs": 200,
    "lr": 0.2,
    "milestones": [60, 120, 160],
}
IMAGENET: dict[str, Any] = {
    **CIFAR100,
    "data": "imagenet:data/imagenet",
    "teacher": "torchvision/resnet34@pretrained",
    "student": "torchvision/resnet18",
    "batch_size": 512,
    "epochs": 100,
    "lr": 0.2,
    "weight_decay": 1e-4,
    "milestones": [30, 60, 90],
}

# A folder of photos with a few classes and a teacher that brings ImageNet's weights: docs/photos.md has what was tried.
PHOTOS: dict[str, Any] = {
    "student": "first:teacher",
    "batch_size": 32,
    "epochs": 12,
    "optimizer": "adamw",
    "lr": 0.002,
    "weight_decay": 0.05,
    "schedule": "cosine",
    "teacher_epochs": 8,
    "teacher_lr": 0.003,
}


_LOOKED_AT = 8  # images
_RESAMPLED = "resampled"  # in notes on weights that were made for other sizes of images


def _unsure_order(classes: Sequence[str]) -> str:
    """The first of classes that are all numbers and not in the order of numbers; nothing of others."""
    if not all(name.isdecimal() for name in classes) or sorted(classes, key=int) == list(classes):
        return ""
    return ", ".join(classes[:4]) + (", ..." if len(classes) > 4 else "")


class Classification(Usual):
    """Images of one class each; see `engine.task.Task`."""

    name = "classification"
    data = ImageData
    plan = DIGITS
    sgd = DIGITS
    networks = CONVNETS
    presets: Mapping[str, Mapping[str, Any]] = {
        "paper": CIFAR100,
        "paper:tiny-imagenet": TINY_IMAGENET,
        "paper:imagenet": IMAGENET,
        "photos": PHOTOS,
    }
    default = SHAPES
    students = CLASSIFIERS
    students_of = staticmethod(students_of)
    parts_of = staticmethod(parts_of)
    layers: Mapping[str, FindLayer] = {"middle": middle_layer, "pooled": pooled_layer}
    by_engine = CLASSES
    deliver = staticmethod(delivered.deliver)
    views = staticmethod(random_views)
    check_cache = staticmethod(check_views)
    load = staticmethod(loaded.load)

    def build(self, spec: str, data: ImageData, networks: Networks, *, trust_pickle: bool, argument: str) -> Built:
        """The classifier of a specification, with a head for the data's classes: a new one where its weights answer for others.

        Raises:
            InputError: it cannot be built, or its weights know other classes than the data have.
        """
        if argument != "teacher":
            built = build_classifier(
                spec,
                num_classes=data.num_classes,
                image_size=data.image_size,
                trust_pickle=trust_pickle,
                argument=argument,
                classes=data.classes,
            )
            return self._looked_at(built.of_classes(data.classes, spec, argument), data)
        options = networks if isinstance(networks, ClassifierNetworks) else ClassifierNetworks()
        names = None if options.teacher_classes is None else class_names(options.teacher_classes, "teacher_classes")
        built = build_classifier(
            spec,
            num_classes=data.num_classes,
            image_size=data.teacher_image_size or data.image_size,
            trust_pickle=trust_pickle,
            argument=argument,
            classes=data.classes,
            by_name=True,
            own_classes=names,
            probabilities=options.teacher_answers == "probabilities",
            layout=options.teacher_layout,
        )
        size = built.network.size if isinstance(built.network, FileNetwork) else None
        if size is not None and data.teacher_image_size not in (None, size):
            got = f"{data.teacher_image_size[0]} x {data.teacher_image_size[1]} for {spec}"
            raise InputError("teacher_image_size", got, f"{size[0]} x {size[1]}: the file reads no other images")
        if options.teacher_head_only and not built.start:
            why = "a teacher without weights" if built.weights is None else "a teacher that knows the data's classes"
            raise InputError("teacher_head_only", f"true for {spec}, {why}", "weights that answer for other classes, whose head is new")
        if built.weights is None:
            if names is not None:
                got = f"{options.teacher_classes} for {spec}, a teacher without weights"
                raise InputError("teacher_classes", got, "none: a teacher that is trained here has the data's classes")
            return self._looked_at(built, data)
        if isinstance(built.network, FileNetwork):
            found = [of_file(built.network)]
        else:
            found = configurations(spec, trust_pickle=trust_pickle, argument=argument)
        resized = built.weights == PRETRAINED or _RESAMPLED in "".join(built.notes)
        renormalise, notes = teacher_inputs(data, found, resized=resized, size=size)
        if not built.start and built.classes is None and built.weights != PRETRAINED and (order := _unsure_order(data.classes)):
            notes.append(f"{WARNING}the data's classes are numbers, in the order {order}; in which its own are, its file does not say")
        built = replace(built, renormalise=renormalise, notes=(*built.notes, *notes))
        return self._looked_at(built.of_classes(data.classes, spec, argument), data)

    def _looked_at(self, built: Built, data: ImageData) -> Built:
        """Notes that a network of somebody's answers with probabilities where logits are expected, if it does so to real images.

        Raises:
            InputError: it was said to answer with probabilities, and does not.
        """
        hook = next((hook for hook in built.network._forward_hooks.values() if isinstance(hook, AsLogits)), None)
        if hook is None:
            return built
        images = data.eval_loader().first(_LOOKED_AT).images
        with probing(built.network, images):
            answers_BC = hook.found(built.network, images if built.renormalise is None else built.renormalise(images))
        lowest, highest = float(answers_BC.min()), float(answers_BC.max())
        between = lowest >= 0 and highest <= 1 + 1e-3
        if hook.probabilities and not between:
            got = f"probabilities of a teacher whose answers go from {lowest:.3g} to {highest:.3g}"
            raise InputError("teacher_answers", got, "logits, or numbers from 0 to 1")
        rows = "no number below 0, and each row sums to 1" if looks_like_probabilities(answers_BC) else ""
        if not rows and between and built.weights is not None and not built.start:  # of an untrained network's logits that may be chance
            rows = "all numbers from 0 to 1, as behind a sigmoid"
        if hook.probabilities or not rows:
            return built
        warning = (
            f"{WARNING}it answers with probabilities ({rows}) where logits are expected: losses take a softmax of them once more. Leave "
            "its own out, or say --teacher-answers probabilities of a teacher"
        )
        return replace(built, notes=(*built.notes, warning))

    def doubts(self, result: StageResult, data: ImageData) -> list[str]:
        """What a teacher's answers to the validation set say against it, a clause each."""
        return doubts(result.details, data.classes)

    def supervised(self, network: nn.Module) -> Distiller:
        """Cross-entropy with the labels."""
        return Supervised(network)

    def compare(self, details: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
        """How often two models say the same of the validation images, in %: ``agreement``."""
        return {"agreement": agreement(details, reference)} if details and reference else {}

    def sections(self, report: Report, data: ImageData) -> list[Section]:
        """Per-class accuracy, images on which the models differ, what is taken for what, and the data."""
        found = [*classification_sections(report, data.classes, data.val_image), *confusion_sections(report, data.classes)]
        return [*found, data_section(data)]

    def remarks(self, report: Report, data: ImageData) -> list[str]:
        """Models that give one answer to all images."""
        return one_answer(report, data.classes)


TASK = Classification()
ImageData.task = TASK
