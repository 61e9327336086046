"""`stillroom cache`: a teacher's answers to a training set, written to disk once; `--teacher cache:FOLDER` then reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stillroom.commands.options import read_options
from stillroom.commands.parser import named_as_typed
from stillroom.engine import Lab, LabOptions, Training, tap
from stillroom.engine.cache import CachedTeacher, CacheFolder, Dtype, Rest, Storage, Views, build_cache
from stillroom.engine.console import StageDisplay, console
from stillroom.errors import InputError
from stillroom.tasks.classification import (
    CIFAR100,
    DIGITS,
    IMAGENET,
    TINY_IMAGENET,
    ImageData,
    middle_layer,
    network,
    pooled_layer,
    teacher_stage,
)
from stillroom.tasks.classification.cached import CACHE

PROG = "stillroom cache"
_VIEWS = 8
_LAYERS = {"middle": middle_layer, "pooled": pooled_layer}
_RECIPES = {"paper": CIFAR100, "paper:tiny-imagenet": TINY_IMAGENET, "paper:imagenet": IMAGENET}
PRESETS = {name: {option: value for option, value in preset.items() if option != "student"} for name, preset in _RECIPES.items()}


def run(arguments: list[str], command: str) -> None:
    """Builds a cache, or goes on with one that was begun, and prints where it is and how to use it.

    Args:
        arguments: what follows `stillroom cache`.
        command: the whole line that was typed.
    """
    given = read_options(PROG, cache, arguments, data=ImageData, plan=DIGITS, presets=PRESETS, out="runs/cache")
    with named_as_typed(*given.settings):
        options = LabOptions(**{**given.lab, "out": Path(given.lab["out"])})
        for name in ("devices", "num_nodes", "seeds"):
            if getattr(options, name) != 1:
                raise InputError(name, getattr(options, name), "1: a cache is built once, by one process")
        plan, data = Training(**given.plan), ImageData(**given.data)
        built = cache(Lab(options, settings=given.settings), data, plan, **given.own)
    _tell(built)


def cache(
    lab: Lab,
    data: ImageData,
    plan: Training = DIGITS,
    teacher: str = "stillroom/convnet24",
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
        teacher: network, optionally with weights after ``@``; without weights it is trained first. Or the folder of an earlier run.
        teacher_epochs: epochs for a teacher that has to be trained; by default as many as the plan's.
        views: random versions of each image that are stored, which training then shows in turn; by default 8, without augmentation 1. With
            as many as there are epochs, and the same seed, training sees the very images that it would see without a cache.
        dtype: of the stored numbers: fp32, fp16 or bf16.
        top: of the logits keep this many of the largest only; by default all.
        rest: what the other classes are given then: ``spread`` the probability that is left, or ``drop`` them.
        taps: module paths whose outputs are stored besides the logits, with commas between; or ``middle`` (for fitnets), ``pooled`` (crd).
    """
    if teacher.startswith(CACHE):
        raise InputError("teacher", teacher, "a network: what it answered is in a cache already")
    if views is None:
        views = 1 if data.augment == "none" else _VIEWS
    if views > 1 and data.augment == "none":
        raise InputError("views", views, "1: without augmentation all views of an image are the same")
    seen, storage = Views(views, lab.options.seed), Storage(dtype, top, rest)
    with lab.shared():
        paths = _paths(taps, network(teacher, data, lab, "teacher").network)
    folder = CacheFolder(lab.folder)
    with folder.locked():  # before anything is trained
        if lab.options.overwrite:
            folder.clear()
    taught = teacher_stage(lab, data, plan, teacher, teacher_epochs)
    display = StageDisplay("cache")
    rows = data.train_size * views
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
            about=data.describe(),
            device=lab.device,
            progress=lambda done, _: display.step(done),
        )
    finally:
        display.stop()


def _paths(taps: str | None, teacher: nn.Module) -> list[str]:
    """The module paths that were asked for, checked."""
    modules: Mapping[str, Any] = dict(teacher.named_modules())
    words = [word.strip() for word in taps.split(",")] if taps else []
    paths = [_LAYERS[word](teacher, "taps") if word in _LAYERS and word not in modules else word for word in words]
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
    console.print(f"cache: logits{features} of {built.samples} images, {views}, {amount}", markup=False)
    console.print(f"use it: stillroom run METHOD --teacher {CACHE}{built.folder} with the same data", markup=False)
