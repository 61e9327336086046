"""Where images with boxes come from, as one string: ``scenes``, ``coco:IMAGES,ANNOTATIONS.json``, ``voc:ROOT``, ``yolo:data.yaml``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image as PILImage
from torch import Tensor

from stillroom.errors import InputError
from stillroom.tasks.detection.files import look_at, note_looks, turned
from stillroom.tasks.detection.scenes import CLASSES, make_scenes
from stillroom.tasks.images import annotations as read
from stillroom.tasks.images.coco import COCO_OPTIONS, mask_bounds, open_coco
from stillroom.tasks.images.sources import (
    IMAGENET_STATISTICS,
    Kind,
    Source,
    drops_empty,
    held_out_samples,
    held_out_share,
    open_spec,
    whole_numbers,
)
from stillroom.tasks.images.stores import FileImages, Images, MemoryImages, decodable, joined, taken
from stillroom.tasks.images.voc import open_voc
from stillroom.tasks.images.yolo import open_yolo

_SCENES = {"size": 48, "train": 300, "val": 300, "teacher": 3000, "seed": 0, "plain": 0}
_LEAST = 1.0  # pixels of a box's height and width


@dataclass(frozen=True)
class Annotated:
    """Images of one split and their objects.

    Attributes:
        images: read one at a time.
        boxes: of each image float32 [G, 4], absolute (x1, y1, x2, y2).
        labels: of each image int64 [G].
        crowd: of each image int64 [G], see `DetectionBatch`.
        shapes: (height, width) of each image.
        keys: what its annotation knows each image by, see `images.annotations.Annotated`; empty for images without files of annotations.
        order: of each image int64 [G], which of its annotation's objects these are, from 0; likewise.
    """

    images: Images
    boxes: list[np.ndarray]
    labels: list[np.ndarray]
    crowd: list[np.ndarray]
    shapes: list[tuple[int, int]]
    keys: list[Any] = field(default_factory=list)
    order: list[np.ndarray] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.boxes)

    def image(self, index: int) -> Tensor | PILImage:
        """One image, read now."""
        return self.images.image(index)

    def name(self, index: int) -> str:
        """What a report calls an image."""
        return self.images.name(index)

    def take(self, indices: np.ndarray) -> Annotated:
        """The images of these indices."""
        columns = self.boxes, self.labels, self.crowd, self.shapes, self.keys, self.order
        return Annotated(taken(self.images, indices), *([column[i] for i in indices] if column else [] for column in columns))

    def with_more(self, others: Annotated) -> Annotated:
        """These images and others as one set, the others' numbered behind."""
        columns = ("boxes", "labels", "crowd", "shapes", "keys", "order")
        return Annotated(joined(self.images, others.images), *([*getattr(self, name), *getattr(others, name)] for name in columns))

    def objects(self, num_classes: int) -> np.ndarray:
        """How many boxes there are of each class, int64 [C]; crowds are not counted."""
        labels = [label[crowd == 0] for label, crowd in zip(self.labels, self.crowd, strict=True)]
        return np.bincount(np.concatenate(labels), minlength=num_classes)


@dataclass(frozen=True, kw_only=True)
class DetectionSource(Source):
    """A data set that was found and listed.

    Attributes:
        divisor: of the padded height and width of a batch.
        notes: what was met in the files and passed over or put right: boxes that were clipped, images that were left out, ...
    """

    divisor: int = 32
    notes: read.Notes = field(default_factory=read.Notes)


class _Listed(NamedTuple):
    """Annotated images as they lie on disk: their classes, the one split or the two, and what was asked of them."""

    name: str
    classes: tuple[str, ...]
    parts: list[read.Annotated]
    options: dict[str, str]


