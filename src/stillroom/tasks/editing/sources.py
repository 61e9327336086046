"""Where the pictures to edit come from: drawn ones, a folder of photos, or any classified images."""

from __future__ import annotations

import numpy as np

from stillroom.tasks.editing.shapes import COLOURS, SIZE, drawn_shapes
from stillroom.tasks.images.classified import KINDS as CLASSIFIED
from stillroom.tasks.images.classified import open_source as open_classified
from stillroom.tasks.images.folders import list_files, passed_over, told_apart
from stillroom.tasks.images.labelled import source_of
from stillroom.tasks.images.sources import Kind, LabelledSource, held_out_share, kind_of, open_spec, whole_numbers
from stillroom.tasks.images.stores import FileImages, hold_out

DRAWN, PHOTOS = "colours", "photos"
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # statistics that bring pixels to [-1, 1], what diffusion models read
_SMALL, _LARGE = 64, 256  # pixels by default: of classes, which a small denoiser learns; of plain photos, which a pipeline edits
_TRAIN, _VAL = 3840, 500


def open_source(spec: str, argument: str = "data") -> LabelledSource:
    """Finds and lists the pictures that a specification names.

    Args:
        spec: ``colours``: drawn shapes of six colours, 3840 to train on and 500 to measure with, or ``:train=N,val=N,seed=S``;
            ``photos:FOLDER``: a folder or zip of any image files at any depth, of which the share ``,val=0.2`` is held out; or what
            classification reads, such as ``imagefolder:PATH``, whose classes are conditions.
        argument: what error messages call it.

    Raises:
        InputError: anything about it that cannot be used.
    """
    if kind_of(spec) in (kind.name for kind in _KINDS):
        return open_spec(spec, _KINDS, argument, others=f", {', '.join(kind.name for kind in CLASSIFIED)}")
    return open_classified(spec, argument=argument)


def size_of(source: LabelledSource) -> tuple[int, str]:
    """The pictures' size in pixels by default, and why."""
    if source.name == DRAWN or source.augment == "cifar":
        return source.image_size, source.why
    return (_LARGE, "the default for photos") if source.name == PHOTOS else (_SMALL, "the default of a denoiser that is trained here")


def _open_drawn(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    counts = {"train": _TRAIN, "val": _VAL, "seed": 0, **whole_numbers(options, argument)}
    train, val = (drawn_shapes(counts[split], 2 * counts["seed"] + part).images for part, split in enumerate(("train", "val")))
    return source_of(DRAWN, COLOURS, train, val, {}, SIZE, HALF, "none", why="the size that they are drawn in")


def _open_photos(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    store, files, _ = list_files(path, argument)
    names, others = told_apart(store, files)
    labels = np.zeros(len(names), np.int64)
    held_out = hold_out(labels, ("photo",), held_out_share(options, argument), argument)
    train, val = (FileImages(store, [names[i] for i in np.flatnonzero(part)], labels[part]) for part in (~held_out, held_out))
    notes = [f"held out {held_out.sum()} of {len(names)} photos to measure with, always the same", *passed_over(others)]
    return source_of(PHOTOS, ("photo",), train, val, files, _LARGE, HALF, "none", notes=notes)


_KINDS = (
    Kind(DRAWN, _open_drawn, ("train", "val", "seed"), needs_path=None),
    Kind(PHOTOS, _open_photos, ("val",), needs_path="FOLDER"),
)
