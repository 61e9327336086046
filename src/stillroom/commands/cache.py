"""`stillroom cache`: a teacher's answers to a training set, written to disk once; `--teacher cache:FOLDER` then reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.commands.options import early, read_options
from stillroom.commands.parser import named_as_typed, size_text
from stillroom.engine import Experiment, Lab, Networks, Training, tap
from stillroom.engine.cache import CACHE, CachedTeacher, CacheFolder, Dtype, Rest, Storage, Views, build_cache
from stillroom.engine.experiment import cacheable, with_unlabelled
from stillroom.engine.room import setting_of
from stillroom.engine.run.console import StageDisplay, console
from stillroom.engine.task import TAUGHT, FindLayer, first_lines, task_named
from stillroom.errors import InputError, one_of
from stillroom.tasks.images.sources import kind_of
from stillroom.tasks.students import task_of

PROG = "stillroom cache"


def run(arguments: list[str], command: str) -> None:
    """Builds a cache, or goes on with one that was begun, and prints where it is and how to use it.

    Args:
        arguments: what follows `stillroom cache`.
        command: the whole line that was typed.
    """
    name = _task(arguments)
    given = read_options(PROG, cache, arguments, setting=setting_of(name, cache, student=False), out="runs/cache")
    with named_as_typed(*given.settings):
        options = given.made_lab(alone="a cache is built once, by one process")
        data = given.made_data()
        cacheable(data, "task", name)
        built = cache(
            Lab(options, settings=given.settings, opening=first_lines(data)), data, **given.trained_by(), **{**given.own, "task": name}
        )
    _tell(built)


def _task(arguments: list[str]) -> str:
    """The task: the one that is named, or the one of the teacher's run, or the only one that reads such data; else classification.

    Raises:
        InputError: its teachers cannot be cached.
    """
    if (named := early(arguments, "task")) is not None:
        return one_of("--task", named, TAUGHT)
    teacher, kind = early(arguments, "teacher") or "", kind_of(early(arguments, "data") or "")
    if (Path(teacher) / "student.json").is_file():
        if (found := task_of(teacher)) not in TAUGHT:
            raise InputError("--teacher", f"{teacher}, a run of the task {found}", f"a teacher of {' or '.join(TAUGHT)}")
        return found
    return next((name for name in TAUGHT if kind in task_named(name).kinds), "classification")


def cache(
    lab: Lab,
    data: Any,
    plan: Training,
    networks: Networks,
    task: str | None = None,
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
        task: of the networks; by default that of the run that it comes from, or the one that the data are made for.
        networks: the teacher whose answers are stored.
        views: random versions of each image that are stored, which training then shows in turn; by default 8, without augmentation 1. With
            as many as there are epochs, and the same seed, training sees the very images that it would see without a cache. For detection
            2, an image and its mirror image, or 1 without flips: training then always sees what it would see without.
        dtype: of the stored numbers: fp32, fp16 or bf16; boxes are always fp32.
        top: of the logits keep this many of the largest only; by default all.
        rest: what the other classes are given then: ``spread`` the probability that is left, or ``drop`` them.
        taps: module paths whose outputs are stored besides the answers, with commas between; or ``middle`` (for fitnets), ``pooled`` (crd).
    """
    of, experiment = data.task, Experiment(lab, data, plan, networks)
    if networks.teacher.startswith(CACHE):
        raise InputError("teacher", networks.teacher, "a network: what it answered is in a cache already")
    seen, storage = Views(of.views(data, views), lab.options.seed), Storage(dtype, top, rest)
    with lab.shared():
        opened = None
        if hasattr(of, "teachers"):
            opened = of.teachers(data, networks, trust_pickle=lab.options.trust_pickle)
        network = opened.network if opened is not None else experiment.network(networks.teacher, "teacher").network
        paths = _paths(taps, network, of.layers, data.example_inputs())
    folder = CacheFolder(lab.folder)
    with folder.locked():  # before anything is trained
        if lab.options.overwrite:
            folder.clear()
    with lab.shared():
        taught = experiment.teacher() if opened is None else opened.scored(lab, data)
    data = with_unlabelled(data)
    display = StageDisplay("cache")
    rows = data.train_size * seen.count
    begun = (folder.read() or {}).get("done", 0)
    if begun:
        display.say("done before" if begun == rows else f"goes on after {begun} of {rows} answers")
    with display.counting(rows) as progress:
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
            progress=progress,
        )


def _paths(taps: str | None, teacher: nn.Module, layers: Mapping[str, FindLayer], example: Any) -> list[str]:
    """The module paths that were asked for, checked."""
    modules: Mapping[str, Any] = dict(teacher.named_modules())
    words = [word.strip() for word in taps.split(",")] if taps else []
    paths = [layers[word](teacher, example, "taps") if word in layers and word not in modules else word for word in words]
    if len(set(paths)) < len(paths):
        raise InputError("taps", str(taps), "each path once")
    if paths:
        tap(teacher, *paths, argument="taps")
    return paths


def _tell(built: CachedTeacher) -> None:
    size = size_text(sum(file.stat().st_size for file in built.folder.glob("rows/*.npy")))
    views = f"{built.views.count} views each" if built.views.count > 1 else "one view each"
    features = "".join(f", {path}" for path in built.stored)
    console.print(f"cache: {', '.join(built.answer)}{features} of {built.samples} images, {views}, {size}", markup=False)
    console.print(f"use it: stillroom run METHOD --teacher {CACHE}{built.folder} with the same data", markup=False)