def open_source(spec: str, *, strict: bool = False, argument: str = "data") -> DetectionSource:
    """Find and list the images that a specification names.

    Args:
        spec: one of
            ``scenes`` (see `scenes.make_scenes`), with the options ``size=48`` (pixels), ``train=300``, ``val=300``, ``teacher=3000`` (how
            many; the students' images are the first of the teacher's), ``seed=0`` and ``plain=1`` for easy ones;
            ``coco:IMAGES,ANNOTATIONS.json``: COCO's format, with ``,val_images=...,val_annotations=...``, or ``,val=0.2`` held out; or
            ``coco:ROOT``, see `images.coco.open_coco`;
            ``voc:ROOT``: a folder or zip with Pascal VOC's annotations, with ``,train=trainval,val=test`` (names of splits, ``train+val``
            for two), or ``,val=0.2``, see `images.voc.open_voc`;
            ``yolo:data.yaml``, with ``,train=train,val=val`` or ``,val=0.2``, see `images.yolo.open_yolo`.
            Training leaves out images without a box; ``,empty=keep`` keeps them. Classes without a box are kept; ``,unused=drop`` leaves
            them out.
        strict: refuse image files that cannot be decoded, which are left out otherwise, with one warning.
        argument: what error messages call it.

    Raises:
        InputError: anything about it that cannot be used.
    """
    found = open_spec(spec, KINDS, argument, others=", followed by where the images are, e.g. voc:VOCdevkit/VOC2007")
    return found if isinstance(found, DetectionSource) else _source(found, argument, strict=strict)


def _open_scenes(path: str, options: dict[str, str], argument: str) -> DetectionSource:
    numbers = _SCENES | whole_numbers(options, argument, zero=("seed", "plain"))
    size, seed, plain = numbers["size"], numbers["seed"], numbers["plain"]
    if size < 16:
        raise InputError(argument, f"size={size}", "at least 16 pixels")
    if plain not in (0, 1):
        raise InputError(argument, f"plain={plain}", "0 or 1")
    whole = _drawn("train", max(numbers["teacher"], numbers["train"]), size=size, seed=2 * seed, plain=bool(plain))
    known = {name: number for name, number in numbers.items() if name != "plain" or number}  # fingerprints are older than plain scenes
    return DetectionSource(
        name="scenes",
        classes=CLASSES,
        train=whole.take(np.arange(numbers["train"])),
        val=_drawn("val", numbers["val"], size=size, seed=2 * seed + 1, plain=bool(plain)),
        mean=(0.45,) * 3,
        std=(0.25,) * 3,
        fingerprint=hashlib.sha256(repr(sorted(known.items())).encode()).hexdigest()[:16],
        teacher=whole.take(np.arange(numbers["teacher"])),
        divisor=16,
    )


def _drawn(split: str, count: int, *, size: int, seed: int, plain: bool) -> Annotated:
    pixels, boxes, labels = (list(column) for column in zip(*make_scenes(count, size=size, seed=seed, plain=plain), strict=True))
    images_BCHW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    images = MemoryImages(images_BCHW, np.zeros(count, np.int64), [f"scenes/{split}/{i}" for i in range(count)])
    return Annotated(images, boxes, labels, [np.zeros_like(label) for label in labels], [(size, size)] * count)


def _list_coco(path: str, options: dict[str, str], argument: str) -> _Listed:
    return _Listed("coco", *open_coco(path, options, argument), options)


def _list_voc(path: str, options: dict[str, str], argument: str) -> _Listed:
    parts = open_voc(path, options, argument)
    classes = tuple(sorted({thing.name for part in parts for things in part.things for thing in things}))
    return _Listed("voc", classes, parts, options)


def _list_yolo(path: str, options: dict[str, str], argument: str) -> _Listed:
    return _Listed("yolo", *open_yolo(path, options, argument), options)


KINDS: tuple[Kind[DetectionSource | _Listed], ...] = (
    Kind("scenes", _open_scenes, tuple(_SCENES), needs_path=None),
    Kind("coco", _list_coco, (*COCO_OPTIONS, "unused"), needs_path="IMAGES,ANNOTATIONS.json"),
    Kind("voc", _list_voc, ("train", "val", "empty"), needs_path="ROOT"),
    Kind("yolo", _list_yolo, ("train", "val", "empty", "unused"), needs_path="data.yaml"),
)


