"""Where images with several labels come from, as one string: ``mosaics``, ``coco:IMAGES,ANNOTATIONS.json``, ``voc:ROOT``, ``csv:FILE``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stillroom.engine.loading import sample_order
from stillroom.errors import InputError, near
from stillroom.tasks.images.annotations import Annotated, read_coco, read_tags, read_voc, voc_splits
from stillroom.tasks.images.arguments import fraction, split_options
from stillroom.tasks.images.folders import check_same
from stillroom.tasks.images.stores import FileImages, Images
from stillroom.tasks.multilabel.mosaics import Mosaics

_DEFAULT_VAL = "0.2"
_SIZE = 224


Condition = tuple[str, int]  # a label: at least so many objects of a class


@dataclass(frozen=True)
class Source:
    """A data set that was found and listed.

    Attributes:
        name: its kind, e.g. "voc".
        classes: names of the labels; column k is `classes[k]`.
        train, val: the images, with `labels` uint8 [N, K], 0 or 1.
        image_size: height and width in pixels that networks are given by default.
        augment: name of the default augmentation.
        fingerprint: hash of labels, file names and sizes; not of where the files lie, nor of every byte.
        teacher: images that a teacher is trained on, where they are others.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    val: Images
    image_size: int
    augment: str
    fingerprint: str
    teacher: Images | None = None


def open_source(spec: str, *, argument: str = "data") -> Source:
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
    kind, colon, rest = spec.partition(":")
    path, options = split_options(rest if colon else spec, argument)
    kind = kind if colon else path
    if kind not in _OPENERS:
        raise InputError(argument, spec, f"one of {', '.join(_OPENERS)}, followed by where the images are, e.g. voc:VOCdevkit/VOC2007")
    opener, known = _OPENERS[kind]
    for name, value in options.items():
        if name not in known:
            raise InputError(argument, f"{name}={value}", f"an option of {kind}: {near(name, known)}")
    if kind != "mosaics" and not (colon and path):
        raise InputError(argument, spec, f"{kind}:{'IMAGES,ANNOTATIONS.json' if kind == 'coco' else 'PATH'}")
    return opener(path if colon else "digits", options, argument)


def _open_mosaics(path: str, options: dict[str, str], argument: str) -> Source:
    fill = _number("fill", options.pop("fill", "0.7"), argument)
    whole = {name: _whole(name, value, argument) for name, value in options.items()}
    sizes = {"train": whole.pop("train", 800), "val": whole.pop("val", 1000), "teacher": whole.pop("teacher", 4000)}
    made = Mosaics(path, fill=fill, argument=argument, **whole)
    classes, digest = made.classes, hashlib.sha256(repr((made.key, sizes)).encode())
    parts = {split: made.images(split, count) for split, count in sizes.items()}
    return Source("mosaics", classes, parts["train"], parts["val"], made.size, "none", digest.hexdigest()[:16], parts["teacher"])


def _open_coco(path: str, options: dict[str, str], argument: str) -> Source:
    images, comma, annotations = path.rpartition(",")
    if not comma:
        raise InputError(argument, f"coco:{path}", "coco:IMAGES,ANNOTATIONS.json")
    classes, train = read_coco(images.strip(), annotations.strip(), argument)
    val = None
    if "val_annotations" in options or "val_images" in options:
        _not_both("val_annotations", options, argument)
        other, val = read_coco(options.get("val_images", images), options.get("val_annotations", annotations), argument)
        check_same(classes, other, argument)
        if val.names == train.names:
            raise InputError(argument, f"coco:{path}", "val_images and val_annotations of another set than training")
    empty = options.get("empty", "drop")
    if empty not in ("drop", "keep"):
        raise InputError(argument, f"empty={empty}", "drop or keep: images without any object")
    parts = [train] if val is None else [train, val]
    return _source("coco", [(name, 1) for name in classes], parts, options, argument, drop=empty == "drop")


