"""Where images with boxes come from, as one string: ``scenes``, ``coco:IMAGES,ANNOTATIONS.json``, ``voc:ROOT``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from PIL.Image import Image as PILImage
from torch import Tensor

from stillroom.engine.loading import sample_order
from stillroom.errors import InputError
from stillroom.tasks.detection.files import look_at, told, upright
from stillroom.tasks.detection.scenes import CLASSES, Scene, make_scenes
from stillroom.tasks.images import annotations as read
from stillroom.tasks.images.sources import (
    COCO_OPTIONS,
    IMAGENET_STATISTICS,
    Kind,
    Source,
    drops_empty,
    held_out_share,
    open_coco,
    open_spec,
    open_voc,
    whole_numbers,
)
from stillroom.tasks.images.stores import FileImages, Images, MemoryImages, decodable, taken

_SCENES = {"size": 48, "train": 300, "val": 300, "teacher": 3000, "seed": 0}
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
    """

    images: Images
    boxes: list[np.ndarray]
    labels: list[np.ndarray]
    crowd: list[np.ndarray]
    shapes: list[tuple[int, int]]

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
        boxes, labels, crowd = ([column[i] for i in indices] for column in (self.boxes, self.labels, self.crowd))
        return Annotated(taken(self.images, indices), boxes, labels, crowd, [self.shapes[i] for i in indices])

    def objects(self, num_classes: int) -> np.ndarray:
        """How many boxes there are of each class, int64 [C]; crowds are not counted."""
        labels = [label[crowd == 0] for label, crowd in zip(self.labels, self.crowd, strict=True)]
        return np.bincount(np.concatenate(labels), minlength=num_classes)