def _source(listed: _Listed, argument: str, *, strict: bool) -> DetectionSource:
    """A source of one or two annotated splits; of one, a share is held out."""
    name, classes, parts, options = listed
    drop = drops_empty(options, argument, "training images without a box")
    if (unused := options.get("unused", "keep")) not in ("drop", "keep"):
        raise InputError(argument, f"unused={unused}", "drop or keep: classes without a box")
    if unused == "drop":
        used = {thing.name for part in parts for things in part.things for thing in things}
        classes = tuple(name for name in classes if name in used)
    notes = read.Notes()
    for part in parts:
        notes.update(part.notes)
    kept, unreadable = decodable([_files(part) for part in parts], strict=strict, argument=argument)
    found = [_with_boxes(part, good, classes, argument, notes) for part, good in zip(parts, kept, strict=True)]
    if len(found) == 1:
        held_N = held_out_samples(len(found[0]), held_out_share(options, argument))
        found = [found[0].take(np.flatnonzero(part)) for part in (~held_N, held_N)]
    train, val = found
    empty_N, val_empty_N = (np.array([not (crowd == 0).any() for crowd in images.crowd], bool) for images in found)
    _note(notes, f"training images without a box, {'left out' if drop else 'kept'}", empty_N, train.name)
    _note(notes, "validation images without a box, kept", val_empty_N, val.name)
    hard = [sum(int((crowd > 0).sum()) for crowd in images.crowd) for images in found]
    if drop:
        train = train.take(np.flatnonzero(~empty_N))
    for images, which, count in zip((train, val), ("training", "validation"), hard, strict=True):
        if not len(images) or not images.objects(len(classes)).any():
            marked = f" (but {count} that are marked as crowd or difficult, which are not trained on)" if count else ""
            raise InputError(argument, f"no {which} image with a box{marked}", "at least one")
    seen_C, measured_C = (images.objects(len(classes)) > 0 for images in (train, val))
    _note_classes(notes, "classes without a training box", ~seen_C & measured_C, classes)
    _note_classes(notes, "classes without a box in either split (,unused=drop leaves them out)", ~seen_C & ~measured_C, classes)
    notes.warn(argument)
    notes.add("image files that cannot be decoded, left out", unreadable[0] if unreadable else "", len(unreadable))  # of which was warned
    digest = hashlib.sha256(repr((name, classes)).encode())
    for annotated, part in zip((train, val), (parts[0], parts[-1]), strict=True):
        for index in range(len(annotated)):
            path = annotated.images.name(index)
            digest.update(f"{path} {part.sizes[path]}".encode() + annotated.boxes[index].tobytes() + annotated.labels[index].tobytes())
            digest.update(annotated.crowd[index].tobytes())
    mean, std = IMAGENET_STATISTICS
    fingerprint = digest.hexdigest()[:16]
    return DetectionSource(name=name, classes=classes, train=train, val=val, mean=mean, std=std, fingerprint=fingerprint, notes=notes)


def _note(notes: read.Notes, what: str, met: np.ndarray, name: Callable[[int], str]) -> None:
    """Notes in how many places something was met, bool, and the first of these."""
    notes.add(what, name(int(met.argmax())) if met.any() else "", int(met.sum()))


def _note_classes(notes: read.Notes, what: str, met_C: np.ndarray, classes: tuple[str, ...]) -> None:
    names = [classes[k] for k in np.flatnonzero(met_C)]
    notes.add(f"{what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}", "", len(names))


def _files(part: read.Annotated) -> FileImages:
    return FileImages(part.store, part.names, np.zeros(len(part.names), np.int64))