def _open_voc(path: str, options: dict[str, str], argument: str) -> Source:
    known = voc_splits(path, argument)
    share = "val" in options and _is_number(options["val"])
    if share or not (known or "train" in options or "val" in options):
        names = [options["train"]] if "train" in options else []
    elif "test" in known:
        names = [options.get("train", "trainval" if "trainval" in known else "train"), options.get("val", "test")]
    else:
        names = [options.get("train", "train"), options.get("val", "val")]
    parts = read_voc(path, names, argument)
    if len(parts) == 2 and (both := set(parts[0].names) & set(parts[1].names)):
        raise InputError(argument, f"train={names[0]}, val={names[1]}, which share {len(both)} images", "splits that share none")
    found = sorted({name for part in parts for objects in part.objects for name in objects})
    conditions = _conditions(options["counts"], found, argument) if "counts" in options else [(name, 1) for name in found]
    return _source("voc", conditions, parts, options, argument)


def _open_csv(path: str, options: dict[str, str], argument: str) -> Source:
    train = read_tags(path, options.get("images"), argument)
    parts = [train]
    if "val" in options and not _is_number(options["val"]):
        parts.append(read_tags(options["val"], options.get("images"), argument))
    tags = sorted({tag for part in parts for tags in part.objects for tag in tags})
    return _source("csv", [(tag, 1) for tag in tags], parts, options, argument)


_OPENERS: dict[str, tuple[Callable[[str, dict[str, str], str], Source], tuple[str, ...]]] = {
    "mosaics": (_open_mosaics, ("train", "val", "teacher", "grid", "tile", "fill", "seed")),
    "coco": (_open_coco, ("val_images", "val_annotations", "val", "empty")),
    "voc": (_open_voc, ("train", "val", "counts")),
    "csv": (_open_csv, ("val", "images")),
}


# From objects to labels -----------------------------------------------------------------------------------------------------------------


def _source(
    name: str, conditions: Sequence[Condition], parts: Sequence[Annotated], options: dict[str, str], argument: str, *, drop: bool = False
) -> Source:
    """A source of one or two annotated splits; of one, a share is held out."""
    classes = tuple(kind if least == 1 else f"{kind} >= {least}" for kind, least in conditions)
    if len(classes) < 2:
        raise InputError(argument, f"{len(classes)} labels ({', '.join(classes)})", "at least two")
    split = [_labelled(part, conditions, drop=drop) for part in parts]
    if len(split) == 1:
        held_out_N = hold_out(split[0].labels, fraction(options.get("val", _DEFAULT_VAL), argument))
        split = [_taken(split[0], np.flatnonzero(part)) for part in (~held_out_N, held_out_N)]
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
    return Source(name, classes, train, val, _SIZE, "randaugment", digest.hexdigest()[:16])


def _labelled(part: Annotated, conditions: Sequence[Condition], *, drop: bool) -> FileImages:
    """Labels uint8 [N, K] of each image; `drop` leaves out images without any object."""
    objects = part.objects
    kept = [i for i, counted in enumerate(objects) if counted or not drop]
    labels = np.array([[objects[i][kind] >= least for kind, least in conditions] for i in kept], np.uint8)
    return FileImages(part.store, [part.names[i] for i in kept], labels.reshape(len(kept), len(conditions)))


def _taken(images: FileImages, indices: np.ndarray) -> FileImages:
    return FileImages(images.store, [images.names[i] for i in indices.tolist()], images.labels[indices])


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


def _not_both(name: str, options: dict[str, str], argument: str) -> None:
    if "val" in options:
        raise InputError(argument, f"val={options['val']}", f"either a share to hold out or {name}, not both")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(name: str, text: str, argument: str) -> float:
    if not _is_number(text):
        raise InputError(argument, f"{name}={text}", "a number")
    return float(text)


def _whole(name: str, text: str, argument: str) -> int:
    if not text.isdecimal() or (name in ("train", "val", "teacher") and not int(text)):
        raise InputError(argument, f"{name}={text}", "a whole number" if name == "seed" else "a whole number of at least 1")
    return int(text)