@dataclass(frozen=True, kw_only=True)
class DetectionSource(Source):
    """A data set that was found and listed.

    Attributes:
        divisor: of the padded height and width of a batch.
        counts: what was met in the files, and how often: boxes that were clipped, images that were left out, ...
    """

    divisor: int = 32
    counts: Mapping[str, int] = field(default_factory=dict)


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
            many; the students' images are the first of the teacher's) and ``seed=0``;
            ``coco:IMAGES,ANNOTATIONS.json``: COCO's format, with ``,val_images=...,val_annotations=...``, or ``,val=0.2`` held out;
            ``voc:ROOT``: a folder or zip in Pascal VOC's layout, with ``,train=trainval,val=test`` (names of splits, ``train+val`` for
            two), or ``,val=0.2``. Training leaves out images without a box; ``,empty=keep`` keeps them.
        strict: refuse image files that cannot be decoded, which are left out otherwise, with one warning.
        argument: what error messages call it.

    Raises:
        InputError: anything about it that cannot be used.
    """
    found = open_spec(spec, KINDS, argument, others=", followed by where the images are, e.g. voc:VOCdevkit/VOC2007")
    return found if isinstance(found, DetectionSource) else _source(found, argument, strict=strict)


def _open_scenes(path: str, options: dict[str, str], argument: str) -> DetectionSource:
    numbers = _SCENES | whole_numbers(options, argument)
    size, seed = numbers["size"], numbers["seed"]
    if size < 16:
        raise InputError(argument, f"size={size}", "at least 16 pixels")
    sides = (size // 6, size // 2)
    whole = _drawn(make_scenes(max(numbers["teacher"], numbers["train"]), size=size, sides=sides, seed=2 * seed), "train")
    return DetectionSource(
        name="scenes",
        classes=CLASSES,
        train=whole.take(np.arange(numbers["train"])),
        val=_drawn(make_scenes(numbers["val"], size=size, sides=sides, seed=2 * seed + 1), "val"),
        mean=(0.45,) * 3,
        std=(0.25,) * 3,
        fingerprint=hashlib.sha256(repr(sorted(numbers.items())).encode()).hexdigest()[:16],
        teacher=whole.take(np.arange(numbers["teacher"])),
        divisor=16,
    )


def _drawn(scenes: list[Scene], split: str) -> Annotated:
    pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).contiguous()
    images = MemoryImages(pixels, np.zeros(len(scenes), np.int64), [f"scenes/{split}/{i}" for i in range(len(scenes))])
    crowd = [np.zeros(len(scene.labels), np.int64) for scene in scenes]
    shapes = [(len(scene.image), len(scene.image)) for scene in scenes]
    return Annotated(images, [scene.boxes for scene in scenes], [scene.labels for scene in scenes], crowd, shapes)


def _list_coco(path: str, options: dict[str, str], argument: str) -> _Listed:
    return _Listed("coco", *open_coco(path, options, argument), options)


def _list_voc(path: str, options: dict[str, str], argument: str) -> _Listed:
    parts = open_voc(path, options, argument)
    classes = tuple(sorted({thing.name for part in parts for things in part.things for thing in things}))
    return _Listed("voc", classes, parts, options)


KINDS: tuple[Kind[DetectionSource | _Listed], ...] = (
    Kind("scenes", _open_scenes, tuple(_SCENES), needs_path=None),
    Kind("coco", _list_coco, COCO_OPTIONS, needs_path="IMAGES,ANNOTATIONS.json"),
    Kind("voc", _list_voc, ("train", "val", "empty"), needs_path="ROOT"),
)


def _source(listed: _Listed, argument: str, *, strict: bool) -> DetectionSource:
    """A source of one or two annotated splits; of one, a share is held out."""
    name, classes, parts, options = listed
    drop = drops_empty(options, argument, "training images without a box")
    counts: Counter[str] = Counter()
    found = [_with_boxes(part, classes, argument, counts) for part in _readable(parts, argument, counts, strict=strict)]
    if len(found) == 1:
        order = sample_order(0, 0, len(found[0]))
        held_out = max(1, round(held_out_share(options, argument) * len(order)))
        found = [found[0].take(np.sort(part)) for part in (order[held_out:], order[:held_out])]
    train, val = found
    with_target = np.array([i for i, crowd in enumerate(train.crowd) if (crowd == 0).any()], np.int64)
    counts[f"training images without a box, {'left out' if drop else 'kept'}"] = len(train) - len(with_target)
    counts["validation images without a box, kept"] = sum(not (crowd == 0).any() for crowd in val.crowd)
    if drop:
        train = train.take(with_target)
    for images, which in ((train, "training"), (val, "validation")):
        if not len(images) or not images.objects(len(classes)).any():
            raise InputError(argument, f"no {which} image with a box", "at least one")
    unseen = [classes[k] for k in np.flatnonzero(train.objects(len(classes)) == 0)]
    counts[f"classes without a training box: {', '.join(unseen[:5])}{', ...' if len(unseen) > 5 else ''}"] = len(unseen)
    digest = hashlib.sha256(repr((name, classes)).encode())
    for annotated, part in zip((train, val), (parts[0], parts[-1]), strict=True):
        for index in range(len(annotated)):
            path = annotated.images.name(index)
            digest.update(f"{path} {part.sizes[path]}".encode() + annotated.boxes[index].tobytes() + annotated.labels[index].tobytes())
            digest.update(annotated.crowd[index].tobytes())
    mean, std = IMAGENET_STATISTICS
    fingerprint = digest.hexdigest()[:16]
    return DetectionSource(name=name, classes=classes, train=train, val=val, mean=mean, std=std, fingerprint=fingerprint, counts=+counts)


def _readable(parts: Sequence[read.Annotated], argument: str, counts: Counter[str], *, strict: bool) -> list[read.Annotated]:
    """The splits without the image files that cannot be decoded."""
    kept, names = decodable([_files(part) for part in parts], strict=strict, argument=argument)
    counts["image files that cannot be decoded, left out"] = len(names)
    for part, good in zip(parts, kept, strict=True):
        if not len(good):
            raise InputError(argument, f"{len(part.names)} images, none of which can be decoded", "at least one")
    return [
        read.Annotated(
            part.store, [part.names[i] for i in good], [part.things[i] for i in good], part.sizes, [part.shapes[i] for i in good]
        )
        for part, good in zip(parts, kept, strict=True)
    ]


def _files(part: read.Annotated) -> FileImages:
    return FileImages(part.store, part.names, np.zeros(len(part.names), np.int64))


def _with_boxes(part: read.Annotated, classes: tuple[str, ...], argument: str, counts: Counter[str]) -> Annotated:
    """Boxes in the upright image, clipped to it; those of less than a pixel in it are left out."""
    number = {name: k for k, name in enumerate(classes)}
    images = _files(part)
    looks = look_at(images)
    counts.update(told(looks))
    made = Annotated(images, [], [], [], [look.shape for look in looks])
    for path, things, said, look in zip(part.names, part.things, part.shapes, looks, strict=True):
        if missing := [thing.name for thing in things if thing.box is None]:
            raise InputError(argument, f"{path} with an object {missing[0]} without a box", "a box for each object")
        boxes = np.array([thing.box for thing in things], np.float32).reshape(-1, 4)
        if not np.isfinite(boxes).all():
            raise InputError(argument, f"{path} with a box of numbers that are not finite", "numbers of pixels")
        boxes, turned = upright(boxes, look, said, path, argument)
        inside = boxes.clip(0, np.array(look.shape[::-1] * 2, np.float32))
        large = ((inside[:, 2:] - inside[:, :2]) >= _LEAST).all(1)
        crowd = np.array([thing.crowd for thing in things], np.int64)
        counts["images whose boxes were turned with them"] += turned
        counts["boxes that reached out of their image, clipped"] += int((inside != boxes)[large].any(1).sum())
        counts["boxes of less than a pixel in their image, left out"] += int((~large).sum())
        counts["crowd or difficult boxes, neither asked for nor wrong"] += int(crowd[large].sum())
        labels = np.array([number[thing.name] for thing in things], np.int64)
        made.boxes.append(inside[large])
        made.labels.append(labels[large])
        made.crowd.append(crowd[large])
    return made
