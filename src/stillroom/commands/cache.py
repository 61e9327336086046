"""`stillroom cache`: a teacher's answers to a training set, written to disk once; `--teacher cache:FOLDER` then reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from stillroom.commands.options import early, read_options
from stillroom.commands.parser import named_as_typed
from stillroom.engine import Lab, LabOptions, Trained, Training, tap
from stillroom.engine.cache import CACHE, CachedTeacher, CacheFolder, Dtype, Rest, Storage, Views, build_cache
from stillroom.engine.console import StageDisplay, console
from stillroom.errors import InputError
from stillroom.tasks import classification
from stillroom.tasks.classification.cached import views_of
from stillroom.tasks.detection import cached as detected
from stillroom.tasks.detection import experiment as detection
from stillroom.tasks.detection.data import DetectionData
from stillroom.tasks.students import task_of

PROG = "stillroom cache"
_PAPERS = {"paper": classification.CIFAR100, "paper:tiny-imagenet": classification.TINY_IMAGENET, "paper:imagenet": classification.IMAGENET}


@dataclass(frozen=True)
class Task:
    """A kind of task whose teachers can be cached.

    Args:
        data: the data's class.
        kinds: of data that only this task reads, as they are typed before the colon.
        plan: how a teacher is trained by default.
        teacher: the teacher by default.
        network: builds the network of a specification, for the data: ``network(spec, data, lab, argument).network``.
        stage: the teacher of a specification, trained or scored: ``stage(lab, data, plan, spec, epochs)``.
        views: how many views the data have answers to, given what was asked for.
        layers: module paths by a word, for `taps`.
        exact: parts of the answer that are stored in fp32.
        presets: other defaults, by name.
    """

    data: type
    kinds: tuple[str, ...]
    plan: Training
    teacher: str
    network: Callable[[str, Any, Lab, str], Any]
    stage: Callable[[Lab, Any, Training, str, int | None], Trained]
    views: Callable[[Any, int | None], int]
    layers: Mapping[str, Callable[[nn.Module, str], str]] = field(default_factory=dict)
    exact: tuple[str, ...] = ()
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


TASKS = {
    "classification": Task(
        data=classification.ImageData,
        kinds=(),
        plan=classification.DIGITS,
        teacher="stillroom/convnet24",
        network=classification.network,
        stage=classification.teacher_stage,
        views=views_of,
        layers={"middle": classification.middle_layer, "pooled": classification.pooled_layer},
        presets={name: {option: value for option, value in paper.items() if option != "student"} for name, paper in _PAPERS.items()},
    ),
    "detection": Task(
        data=DetectionData,
        kinds=("scenes", "coco", "voc"),
        plan=detection.SCENES,
        teacher="stillroom/gfl_32",
        network=detection.detector,
        stage=detection.teacher_stage,
        views=detected.views_of,
        exact=detected.EXACT,
    ),
}


def run(arguments: list[str], command: str) -> None:
    """Builds a cache, or goes on with one that was begun, and prints where it is and how to use it.

    Args:
        arguments: what follows `stillroom cache`.
        command: the whole line that was typed.
    """
    name = _task(arguments)
    task = TASKS[name]
    given = read_options(PROG, cache, arguments, data=task.data, plan=task.plan, presets=task.presets, out="runs/cache")
    with named_as_typed(*given.settings):
        options = LabOptions(**{**given.lab, "out": Path(given.lab["out"])})
        for option in ("devices", "num_nodes", "seeds"):
            if getattr(options, option) != 1:
                raise InputError(option, getattr(options, option), "1: a cache is built once, by one process")
        plan, data = Training(**given.plan), task.data(**given.data)
        built = cache(Lab(options, settings=given.settings), data, plan, **{**given.own, "task": name})
    _tell(built)


def _task(arguments: list[str]) -> str:
    """The task: the one that is named, or the one of the teacher's run, or the only one that reads such data; else classification.

    Raises:
        InputError: its teachers cannot be cached.
    """
    if (named := early(arguments, "task")) is not None:
        if named not in TASKS:
            raise InputError("--task", named, f"one of {', '.join(TASKS)}")
        return named
    teacher, kind = early(arguments, "teacher") or "", (early(arguments, "data") or "").partition(":")[0]
    if (Path(teacher) / "student.json").is_file():
        if (found := task_of(teacher)) not in TASKS:
            raise InputError("--teacher", f"{teacher}, a run of the task {found}", f"a teacher of {' or '.join(TASKS)}")
        return found
    return next((name for name, task in TASKS.items() if kind in task.kinds), "classification")


def cache(
    lab: Lab,
    data: Any,
    plan: Training = classification.DIGITS,
    task: Literal["classification", "detection"] | None = None,
    teacher: str | None = None,
    teacher_epochs: int | None = None,
    views: int | None = None,
    dtype: Dtype = "fp16",
    top: int | None = None,
    rest: Rest = "spread",
    taps: str | None = None,
) -> CachedTeacher:
    """Store a teacher's answers to the training images; goes on with what was begun.

    Args:
        lab: where and how to run.
        data: the images.
        plan: how the teacher is trained, if it has to be.
        task: what the teacher does; by default the task of the run that it comes from, or the one that the data are made for.
        teacher: network, optionally with weights after ``@``; without weights it is trained first. Or the folder of an earlier run. By
            default a small one for the data that are there by default.
        teacher_epochs: epochs for a teacher that has to be trained; by default as many as the plan's.
        views: random versions of each image that are stored, which training then shows in turn; by default 8, without augmentation 1. With
            as many as there are epochs, and the same seed, training sees the very images that it would see without a cache. For detection
            2, an image and its mirror image, or 1 without flips: training then always sees what it would see without.
        dtype: of the stored numbers: fp32, fp16 or bf16; boxes are always fp32.
        top: of the logits keep this many of the largest only; by default all.
        rest: what the other classes are given then: ``spread`` the probability that is left, or ``drop`` them.
        taps: module paths whose outputs are stored besides the answers, with commas between; or ``middle`` (for fitnets), ``pooled`` (crd).
    """
    of = TASKS[task or "classification"]
    teacher = of.teacher if teacher is None else teacher
    if teacher.startswith(CACHE):
        raise InputError("teacher", teacher, "a network: what it answered is in a cache already")
    seen, storage = Views(of.views(data, views), lab.options.seed), Storage(dtype, top, rest)
    with lab.shared():
        paths = _paths(taps, of.network(teacher, data, lab, "teacher").network, of.layers)
    folder = CacheFolder(lab.folder)
    with folder.locked():  # before anything is trained
        if lab.options.overwrite:
            folder.clear()
    taught = of.stage(lab, data, plan, teacher, teacher_epochs)
    display = StageDisplay("cache")
    rows = data.train_size * seen.count
    begun = (folder.read() or {}).get("done", 0)
    if begun:
        display.say("done before" if begun == rows else f"goes on after {begun} of {rows} answers")
    display.start(1, rows, [], 0)
    try:
        return build_cache(
            lab.folder,
            lab.teach(taught),
            data,
            taught.result,
            views=seen,
            storage=storage,
            taps=paths,
            exact=of.exact,
            about=data.describe(),
            device=lab.device,
            progress=lambda done, _: display.step(done),
        )
    finally:
        display.stop()


def _paths(taps: str | None, teacher: nn.Module, layers: Mapping[str, Callable[[nn.Module, str], str]]) -> list[str]:
    """The module paths that were asked for, checked."""
    modules: Mapping[str, Any] = dict(teacher.named_modules())
    words = [word.strip() for word in taps.split(",")] if taps else []
    paths = [layers[word](teacher, "taps") if word in layers and word not in modules else word for word in words]
    if len(set(paths)) < len(paths):
        raise InputError("taps", str(taps), "each path once")
    if paths:
        tap(teacher, *paths, argument="taps")
    return paths


def _tell(built: CachedTeacher) -> None:
    size = sum(file.stat().st_size for file in built.folder.glob("rows/*.npy"))
    amount = f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
    views = f"{built.views.count} views each" if built.views.count > 1 else "one view each"
    features = "".join(f", {path}" for path in built.stored)
    console.print(f"cache: {', '.join(built.answer)}{features} of {built.samples} images, {views}, {amount}", markup=False)
    console.print(f"use it: stillroom run METHOD --teacher {CACHE}{built.folder} with the same data", markup=False)
