"""Where images with boxes come from, as one string: ``scenes``, ``coco:IMAGES,ANNOTATIONS.json``, ``voc:ROOT``."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from stillroom.engine.loading import sample_order
from stillroom.errors import InputError, near
from stillroom.tasks import annotations as read
from stillroom.tasks.classification.folders import check_same
from stillroom.tasks.classification.images import FileImages, Images, MemoryImages
from stillroom.tasks.detection.scenes import CLASSES, Scene, make_scenes

_SCENES = {"size": 48, "train": 300, "val": 300, "teacher": 3000, "seed": 0}
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DEFAULT_VAL = "0.2"
_LEAST = 1.0  # pixels of a box's height and width


@dataclass(frozen=True)
class Annotated:
    """Images of one split and their objects.

    Attributes:
        images: read one at a time.
        boxes: of each image float32 [G, 4], absolute (x1, y1, x2, y2).
        labels: of each image int64 [G].
        crowd: of each image int64 [G], see `DetectionBatch`.
        shapes: (height, width) of each image as its annotation says; None where it does not.
        counts: what was met on the way: boxes that were clipped or left out, images without any.
    """

    images: Images
    boxes: list[np.ndarray]
    labels: list[np.ndarray]
    crowd: list[np.ndarray]
    shapes: list[tuple[int, int] | None]
    counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, indices: Sequence[int]) -> Annotated:
        """The images of these indices."""
        images = self.images
        if isinstance(images, MemoryImages):
            images = images.take(np.asarray(indices))
        elif isinstance(images, FileImages):
            images = FileImages(images.store, [images.names[i] for i in indices], images.labels[list(indices)])
        boxes, labels, crowd = ([column[i] for i in indices] for column in (self.boxes, self.labels, self.crowd))
        return Annotated(images, boxes, labels, crowd, [self.shapes[i] for i in indices], self.counts)


@dataclass(frozen=True)
class Source:
    """A data set that was found and listed.

    Attributes:
        name: its kind.
        classes: their names; label k is `classes[k]`.
        train, val: the images.
        mean, std: of each channel, of pixels in [0, 1].
        fingerprint: changes when the data do.
        divisor: of the padded height and width of a batch.
        teacher: images that a teacher is trained on, where they are others.
    """

    name: str
    classes: tuple[str, ...]
    train: Annotated
    val: Annotated
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    divisor: int = 32
    teacher: Annotated | None = None


def open_source(spec: str, *, argument: str = "data") -> Source:
    """Find and list the images that a specification names.

    Args:
        spec: one of
            ``scenes`` (see `scenes.make_scenes`), with the options ``size=48`` (pixels), ``train=300``, ``val=300``, ``teacher=3000`` (how
            many; the students' images are the first of the teacher's) and ``seed=0``;
            ``coco:IMAGES,ANNOTATIONS.json``: COCO's format, with ``,val_images=...,val_annotations=...``, or ``,val=0.2`` held out;
            ``voc:ROOT``: a folder or zip in Pascal VOC's layout, with ``,train=trainval,val=test`` (names of splits, ``train+val`` for
            two), or ``,val=0.2``. Training leaves out images without a box; ``,empty=keep`` keeps them.
        argument: what error messages call it.

    Raises:
        InputError: anything about it that cannot be used.
    """
    kind, colon, rest = spec.partition(":")
    path, options = _split_options(rest if colon else spec, argument)
    kind = kind if colon else path
    if kind not in _OPENERS:
        raise InputError(argument, spec, f"one of {', '.join(_OPENERS)}, followed by where the images are, e.g. voc:VOCdevkit/VOC2007")
    opener, known = _OPENERS[kind]
    if kind == "scenes" and colon and "=" in path:  # options alone: no path comes before them
        path, options = "", dict(part.strip().partition("=")[::2] for part in rest.split(","))
    for name, value in options.items():
        if name not in known:
            raise InputError(argument, f"{name}={value}", f"an option of {kind}: {near(name, known)}")
    return opener(path if colon else "", options, argument)


def _open_scenes(path: str, options: dict[str, str], argument: str) -> Source:
    if path:
        raise InputError(argument, f"scenes:{path}", "scenes alone, or with options such as scenes:size=64,train=300")
    numbers = dict(_SCENES)
    for name, value in options.items():
        if not value.isdecimal() or (name != "seed" and not int(value)):
            raise InputError(argument, f"{name}={value}", "a whole number" if name == "seed" else "a whole number of at least 1")
        numbers[name] = int(value)
    size, seed = numbers["size"], numbers["seed"]
    if size < 16:
        raise InputError(argument, f"size={size}", "at least 16 pixels")
    sides = (size // 6, size // 2)
    whole = _drawn(make_scenes(max(numbers["teacher"], numbers["train"]), size=size, sides=sides, seed=2 * seed), "train")
    val = _drawn(make_scenes(numbers["val"], size=size, sides=sides, seed=2 * seed + 1), "val")
    digest = hashlib.sha256(repr(sorted(numbers.items())).encode()).hexdigest()[:16]
    train, teacher = (whole.take(range(numbers[part])) for part in ("train", "teacher"))
    return Source("scenes", CLASSES, train, val, (0.45,) * 3, (0.25,) * 3, digest, 16, teacher)


def _drawn(scenes: list[Scene], split: str) -> Annotated:
    pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).contiguous()
    images = MemoryImages(pixels, np.zeros(len(scenes), np.int64), [f"scenes/{split}/{i}" for i in range(len(scenes))])
    crowd = [np.zeros(len(scene.labels), np.int64) for scene in scenes]
    shapes: list[tuple[int, int] | None] = [(len(scene.image), len(scene.image)) for scene in scenes]
    return Annotated(images, [scene.boxes for scene in scenes], [scene.labels for scene in scenes], crowd, shapes)


def _open_coco(path: str, options: dict[str, str], argument: str) -> Source:
    images, comma, annotations = path.rpartition(",")
    if not comma:
        raise InputError(argument, f"coco:{path}", "coco:IMAGES,ANNOTATIONS.json")
    classes, train = read.read_coco(images.strip(), annotations.strip(), argument)
    parts = [train]
    if "val_annotations" in options or "val_images" in options:
        other, val = read.read_coco(options.get("val_images", images), options.get("val_annotations", annotations), argument)
        check_same(classes, other, argument)
        parts.append(val)
    return _source("coco", classes, parts, options, argument)


def _open_voc(path: str, options: dict[str, str], argument: str) -> Source:
    if not path:
        raise InputError(argument, "voc:", "voc:ROOT")
    known = read.voc_splits(path, argument)
    share = "val" in options and _share(options["val"]) is not None
    if share or not (known or "train" in options or "val" in options):
        names = [options["train"]] if "train" in options else []
    elif "test" in known:
        names = [options.get("train", "trainval" if "trainval" in known else "train"), options.get("val", "test")]
    else:
        names = [options.get("train", "train"), options.get("val", "val")]
    parts = read.read_voc(path, names, argument)
    classes = tuple(sorted({thing.name for part in parts for things in part.things for thing in things}))
    return _source("voc", classes, parts, options, argument)


_OPENERS: dict[str, tuple[Callable[[str, dict[str, str], str], Source], tuple[str, ...]]] = {
    "scenes": (_open_scenes, tuple(_SCENES)),
    "coco": (_open_coco, ("val_images", "val_annotations", "val", "empty")),
    "voc": (_open_voc, ("train", "val", "empty")),
}


def _source(name: str, classes: tuple[str, ...], parts: Sequence[read.Annotated], options: dict[str, str], argument: str) -> Source:
    """A source of one or two annotated splits; of one, a share is held out."""
    empty = options.get("empty", "drop")
    if empty not in ("drop", "keep"):
        raise InputError(argument, f"empty={empty}", "drop or keep: training images without a box")
    found = [_with_boxes(part, classes, argument) for part in parts]
    if len(found) == 1:
        share = _share(options.get("val", _DEFAULT_VAL))
        if share is None:
            raise InputError(argument, f"val={options['val']}", "a share between 0 and 1, e.g. val=0.2")
        order = sample_order(0, 0, len(found[0]))
        held_out = max(1, round(share * len(order)))
        found = [found[0].take(np.sort(order[held_out:]).tolist()), found[0].take(np.sort(order[:held_out]).tolist())]
    elif both := set(parts[0].names) & set(parts[1].names):
        raise InputError(argument, f"{len(both)} images in both splits", "splits that share none")
    train, val = found
    with_target = [i for i, crowd in enumerate(train.crowd) if (crowd == 0).any()]
    counts = {**train.counts, "training images without a box": len(train) - len(with_target)}
    if empty == "drop":
        train = train.take(with_target)
    for images, which in ((train, "training"), (val, "validation")):
        if not sum(int((crowd == 0).sum()) for crowd in images.crowd):
            raise InputError(argument, f"no {which} image with a box", "at least one")
    train = Annotated(train.images, train.boxes, train.labels, train.crowd, train.shapes, {k: v for k, v in counts.items() if v})
    digest = hashlib.sha256(repr((name, classes)).encode())
    for annotated, part in zip((train, val), (parts[0], parts[-1]), strict=True):
        for index in range(len(annotated)):
            path = annotated.images.name(index)
            digest.update(f"{path} {part.sizes[path]}".encode() + annotated.boxes[index].tobytes() + annotated.labels[index].tobytes())
            digest.update(annotated.crowd[index].tobytes())
    return Source(name, classes, train, val, *_IMAGENET, digest.hexdigest()[:16])


def _with_boxes(part: read.Annotated, classes: tuple[str, ...], argument: str) -> Annotated:
    """Boxes clipped to their image where its size is known; those of less than a pixel are left out."""
    number = {name: k for k, name in enumerate(classes)}
    counts: Counter[str] = Counter()
    all_boxes: list[np.ndarray] = []
    all_labels: list[np.ndarray] = []
    all_crowd: list[np.ndarray] = []
    for path, things, shape in zip(part.names, part.things, part.shapes, strict=True):
        if missing := [thing.name for thing in things if thing.box is None]:
            raise InputError(argument, f"{path} with an object {missing[0]} without a box", "a box for each object")
        boxes = np.array([thing.box for thing in things], np.float32).reshape(-1, 4)
        if not np.isfinite(boxes).all():
            raise InputError(argument, f"{path} with a box of numbers that are not finite", "numbers of pixels")
        if shape is not None:
            inside = boxes.copy()
            inside[:, 0::2] = inside[:, 0::2].clip(0, shape[1])
            inside[:, 1::2] = inside[:, 1::2].clip(0, shape[0])
            counts["boxes that reached out of their image"] += int((inside != boxes).any(1).sum())
            boxes = inside
        large = ((boxes[:, 2:] - boxes[:, :2]) >= _LEAST).all(1)
        counts["boxes of less than a pixel"] += int((~large).sum())
        crowd = np.array([thing.crowd for thing in things], np.int64)
        counts["crowd or difficult boxes"] += int(crowd[large].sum())
        all_boxes.append(boxes[large])
        all_labels.append(np.array([number[thing.name] for thing in things], np.int64)[large])
        all_crowd.append(crowd[large])
    images = FileImages(part.store, part.names, np.zeros(len(part.names), np.int64))
    return Annotated(images, all_boxes, all_labels, all_crowd, part.shapes, counts)


def _split_options(text: str, argument: str) -> tuple[str, dict[str, str]]:
    """ "path,name=value" -> path and options. A comma belongs to the path unless "name=" follows it."""
    main, *rest = re.split(r",(?=\s*[A-Za-z_]\w*=)", text)
    options: dict[str, str] = {}
    for part in rest:
        name, _, value = part.strip().partition("=")
        if name in options:
            raise InputError(argument, part.strip(), f"the option {name} once")
        options[name] = value.strip()
    return main.strip(), options


def _share(text: str) -> float | None:
    """A share between 0 and 1; None for a text that is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < 1 else None
