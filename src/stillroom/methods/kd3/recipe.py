"""KD^3's experiment: a teacher, plain distillation on every web image, and KD^3."""

from __future__ import annotations

from typing import Any

from torch import nn

from stillroom.engine import Experiment, Lab, Networks, Report, Room, Teacher, Training
from stillroom.engine.cache import CachedTeacher
from stillroom.errors import InputError
from stillroom.methods.kd3.distiller import KD3, WebKD
from stillroom.methods.kd3.shared_classifier import share_classifier
from stillroom.methods.kd3.web import WebData
from stillroom.tasks.classification import CONVNETS, ImageData
from stillroom.tasks.images.layers import last_map

# The default job: scikit-learn's digits, restyled, and patches of photographs.
PLAN = Training(epochs=40, lr=0.05, weight_decay=5e-4, milestones=(0.62, 0.85))


def build(
    student: nn.Module,
    teacher: Teacher,
    data: ImageData,
    *,
    unlabelled: str = "restyled",
    unlabelled_augment: str | None = None,
    unlabelled_mean: tuple[float, float, float] | None = None,
    unlabelled_std: tuple[float, float, float] | None = None,
    equal_updates: bool = True,
    **options: Any,
) -> KD3:
    """The distiller for `data`, whose web images are as `recipe` says; the other options are those of `learning_from`."""
    web = WebData(data, unlabelled, augment=unlabelled_augment, mean=unlabelled_mean, std=unlabelled_std, steady=equal_updates)
    return learning_from(web, student, teacher, **options)


def learning_from(
    web: WebData,
    student: nn.Module,
    teacher: Teacher,
    *,
    student_layer: str | None = None,
    teacher_layer: str | None = None,
    teacher_classifier: str | None = None,
    factor: int = 2,
    **options: Any,
) -> KD3:
    """The distiller on web images; its student is `student` up to its last map, a connector, and the teacher's classifier.

    Args:
        web, student, teacher: on what it learns, what learns, what teaches.
        student_layer: module path in the student; of its last feature map, by default what its pooling reads.
        teacher_layer: module path in the teacher; likewise.
        teacher_classifier: module path of what makes the teacher's logits of its pooled map; by default its last linear layer.
        factor: r of the connector: the teacher's channels divided by it are its inner width.
        options: those of `KD3`.

    Raises:
        InputError: the teacher is a cache or an ensemble, or there are no such layers.
    """
    if isinstance(teacher, CachedTeacher):
        raise InputError("teacher", f"the cache {teacher.folder}", "a network: a cache has no answers to web images")
    if len(teacher.networks) > 1:
        raise InputError("teacher", f"an ensemble of {len(teacher.networks)} networks", "a single network, whose classifier is shared")
    original, example = teacher.networks[0], web.example_inputs()
    student_layer = student_layer or last_map(student, example, "student_layer")
    teacher_layer = teacher_layer or last_map(original, example, "teacher_layer")
    shared = share_classifier(
        student,
        original,
        example,
        student_layer=student_layer,
        teacher_layer=teacher_layer,
        teacher_classifier=teacher_classifier,
        factor=factor,
    )
    return KD3(shared, teacher, web, teacher_layer=teacher_layer, **options)


def recipe(
    lab: Lab,
    data: ImageData,
    plan: Training = PLAN,
    unlabelled: str = "restyled",
    networks: Networks = CONVNETS,
    unlabelled_augment: str | None = None,
    unlabelled_mean: tuple[float, float, float] | None = None,
    unlabelled_std: tuple[float, float, float] | None = None,
    equal_updates: bool = True,
    temperature: float = 4.0,
    **options: Any,
) -> Report:
    """Distil without the original data: compare KD^3 on unlabelled web images with plain distillation on the same images.

    Args:
        lab: where and how to run.
        data: the classes and the test images; its training images are used for a teacher without weights only.
        plan: how the networks are trained.
        unlabelled: the unlabelled images: imagefolder:PATH or PATH, a folder or zip of any image files at any depth; other data such as
            cifar100:PATH, without their labels; or restyled, for a first look: the training images in other styles, and patches of
            photographs.
        networks: which they are; the student's part behind the last map gives way to a connector and the teacher's classifier.
        unlabelled_augment: random changes of the unlabelled images, as --augment; by default imagenet, which crops and mirrors (for
            restyled: --augment).
        unlabelled_mean: mean of the unlabelled images' channels, if they are to be normalised with another than the data's.
        unlabelled_std: their standard deviation, likewise.
        equal_updates: give every epoch the updates of one pass over all web images, going through the chosen ones again and again; false,
            as in the paper: an epoch shows the chosen ones once.
        temperature: temperature of softened class probabilities, T > 0; of the plain distillation.
        options: those of `learning_from`.
    """
    web = WebData(data, unlabelled, augment=unlabelled_augment, mean=unlabelled_mean, std=unlabelled_std, steady=equal_updates)

    def distiller(fresh: nn.Module, taught: Teacher) -> KD3:
        return learning_from(web, fresh, taught, **options)

    experiment = Experiment(lab, data, plan, networks)
    experiment.rehearse(distiller)
    trained = experiment.teacher()
    plain = experiment.distilled("kd", lambda fresh, taught: WebKD(fresh, taught, web, temperature=temperature))
    built = experiment.network(networks.student, "student")
    made = distiller(built.network, lab.teach(trained))
    model = made.student.specification(built.spec, trained.result.model)
    distilled = lab.fit(made, web, plan, name="kd3", model=model)
    return lab.report("kd3", data, {"teacher": trained, "kd": plain, "kd3": distilled}, baseline="kd", ship="kd3")


PRESETS = {
    "paper": {
        "data": "cifar10:data/cifar10",
        "unlabelled": "imagefolder:data/imagenet32",
        "teacher": "stillroom/resnet34",
        "student": "stillroom/resnet18",
        "batch_size": 1024,
        "epochs": 240,
        "lr": 0.05,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "schedule": "multistep",
        "milestones": [150, 180, 210],
        "decay": 0.1,
        "switch_off": 120,
        "offset": 160,
        "equal_updates": False,
    },
}
PRESETS["paper:cifar100"] = {**PRESETS["paper"], "data": "cifar100:data/cifar100"}
PRESETS["paper:tiny-imagenet"] = {
    **PRESETS["paper"],
    "data": "tiny-imagenet:data/tiny-imagenet-200",
    "unlabelled": "imagefolder:data/imagenet64",
}

ROOM = Room(
    recipe,
    tasks=("classification",),
    presets=PRESETS,
    expect="Against plain KD on the same foreign images -5.2 +- 3.7 points on these digits, which three seeds do not tell from chance, "
    "and -11.9 +- 3.1 on CIFAR-10; the paper sees it above.",
    build=build,
)