def _with_boxes(part: read.Annotated, kept: np.ndarray, classes: tuple[str, ...], argument: str, notes: read.Notes) -> Annotated:
    """The images of these indices; boxes in the upright image, clipped to it; those of less than a pixel in it are left out.

    T are the boxes of all N images, one after the other.
    """
    if not len(kept):
        raise InputError(argument, f"{len(part.names)} images, none of which can be decoded", "at least one")
    number = {name: k for k, name in enumerate(classes)}
    images = _files(part).take(kept)
    looks = look_at(images)
    note_looks(notes, images.names, looks)
    objects = [part.things[index] for index in kept]
    things = [thing for mine in objects for thing in mine]
    ends_N = np.cumsum([len(mine) for mine in objects])
    image_T = np.repeat(np.arange(len(images)), np.diff(ends_N, prepend=0))

    def name(place: int) -> str:
        return images.name(image_T[place])

    with np.errstate(over="ignore"):  # it becomes infinite
        boxes_T4 = np.array([_box(thing, name, t, argument) for t, thing in enumerate(things)], np.float32).reshape(-1, 4)
    _note(notes, "objects without a box, which their masks give", np.array([thing.box is None for thing in things], bool), name)
    if not (finite_T := np.isfinite(boxes_T4).all(1)).all():
        raise InputError(argument, f"{name(int(finite_T.argmin()))} with a box of numbers that are not finite", "numbers of pixels")
    sides_T4 = np.array([look.shape[::-1] * 2 for look in looks], np.float32)[image_T]
    boxes_T4 = np.where(np.array(part.relative, bool)[kept][image_T, None], boxes_T4 * sides_T4, boxes_T4)
    ordered_T4 = np.concatenate((np.minimum(boxes_T4[:, :2], boxes_T4[:, 2:]), np.maximum(boxes_T4[:, :2], boxes_T4[:, 2:])), 1)
    _note(notes, read.SWAPPED, (ordered_T4 != boxes_T4).any(1), name)
    for place, look in enumerate(looks):
        said = part.shapes[kept[place]]
        if said is not None and said != look.shape:
            mine = slice(ends_N[place] - len(objects[place]), ends_N[place])
            ordered_T4[mine] = turned(ordered_T4[mine], look, said, images.name(place), argument)
            notes.add("images whose boxes were turned with them", images.name(place))
    inside_T4 = ordered_T4.clip(0, sides_T4)
    large_T = ((inside_T4[:, 2:] - inside_T4[:, :2]) >= _LEAST).all(1)
    crowd_T = np.array([thing.crowd for thing in things], np.int64)
    _note(notes, "boxes that reached out of their image, clipped", (inside_T4 != ordered_T4).any(1) & large_T, name)
    _note(notes, "boxes of less than a pixel in their image, left out", ~large_T, name)
    _note(notes, "crowd or difficult boxes, neither asked for nor wrong", (crowd_T > 0) & large_T, name)
    labels_T = np.array([number[thing.name] for thing in things], np.int64)
    ends = np.cumsum(np.bincount(image_T[large_T], minlength=len(images)))[:-1]
    order_T = np.arange(len(things)) - (ends_N - [len(mine) for mine in objects])[image_T]
    boxes, labels, crowd, order = (np.split(column[large_T], ends) for column in (inside_T4, labels_T, crowd_T, order_T))
    keys = [part.keys[index] for index in kept] if part.keys else []
    return Annotated(images, boxes, labels, crowd, [look.shape for look in looks], keys, order)


def _box(thing: read.Thing, name: Callable[[int], str], place: int, argument: str) -> read.Box:
    if thing.box is not None:
        return thing.box
    if thing.mask is None:
        raise InputError(argument, f"{name(place)} with an object {thing.name} without a box", "a box for each object, or a mask")
    try:
        return mask_bounds(thing.mask)
    except ValueError as error:
        raise InputError(argument, f"{name(place)} with a mask of {thing.name} that cannot be read ({error})", "COCO's masks") from None
