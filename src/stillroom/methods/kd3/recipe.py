"""KD^3's experiment: a teacher, plain distillation on every web image, and KD^3."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from stillroom.engine import Lab, Report, Teacher, Training
from stillroom.engine.cache import CachedTeacher
from stillroom.errors import InputError
from stillroom.methods.kd3.distiller import KD3, WebKD
from stillroom.tasks.classification import ImageData, distilled_stage, network, rehearse, teacher_stage
from stillroom.tasks.classification.layers import last_map
from stillroom.tasks.classification.shared_classifier import share_classifier
from stillroom.tasks.classification.web import WebData

# The default job: scikit-learn's digits, restyled, and patches of photographs.
PLAN = Training(epochs=40, lr=0.05, weight_decay=5e-4, milestones=(0.62, 0.85))


def build(
    student: nn.Module,
    teacher: Teacher,
    data: ImageData,
    *,
    web: str = "restyled",
    web_augment: str | None = None,
    web_mean: tuple[float, float, float] | None = None,
    web_std: tuple[float, float, float] | None = None,
    equal_updates: bool = True,
    student_layer: str | None = None,
    teacher_layer: str | None = None,
    teacher_classifier: str | None = None,
    factor: int = 2,
    selection: bool = True,
    cutoff: float = 0.95,
    switch_off: float | None = None,
    offset: float | None = None,
    steepness: float = 5.0,
    scoring: Literal["changed", "plain"] = "changed",
    weighted: bool = True,
    beta: float = 0.1,
    mix_probability: float = 1.0,
    partners: Literal["random", "crossdomain"] = "random",
    contrast_weight: float = 0.001,
    contrast: Literal["separate", "cross"] = "separate",
    temperature: float = 0.3,
    embed_dim: int = 128,
) -> KD3:
    """The distiller for `data`: its student is `student` up to its last map, a connector, and the teacher's classifier."""
    collection = WebData(data, web, augment=web_augment, mean=web_mean, std=web_std, steady=equal_updates)
    return _made(
        student,
        teacher,
        collection,
        student_layer=student_layer,
        teacher_layer=teacher_layer,
        teacher_classifier=teacher_classifier,
        factor=factor,
        selection=selection,
        cutoff=cutoff,
        switch_off=switch_off,
        offset=offset,
        steepness=steepness,
        scoring=scoring,
        weighted=weighted,
        beta=beta,
        mix_probability=mix_probability,
        partners=partners,
        contrast_weight=contrast_weight,
        contrast=contrast,
        temperature=temperature,
        embed_dim=embed_dim,
    )


