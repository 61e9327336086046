"""UniKD's experiment: a teacher, extractors that absorb what it knows, the student alone, and the same student injected with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from stillroom.engine import Distiller, Experiment, Lab, Networks, Report, Room, Teacher, Trained, Training
from stillroom.engine.cache import CACHE, CachedTeacher, Dtype, Storage, Views, build_cache
from stillroom.engine.report.results import StageResult
from stillroom.engine.run.console import StageDisplay
from stillroom.engine.task import WARNING
from stillroom.errors import InputError, at_least
from stillroom.methods.unikd.attention import Adapter
from stillroom.methods.unikd.distillers import Absorb, MapHints, UniKD
from stillroom.methods.unikd.extractors import NAME, Extractors, Sizes, check_fits, load_extractors
from stillroom.methods.unikd.teaching import (
    EXACT,
    Answers,
    Taught,
    adapter_depth,
    common_strides,
    example_batch,
    map_channels,
    sizes_for,
    teacher_maps,
    with_extractors,
)
from stillroom.tasks.detection import COCO, SCENES, TASK, DetectionData, Detector

Baseline = Literal["fitnet", "content", "position", "unshared", "untrained"]
AnyDetector = Detector[Any, Any]
PAIR = Networks("stillroom/faster-rcnn_32", "stillroom/gfl_24", teacher_epochs=4, teacher_lr=3e-3)
_CHANGED: dict[str, dict[str, Any]] = {
    "content": {"position_weight": 0.0},
    "position": {"content_weight": 0.0},
    "unshared": {"shared_queries": False},
}
_LEARNT = 0.6  # share of the teacher's AP50 below which extractors have not absorbed enough


def build(
    student: AnyDetector,
    teacher: Teacher,
    data: DetectionData,
    *,
    extractors: str | None = None,
    any_teacher: bool = False,
    content_weight: float = 10.0,
    position_weight: float = 10.0,
    adapter_layers: int | None = None,
) -> UniKD:
    """The distiller for `data` with extractors that were trained before, for methods that host others; the options are the recipe's.

    Raises:
        InputError: no extractors, or such as do not fit the detectors.
    """
    if isinstance(teacher, CachedTeacher):
        taught = _stored(teacher)
    elif extractors is None:
        raise InputError("extractors", None, "a folder of extractors of this teacher: RUN/extractors of `stillroom run unikd`")
    else:
        taught = with_extractors(teacher, _loaded(extractors, teacher, data, any_teacher=any_teacher))
    options = {"content_weight": content_weight, "position_weight": position_weight}
    return inject_student(student, taught, data, adapter_layers, **options)


def inject_student(student: AnyDetector, taught: Taught, data: DetectionData, layers: int | None, **options: Any) -> UniKD:
    """A student under `UniKD`, with an adapter of `layers` that suits it; by default by the kinds of the two detectors."""
    adapter = _adapter(student, taught.extractors.sizes, taught.extractors.sizes.width, data, layers)
    return UniKD(student, taught.answers, taught.extractors, adapter, **options)


def hint_student(student: AnyDetector, taught: Taught, data: DetectionData, layers: int | None, hint_weight: float) -> MapHints:
    """A student under the baseline's hints, on the same maps and with the same adapter.

    Raises:
        InputError: the teacher's answers were stored, and none of its maps.
    """
    if taught.maps is None:
        raise InputError("baselines", "fitnet", "a teacher that is a network: stored answers hold no maps")
    sizes = taught.extractors.sizes
    return MapHints(student, taught.maps, _adapter(student, sizes, sizes.channels, data, layers), sizes.strides, hint_weight=hint_weight)


def _adapter(student: AnyDetector, sizes: Sizes, width: int, data: DetectionData, layers: int | None) -> Adapter:
    if not {*sizes.strides} <= {*student.strides}:
        got = f"a detector with maps of strides {list(student.strides)}"
        raise InputError("student", got, f"one with those that the extractors read, {list(sizes.strides)}")
    depth = adapter_depth(student, sizes.kind) if layers is None else at_least("adapter_layers", layers, 0)
    channels = map_channels(student, data.example_inputs(), sizes.strides, "student")
    return Adapter(channels, width, len(sizes.strides), depth, heads=sizes.heads, points=sizes.points)


def _loaded(folder: str, teacher: Teacher, data: DetectionData, *, any_teacher: bool) -> Extractors:
    extractors = load_extractors(folder)
    check_fits(extractors.sizes, sizes_for(teacher, extractors.sizes.strides, data, ""), any_teacher=any_teacher)
    return extractors


def _stored(answers: CachedTeacher) -> Taught:
    if "content_query" not in answers.answer:
        got = f"{answers.folder}, a cache of {', '.join(answers.answer)}"
        raise InputError(
            "teacher", got, f"a network, or the answers of extractors, with {NAME} beside them: --keep-answers FOLDER writes such"
        )
    return Taught(load_extractors(answers.folder, "teacher"), answers, None)


def absorb(lab: Lab, made: Absorb, data: DetectionData, plan: Training, teacher: Trained) -> str:
    """Stage 1: trains the extractors, or reads the finished stage; one pair for all seeds.

    Returns:
        A sentence on how well they detect, beside the teacher.
    """
    sizes = made.student.extractors.sizes
    model = f"{sizes.queries} queries to {teacher.result.model} (extractors)"
    stage = lab.fit(made, data.for_teacher(), plan, name="extractors", model=model)
    if lab.is_main:
        made.student.extractors.save(stage.folder)
    theirs, own = teacher.result.metrics["AP50"], stage.result.metrics["AP50"]
    told = f"the extractors detect with AP50 {own:.1f}, their teacher with {theirs:.1f}"
    if own >= _LEARNT * theirs:
        return f"{told[0].upper()}{told[1:]}; they took {stage.result.seconds:.0f} s."
    told = f"{WARNING}{told}: they have not absorbed much of it (--extractor-epochs, --extractor-lr)"
    lab.say("extractors", told)
    return f"{told}."


def keep(lab: Lab, folder: str, answers: Answers, data: DetectionData, result: StageResult, dtype: Dtype) -> tuple[CachedTeacher, str]:
    """Stores the teacher's answers to every training image and its mirror image, its extractors beside them, or reads them.

    Returns:
        The answers, and a sentence on what they take, beside the maps that they were read from.
    """
    views, begun = Views(TASK.views(data, None), lab.options.seed), time.monotonic()
    with StageDisplay("answers").counting(data.train_size * views.count) as progress:
        kept = build_cache(
            folder,
            answers,
            data,
            result,
            views=views,
            storage=Storage(dtype),
            exact=EXACT,
            about=data.describe(),
            device=lab.device,
            progress=progress,
        )
    seconds = time.monotonic() - begun
    answers.extractors.save(kept.folder)
    mine = sum(file.stat().st_size for file in kept.folder.glob("rows/answer*.npy"))
    maps, _ = teacher_maps(answers.maps, example_batch(data.example_inputs().to(lab.device)))
    theirs = sum(level.numel() for level in maps) * data.train_size * views.count * (4 if dtype == "fp32" else 2)
    took = f"{seconds:.0f} s" if seconds > 1 else "done before"
    return kept, f"The teacher's answers take {mine / 1e6:.1f} MB ({took}), its maps would take {theirs / 1e6:.1f} MB in {dtype}."


def recipe(
    lab: Lab,
    data: DetectionData,
    plan: Training = SCENES,
    networks: Networks = PAIR,
    extractors: str | None = None,
    any_teacher: bool = False,
    queries: int = 200,
    width: int | None = None,
    heads: int | None = None,
    points: int = 4,
    extractor_epochs: int = 15,
    extractor_lr: float = 2e-4,
    content_weight: float = 10.0,
    position_weight: float = 10.0,
    adapter_layers: int | None = None,
    keep_answers: str | None = None,
    answers_dtype: Dtype = "fp16",
    baselines: list[Baseline] | None = None,
    hint_weight: float = 5.0,
) -> Report:
    """Train (or load) a teacher and its extractors, a student alone, and the same student with UniKD; compare the students.

    Args:
        lab: where and how to run.
        data: the images and their boxes.
        plan: how the detectors are trained.
        networks: which they are, of any kinds; their maps of common strides are what is compared.
        extractors: folder of trained extractors: the stage ``extractors`` of an earlier run with this teacher; by default they are trained.
        any_teacher: take extractors that were trained on another teacher with such maps and classes.
        queries: N, queries of each extractor.
        width: C, of extractors and their embeddings; by default that of the teacher's maps.
        heads: H, attention heads of the extractors; by default one for each 8 of the width, 8 at most.
        points: K, that each head reads of each map.
        extractor_epochs: epochs of the extractors, over the teacher's images.
        extractor_lr: learning rate of the extractors; a tenth of it in the last fifth.
        content_weight: lambda1, weight of what is in the image.
        position_weight: lambda2, weight of where it is.
        adapter_layers: self-attention layers of the student's adapter; by default none between detectors of one kind, 2 where one is of the
            DETR family, else 1.
        keep_answers: folder for the teacher's answers to the training images, which are then read from it; ``--teacher cache:FOLDER``
            teaches other students without the teacher's network. By default it is asked anew in every step.
        answers_dtype: of the stored numbers: fp32, fp16 or bf16; places are always fp32.
        baselines: other arms: fitnet (the maps themselves), content, position (either part alone), unshared (queries by the student's own
            maps for the student), untrained (random extractors).
        hint_weight: w_hint, weight of the hint; of the arm fitnet.
    """
    names: list[str] = [*(baselines or []), "unikd"]
    if len(set(names)) != len(names) or not set(names[:-1]) <= set(get_args(Baseline)):
        raise InputError("baselines", names[:-1], f"some of {', '.join(get_args(Baseline))}, each once")
    if keep_answers and lab.options.devices * lab.options.num_nodes > 1:
        raise InputError("keep_answers", keep_answers, "one device: then --teacher cache:FOLDER serves any number of them")
    plan_of_extractors = Training(
        epochs=extractor_epochs, optimizer="adamw", lr=extractor_lr, weight_decay=1e-4, milestones=(0.8,), clip_norm=0.1
    )

    def untrained(student: AnyDetector, teacher: Teacher) -> Taught:
        strides = common_strides(student, teacher.networks[0].strides)  # type: ignore[arg-type]
        sizes = sizes_for(teacher, strides, data, networks.teacher, queries=queries, points=points)
        wide = sizes.channels if width is None else width
        sizes = replace(sizes, width=wide, heads=min(8, max(1, wide // 8)) if heads is None else heads)
        return with_extractors(teacher, Extractors(sizes), seed=lab.options.seed)

    def begun(student: AnyDetector, teacher: Teacher) -> Taught:
        """As far as it is known before the teacher is trained: its weights may become others."""
        if extractors is None:
            return untrained(student, teacher)
        return with_extractors(teacher, _loaded(extractors, teacher, data, any_teacher=True))

    def arm(name: str, taught: Taught) -> Callable[[AnyDetector], Distiller]:
        if name == "fitnet":
            return lambda student: hint_student(student, taught, data, adapter_layers, hint_weight)
        options = {"content_weight": content_weight, "position_weight": position_weight, **_CHANGED.get(name, {})}
        return lambda student: inject_student(student, taught, data, adapter_layers, **options)

    told: list[str] = []
    if networks.teacher.startswith(CACHE):
        if "untrained" in names or extractors is not None:
            raise InputError("teacher", networks.teacher, "a network: stored answers are those of their own extractors")
        answers = CachedTeacher(Path(networks.teacher.removeprefix(CACHE)), data.cache_key)
        taught = _stored(answers)
        whole = Trained("teacher", None, replace(answers.result, seed=lab.seed), answers.folder, teacher=answers)
        experiment = Experiment(lab, data, plan, replace(networks, teacher=""), taught=whole)
        experiment.rehearse(*[lambda student, _, name=name: arm(name, taught)(student) for name in names])
    else:
        experiment = Experiment(lab, data, plan, networks)
        trials: list[Any] = [lambda student, teacher, name=name: arm(name, begun(student, teacher))(student) for name in names]
        if extractors is None:
            trials.append(lambda student, teacher: _absorbing(begun(student, teacher), lab.options.seed))
        experiment.rehearse(*trials)
        whole = experiment.teacher()
        teacher = lab.teach(whole)
        with lab.shared():
            if extractors is None:
                taught = untrained(experiment.network(networks.student, "student").network, teacher)
                told.append(absorb(lab, _absorbing(taught, lab.seed), data, plan_of_extractors, whole))
                taught = with_extractors(teacher, taught.extractors, seed=lab.seed)
            else:
                taught = with_extractors(teacher, _loaded(extractors, teacher, data, any_teacher=any_teacher), seed=lab.seed)
            if keep_answers:
                assert isinstance(taught.answers, Answers)
                kept, said = keep(lab, keep_answers, taught.answers, data, whole.result, answers_dtype)
                taught, told = replace(taught, answers=kept), [*told, said]
    stages = {"teacher": whole, "alone": experiment.alone()}
    stages["teacher"] = experiment.beaten(stages["teacher"], stages["alone"])
    for name in names:
        make = arm(name, taught)
        if name == "untrained":
            make = lambda student: arm("untrained", untrained(student, teacher))(student)  # noqa: E731 - its networks come after the student's
        stages[name] = experiment.trained(name, make)
    stages["unikd"] = replace(stages["unikd"], notes=(*stages["unikd"].notes, *told))
    return lab.report("unikd", data, stages, ship="unikd")


def _absorbing(taught: Taught, seed: int) -> Absorb:
    assert taught.maps is not None
    return Absorb(taught.extractors, taught.maps, box_seed=seed)


PRESETS = {
    "paper": {
        **COCO,
        "teacher": "gfl/resnet50,backbone=pretrained",
        "student": "retinanet/resnet18,backbone=pretrained",
        "teacher_scales": None,
    },
}

ROOM = Room(
    recipe,
    tasks=("detection",),
    presets=PRESETS,
    default={"data": "scenes", "queries": 32, "extractor_epochs": 3, "extractor_lr": 2e-3},
    expect="With fewer steps UniKD gave +5.0 +- 1.3 AP over no distillation on these scenes (3 seeds), no more than hints on the maps "
    "themselves; the paper sees +3.1 on COCO, and hints near none.",
    build=build,
)
