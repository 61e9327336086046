"""Where images with several labels come from, as one string: ``mosaics``, ``coco:IMAGES,ANNOTATIONS.json``, ``voc:ROOT``, ``csv:FILE``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from stillroom.engine.loading import sample_order
from stillroom.errors import InputError, near
from stillroom.tasks.images.annotations import Annotated, read_tags
from stillroom.tasks.images.coco import COCO_OPTIONS, open_coco
from stillroom.tasks.images.mosaics import Mosaics
from stillroom.tasks.images.sources import Kind, LabelledSource, drops_empty, held_out_share, is_number, open_spec, whole_numbers
from stillroom.tasks.images.stores import FileImages, UnreadableImage
from stillroom.tasks.images.voc import open_voc

_SIZE = 224
_PLAIN: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # pixels are normalised by nothing, as the paper does

Condition = tuple[str, int]  # a label: at least so many objects of a class


def open_source(spec: str, *, argument: str = "data") -> LabelledSource:
    """Find and list the images that a specification names.

    Args:
        spec: one of
            ``mosaics[:SOURCE]``: grids of small images, made up of those of a classification set (see `mosaics.Mosaics`): ``digits`` by
            default, else e.g. ``mosaics:imagefolder:photos,tile=16``; options ``train=800``, ``val=1000``, ``teacher=4000`` (how many),
            ``grid=2``, ``tile`` (pixels), ``fill=0.7``, ``seed=0``;
            ``coco:IMAGES,ANNOTATIONS.json``: COCO's format, with ``,val_images=...,val_annotations=...``, or ``,val=0.2`` held out; images
            without an object are left out, ``,empty=keep`` keeps them;
            ``voc:ROOT``: a folder or zip in Pascal VOC's layout, with ``,train=trainval,val=test`` (names of splits, ``train+val`` for
            two), or ``,val=0.2``; ``,counts=RBC:10:15+WBC`` for other labels: at least 10, at least 15 objects RBC, and one WBC;
            ``csv:FILE``: rows ``file,tag;tag``, with ``,val=FILE`` or ``,val=0.2``, and ``,images=FOLDER`` where files are not beside it.
        argument: what error messages call it.

    Raises:
        InputError: anything about it that cannot be used.
    """
    return open_spec(spec, KINDS, argument, others=", followed by where the images are, e.g. voc:VOCdevkit/VOC2007")


def _open_mosaics(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    fill = options.pop("fill", "0.7")
    if not is_number(fill):
        raise InputError(argument, f"fill={fill}", "a number")
    whole = {"train": 800, "val": 1000, "teacher": 4000, **whole_numbers(options, argument)}
    sizes = {split: whole.pop(split) for split in ("train", "val", "teacher")}
    made = Mosaics(path, fill=float(fill), argument=argument, **whole)
    digest = hashlib.sha256(repr((made.key, sizes)).encode())
    parts: dict[str, Any] = {split: made.images(split, count) for split, count in sizes.items()}
    return LabelledSource(
        name="mosaics", classes=made.classes, fingerprint=digest.hexdigest()[:16], image_size=made.size, augment="none", **parts, **_PLAIN
    )


def _open_coco(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    classes, parts = open_coco(path, options, argument)
    drop = drops_empty(options, argument, "images without any object")
    return _source("coco", [(name, 1) for name in classes], parts, options, argument, drop=drop)


def _open_voc(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    parts = open_voc(path, options, argument)
    found = sorted({name for part in parts for objects in part.objects for name in objects})
    conditions = _conditions(options["counts"], found, argument) if "counts" in options else [(name, 1) for name in found]
    return _source("voc", conditions, parts, options, argument)


def _open_csv(path: str, options: dict[str, str], argument: str) -> LabelledSource:
    parts = [read_tags(path, options.get("images"), argument)]
    if "val" in options and not is_number(options["val"]):
        parts.append(read_tags(options["val"], options.get("images"), argument))
    tags = sorted({tag for part in parts for tags in part.objects for tag in tags})
    return _source("csv", [(tag, 1) for tag in tags], parts, options, argument)


KINDS = (
    Kind("mosaics", _open_mosaics, ("train", "val", "teacher", "grid", "tile", "fill", "seed"), needs_path="SOURCE", path="digits"),
    Kind("coco", _open_coco, COCO_OPTIONS, needs_path="IMAGES,ANNOTATIONS.json"),
    Kind("voc", _open_voc, ("train", "val", "counts")),
    Kind("csv", _open_csv, ("val", "images")),
)


# From objects to labels -----------------------------------------------------------------------------------------------------------------


def _source(
    name: str, conditions: Sequence[Condition], parts: Sequence[Annotated], options: dict[str, str], argument: str, *, drop: bool = False
) -> LabelledSource:
    """A source of one or two annotated splits; of one, a share is held out."""
    classes = tuple(kind if least == 1 else f"{kind} >= {least}" for kind, least in conditions)
    if len(classes) < 2:
        raise InputError(argument, f"{len(classes)} labels ({', '.join(classes)})", "at least two")
    for part in parts:
        part.notes.warn(argument)
    split = [_labelled(part, conditions, drop=drop) for part in parts]
    if len(split) == 1:
        held_out_N = hold_out(split[0].labels, held_out_share(options, argument))
        split = [split[0].take(np.flatnonzero(part)) for part in (~held_out_N, held_out_N)]
    train, val = split
    for images, which in ((train, "training"), (val, "validation")):
        if not len(images):
            raise InputError(argument, f"no {which} image", "at least one")
    if unseen := [classes[k] for k in np.flatnonzero(~train.labels.any(0))]:
        raise InputError(argument, f"labels that no training image has: {', '.join(unseen[:5])}", "an image to learn each label from")
    digest = hashlib.sha256(repr((name, classes)).encode())
    for images, part in zip(split, (parts[0], parts[-1]), strict=True):
        digest.update(np.ascontiguousarray(images.labels).tobytes())
        digest.update("\n".join(f"{path} {part.sizes[path]}" for path in images.names).encode())
    found: dict[str, Any] = {"fingerprint": digest.hexdigest()[:16], "image_size": _SIZE, "augment": "randaugment", **_PLAIN}
    found["why"] = f"the default{_first_size(train)}"
    return LabelledSource(name=name, classes=classes, train=train, val=val, **found)


def _first_size(images: FileImages) -> str:
    """What is said of the size of the first image that can be read; a smaller one is enlarged."""
    for index in range(min(len(images), 5)):
        try:
            width, height = images.image(index).size
        except UnreadableImage:
            continue
        smaller = f"; enlarged: --image-size {min(width, height)} takes less time" if min(width, height) < _SIZE else ""
        return f", whatever their size (the first is {width} × {height}{smaller})"
    return ""


def _labelled(part: Annotated, conditions: Sequence[Condition], *, drop: bool) -> FileImages:
    """Labels uint8 [N, K] of each image; `drop` leaves out images without any object."""
    objects = part.objects
    kept = [i for i, counted in enumerate(objects) if counted or not drop]
    labels = np.array([[objects[i][kind] >= least for kind, least in conditions] for i in kept], np.uint8)
    return FileImages(part.store, [part.names[i] for i in kept], labels.reshape(len(kept), len(conditions)))


def hold_out(labels_NK: np.ndarray, share: float) -> np.ndarray:
    """Which images validate, bool [N]: about the share, always the same ones, and never the last one of a label to learn from."""
    left_K, wanted = labels_NK.sum(0, dtype=np.int64), max(1, round(share * len(labels_NK)))
    held_out_N = np.zeros(len(labels_NK), bool)
    for index in sample_order(0, 0, len(labels_NK)).tolist():
        if wanted and (left_K[labels_NK[index] > 0] > 1).all():
            held_out_N[index] = True
            left_K -= labels_NK[index]
            wanted -= 1
    return held_out_N


# Reading a specification ----------------------------------------------------------------------------------------------------------------


def _conditions(text: str, found: Sequence[str], argument: str) -> list[Condition]:
    """``RBC:10:15+WBC``: at least 10 RBC, at least 15, and at least one WBC."""
    conditions: list[Condition] = []
    for part in text.split("+"):
        kind, *counts = (word.strip() for word in part.split(":"))
        if kind not in found:
            raise InputError(argument, f"counts={text}", f"classes of the annotations: {near(kind, found)}")
        if not all(count.isdecimal() and int(count) for count in counts):
            raise InputError(argument, f"counts={text}", "whole numbers of at least 1 behind a class, as in RBC:10:15+WBC")
        conditions += [(kind, int(count)) for count in counts or ["1"]]
    if twice := [kind for (kind, least), times in Counter(conditions).items() if times > 1]:
        raise InputError(argument, f"counts={text}", f"each number once; {twice[0]} has one twice")
    return conditions