def _made(
    student: nn.Module,
    teacher: Teacher,
    web: WebData,
    *,
    student_layer: str | None,
    teacher_layer: str | None,
    teacher_classifier: str | None,
    factor: int,
    **options: Any,
) -> KD3:
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
    web: str = "restyled",
    teacher: str = "stillroom/convnet24",
    student: str = "stillroom/convnet4",
    teacher_epochs: int | None = None,
    web_augment: str | None = None,
    web_mean: tuple[float, float, float] | None = None,
    web_std: tuple[float, float, float] | None = None,
    equal_updates: bool = True,
    student_layer: str | None = None,
    teacher_layer: str | None = None,
    teacher_classifier: str | None = None,
    factor: int = 2,
    selection: bool = True,
    cutoff: float = 0.95,
    switch_off: float | None = None,
    offset: float | None = None,
    steepness: float = 5.0,
    scoring: Literal["changed", "plain"] = "changed",
    weighted: bool = True,
    beta: float = 0.1,
    mix_probability: float = 1.0,
    partners: Literal["random", "crossdomain"] = "random",
    contrast_weight: float = 0.001,
    contrast: Literal["separate", "cross"] = "separate",
    temperature: float = 0.3,
    embed_dim: int = 128,
    kd_temperature: float = 4.0,
) -> Report:
    """Distil without the original data: compare KD^3 on unlabelled web images with plain distillation on the same images.

    Args:
        lab: where and how to run.
        data: the classes and the test images; its training images are used for a teacher without weights only.
        plan: how the networks are trained.
        web: the unlabelled images: imagefolder:PATH or PATH, a folder or zip of any image files at any depth; other data such as
            cifar100:PATH, without their labels; or restyled, for a first look: the training images in other styles, and patches of
            photographs.
        teacher: network, optionally with weights after ``@``; without weights it is trained on the data first. Or a run's folder.
        student: network, as above; its part behind the last map gives way to a connector and the teacher's classifier.
        teacher_epochs: epochs for a teacher that has to be trained; by default as many as the student's.
        web_augment: random changes of web images, as --augment; by default imagenet, which crops and mirrors (for restyled: --augment).
        web_mean: mean of the web images' channels, if they are to be normalised with another than the data's.
        web_std: their standard deviation, likewise.
        equal_updates: give every epoch the updates of one pass over all web images, going through the chosen ones again and again; false,
            as in the paper: an epoch shows the chosen ones once.
        student_layer: module path of the student's last feature map; by default what its pooling reads.
        teacher_layer: module path of the teacher's, likewise.
        teacher_classifier: module path of what makes the teacher's logits of its pooled map; by default its last linear layer.
        factor: r of the connector: the teacher's channels divided by it are its inner width.
        selection: choose each epoch's images by the confidence of teacher and student; false: all.
        cutoff: tau, the confidence that an image of the most frequent class must exceed, above 0 and up to 1.
        switch_off: E_max, the epoch from which the student chooses alone; by default half of the run.
        offset: c of the teacher's share, in epochs; by default two thirds of the run.
        steepness: s of the teacher's share.
        scoring: changed: images are scored as they are changed in training; plain: as they are.
        weighted: weigh images by how much student and teacher disagree on them.
        beta: a of Beta(a, a), from which the share of an image's own style is drawn.
        mix_probability: of a batch getting a view in mixed style, from 0 to 1.
        partners: whose style is mixed in: random, any other image of the batch; crossdomain, one of the batch's other half.
        contrast_weight: gamma; 0 for no contrast.
        contrast: separate: student and teacher each contrast their own views; cross: also each other's.
        temperature: t of the contrast.
        embed_dim: width of the embeddings that are contrasted.
        kd_temperature: T of the plain distillation.
    """
    collection = WebData(data, web, augment=web_augment, mean=web_mean, std=web_std, steady=equal_updates)

    def distiller(fresh: nn.Module, taught: Teacher) -> KD3:
        return _made(
            fresh,
            taught,
            collection,
            student_layer=student_layer,
            teacher_layer=teacher_layer,
            teacher_classifier=teacher_classifier,
            factor=factor,
            selection=selection,
            cutoff=cutoff,
            switch_off=switch_off,
            offset=offset,
            steepness=steepness,
            scoring=scoring,
            weighted=weighted,
            beta=beta,
            mix_probability=mix_probability,
            partners=partners,
            contrast_weight=contrast_weight,
            contrast=contrast,
            temperature=temperature,
            embed_dim=embed_dim,
        )

    rehearse(lab, data, teacher, student, distiller)
    trained = teacher_stage(lab, data, plan, teacher, teacher_epochs)
    taught = lab.teach(trained)
    plain = distilled_stage(lab, data, plan, student, "kd", lambda fresh: WebKD(fresh, taught, collection, temperature=kd_temperature))
    built = network(student, data, lab, "student")
    made = distiller(built.network, taught)
    model = made.student.specification(built.spec, trained.result.model)
    distilled = lab.fit(made, collection, plan, name="kd3", model=model)
    return lab.report("kd3", data, {"teacher": trained, "kd": plain, "kd3": distilled}, baseline="kd", ship="kd3")


PRESETS = {
    "paper": {
        "data": "cifar10:data/cifar10",
        "web": "imagefolder:data/imagenet32",
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
    "web": "imagefolder:data/imagenet64",
}
