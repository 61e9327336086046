"""MemKD's experiment: a frozen teacher, and for each category a student with memories beside the same student without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stillroom.engine import Lab, Networks, Report, Room, Teacher, Trained, Training
from stillroom.engine.distiller import rehearse
from stillroom.errors import InputError, at_least, share
from stillroom.methods.memkd.arms import MEMKD, Arm, named_arms
from stillroom.methods.memkd.distiller import MemKD
from stillroom.methods.memkd.loss import Distillation, Orthogonality, Reduction
from stillroom.methods.memkd.networks import Variant, build
from stillroom.modules.projectors import probing
from stillroom.tasks.anomaly.data import AnomalyData
from stillroom.tasks.anomaly.experiment import train_detectors
from stillroom.tasks.anomaly.maps import Combine, LevelWeight, MapOptions
from stillroom.tasks.anomaly.teachers import TaughtBy, build_teacher
from stillroom.tasks.classification import ImageData, Supervised
from stillroom.tasks.images.classifiers import build_classifier

BUILDER = "stillroom.methods.memkd.networks:build"
ADAM = Training(epochs=20, optimizer="adam", lr=5e-3, momentum=0.5, weight_decay=0.0, schedule="onecycle")
_TEACHER = Training(epochs=8, lr=0.1, schedule="onecycle")


@dataclass(frozen=True)
class MapNetworks(Networks):
    """Which networks teach and learn.

    Args:
        teacher: network, with weights: ``timm/wide_resnet50_2@FILE`` or ``nets.py:build@FILE``, say; the better it knows photographs, the
            better. Without weights it is trained on `teacher_data` first, which is for trying things out.
        student: network, by the residual blocks of its stages: ``small`` (one each), ``resnet18``, ``resnet34`` or ``resnet50``; its
            channels are those of the teacher's levels.
        teacher_epochs: epochs of the teacher, where it has to be trained; by default 8.
        teacher_lr: learning rate of the teacher, likewise; by default 0.1.
        accept_teacher: go on with a teacher that is no better than chance, where it had to be trained.
        layers: paths of the teacher's layers whose maps are the levels, from the first to the last, as in ``layer1+layer2+layer3``;
            variant reverse has one more. By default the last maps at strides 4, 8, 16 (and 32), or else of the last sizes there are.
        teacher_data: classified images that a teacher without weights is trained on, e.g. ``imagefolder:cifar10.zip``.
        teacher_data_size: pixels of these images.
        random_teacher: take a teacher without weights as it is.
    """

    layers: str | None = None
    teacher_data: str | None = "shapes,train=20,teacher=60"
    teacher_data_size: int = 64
    random_teacher: bool = False

    @property
    def trains_teacher(self) -> bool:
        """Whether the teacher has no weights, and data to learn from."""
        return "@" not in self.teacher and not Path(self.teacher).is_dir() and not self.random_teacher and self.teacher_data is not None


NETWORKS = MapNetworks("stillroom/resnet8_stride16", "small")


def train_teacher(lab: Lab, networks: MapNetworks) -> Trained:
    """Trains a network without weights to classify some images, for a teacher where no better one is at hand; one for all seeds.

    Raises:
        InputError: it is no better than chance afterwards, and that was not accepted.
    """
    size = at_least("teacher_data_size", networks.teacher_data_size, 8)
    images = ImageData(str(networks.teacher_data), image_size=size, batch_size=64)
    plan = networks.teacher_plan(_TEACHER)
    with lab.shared():
        built = build_classifier(
            networks.teacher,
            num_classes=images.num_classes,
            image_size=size,
            trust_pickle=lab.options.trust_pickle,
            argument="teacher",
        )
        trained = lab.fit(Supervised(built.network), images.for_teacher(), plan, name="teacher", model=built.spec)
    accuracy, chance = trained.result.metrics["top1"], 100 / images.num_classes
    if accuracy <= 1.5 * chance and not networks.accept_teacher:
        got = f"{networks.teacher}, which is right in {accuracy:.1f} % of the images that it was trained on the like of"
        raise InputError("teacher", got, "one that learns more (--teacher-epochs), or --accept-teacher to go on with it")
    return trained


def recipe(
    lab: Lab,
    data: AnomalyData,
    plan: Training = ADAM,
    networks: MapNetworks = NETWORKS,
    variant: Variant = "forward",
    arms: str = "plain+memkd",
    iterations: int | None = 8,
    slots: int = 50,
    memory_temperature: float = 1.0,
    exemplars: int = 16,
    fixed_exemplars: bool = False,
    nm_weight: float = 0.1,
    orth_weight: float = 0.1,
    orth: Orthogonality = "squared",
    kd: Distillation = "positions",
    reduction: Reduction = "mean",
    combine: Combine = "sum",
    level_weight: LevelWeight = "equal",
    align_corners: bool = False,
    blur: float | None = None,
    quantile: float = 0.95,
) -> Report:
    """Learn what good products look like from a frozen teacher, and find what is unlike it.

    Args:
        lab: where and how to run.
        data: pictures of products.
        plan: how each category's student is trained.
        networks: which teach and learn.
        variant: ``forward``: a network like the teacher reads the image; ``reverse``: a decoder reads the teacher's maps through a
            bottleneck.
        arms: of the experiment, the first is the baseline and the last is shipped: ``plain`` (no memory), ``dup`` (each map twice, as many
            weights as memkd), ``unmemorised`` (memories without losses of their own), ``stfpm``, ``rd4ad`` and ``memkd``.
        iterations: steps of an epoch, at most; none for as many as there are batches.
        slots: keys and values of each memory.
        memory_temperature: temperature of the memories' softmax; above 0.
        exemplars: good pictures in a step whose features the memories must hold.
        fixed_exemplars: draw them once, instead of anew in every step.
        nm_weight: lambda1, weight of the memorisation loss.
        orth_weight: lambda2, weight of the orthogonality of keys and values.
        orth: its form; ``signed`` is the reproduction's, which rewards opposite ones.
        kd: the distance of student and teacher: a cosine at each of the ``positions``, a ``flat`` one of each picture, or ``squared``.
        reduction: ``mean`` over a batch, or ``sum_batch``.
        combine: of the levels' maps: their ``sum``, or their ``product``.
        level_weight: of the levels: ``equal``, or ``inv_area``.
        align_corners: how small maps are enlarged.
        blur: standard deviation of the maps' blur, in pixels of the network's input; by default 4 per 256 pixels, 2 at least.
        quantile: of the scores of held-out good pictures, the threshold above which a picture is called anomalous; 1 for their largest.
    """
    share("quantile", quantile)
    asked = named_arms(arms)
    maps = MapOptions(combine, level_weight, align_corners, max(2.0, data.image_size / 64) if blur is None else blur)
    spec, notes = networks.teacher, []
    if networks.trains_teacher:
        trained = train_teacher(lab, networks)
        spec = f"{networks.teacher}@{trained.folder / 'student.safetensors'}"
        learned = f"{networks.teacher_data} (top-1 {trained.result.metrics['top1']:.1f} %)"
        notes.append(f"The teacher was trained here on {learned}: one that knows photographs finds more.")
    named = None if networks.layers is None else [layer.strip() for layer in networks.layers.split("+")]
    taught: dict[Variant, TaughtBy] = {}
    for arm in asked.values():
        which = arm.variant or variant
        if which not in taught:
            options: dict[str, Any] = {"random": networks.random_teacher, "trust_pickle": lab.options.trust_pickle}
            own = named if which == variant else None  # the other variant has another number of levels
            taught[which] = build_teacher(spec, data, own, 3 if which == "forward" else 4, **options)

    def described(arm: Arm) -> dict[str, Any]:
        by = taught[arm.variant or variant]
        levels = [[level.channels, level.stride] for level in by.extractor.levels]
        student_of = {"variant": arm.variant or variant, "levels": levels, "family": networks.student, "between": arm.between}
        return {"model": by.spec, "builder": BUILDER, "student": {**student_of, "slots": slots, "temperature": memory_temperature}}

    def maker(arm: Arm) -> Callable[[Teacher], MemKD]:
        weights: dict[str, Any] = (
            {"nm_weight": nm_weight, "orth_weight": orth_weight} if arm.memorises else {"nm_weight": 0.0, "orth_weight": 0.0}
        )
        shown: dict[str, Any] = {"exemplars": exemplars, "fixed": fixed_exemplars, "iterations": iterations}
        loss: dict[str, Any] = {"kd": arm.kd or kd, "reduction": reduction, "orth": orth}
        return lambda frozen: MemKD(build(described(arm)["student"]), frozen, **loss, **weights, **shown)

    for arm in asked.values():
        _rehearse(maker(arm), taught[arm.variant or variant], data, arm.training(plan), lab)
    found: dict[str, Trained] = {}
    for name, arm in asked.items():
        by = taught[arm.variant or variant]
        label = f"{networks.student}, {arm.variant or variant}"
        settings: dict[str, Any] = {"maps": arm.map_options(maps), "quantile": quantile, "description": described(arm), "label": label}
        found[name] = train_detectors(lab, data, arm.training(plan), by, maker(arm), name=name, **settings)
    first, last = next(iter(found)), list(found)[-1]
    found[last] = replace(found[last], notes=(*found[last].notes, *notes))
    return lab.report(MEMKD, data, found, baseline=first if len(found) > 1 else None, ship=last)


def _rehearse(make: Callable[[Teacher], MemKD], taught: TaughtBy, data: AnomalyData, plan: Training, lab: Lab) -> None:
    """Builds an arm once and asks it for the losses of a few pictures, so that what is wrong is said at once; nothing is kept.

    Raises:
        InputError: what is wrong.
    """
    normal = data.of_category(0)
    with lab.shared():
        distiller = make(taught.teacher(lab.options.torch_precision, compile=False))
        shown: Any = distiller.training_data(normal)
        inputs = shown.train_loader(seed=lab.seed).first(1).inputs
        with probing(distiller.student, inputs):
            features: Any = distiller.teacher(inputs)
            maps = distiller.student.levels(inputs, features)
        for level, ours, theirs in zip(taught.extractor.levels, maps, features, strict=False):
            if ours.shape != theirs.shape:
                shapes = f"has shape {list(ours.shape)}, the teacher's {list(theirs.shape)}"
                got = f"{data.image_size}: the student's map of {level.layer} {shapes}"
                raise InputError("image_size", got, f"a multiple of {taught.extractor.levels[-1].stride}")
        rehearse(distiller, shown, plan, seed=lab.seed)


PRESETS = {
    "paper": {
        "data": "mvtec:data/mvtec_ad",
        "teacher": "timm/wide_resnet50_2@pretrained",
        "student": "resnet50",
        "variant": "reverse",
        "arms": "rd4ad+memkd",
        "image_size": 256,
        "fit": "crop",
        "batch_size": 16,
        "epochs": 50,
        "iterations": None,
        "lr": 0.05,
        "blur": 4.0,
    },
}

ROOM = Room(
    recipe,
    tasks=("anomaly",),
    presets=PRESETS,
    default={
        "data": "textures:category=wood+stone",
        "teacher": "stillroom/resnet8_stride8",
        "teacher_data_size": 32,
    },
    expect="MemKD's image AUROC was +11.6 +- 6.5 points over the student without memories on these textures, and -2.5 +- 4.4 on magnetic "
    "tiles with an ImageNet teacher (3 seeds of few steps each); the paper sees +1.2 over reverse distillation.",
    reason="learns from good pictures alone, a student for each category: its stages are an experiment of their own",
)
