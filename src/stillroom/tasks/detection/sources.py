"""Where images with boxes come from, as one string: ``scenes``, ``coco:IMAGES,ANNOTATIONS.json``, ``voc:ROOT``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from stillroom.engine.loading import sample_order
from stillroom.errors import InputError, near
from stillroom.tasks.detection.files import look_at, told, upright
from stillroom.tasks.detection.scenes import CLASSES, Scene, make_scenes
from stillroom.tasks.images import annotations as read
from stillroom.tasks.images.arguments import split_options
from stillroom.tasks.images.folders import check_same, counted, warn_left_out
from stillroom.tasks.images.stores import FileImages, Images, MemoryImages, unreadable

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
        shapes: (height, width) of each image.
    """

    images: Images
    boxes: list[np.ndarray]
    labels: list[np.ndarray]
    crowd: list[np.ndarray]
    shapes: list[tuple[int, int]]

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
        return Annotated(images, boxes, labels, crowd, [self.shapes[i] for i in indices])

    def objects(self, num_classes: int) -> np.ndarray:
        """How many boxes there are of each class, int64 [C]; crowds are not counted."""
        labels = [label[crowd == 0] for label, crowd in zip(self.labels, self.crowd, strict=True)]
        return np.bincount(np.concatenate(labels), minlength=num_classes)


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
        counts: what was met in the files, and how often: boxes that were clipped, images that were left out, ...
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
    counts: Mapping[str, int] = field(default_factory=dict)


def open_source(spec: str, *, strict: bool = False, argument: str = "data") -> Source:
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
    kind, colon, rest = spec.partition(":")
    path, options = split_options(rest if colon else spec, argument)
    kind = kind if colon else path
    if kind not in _OPTIONS:
        raise InputError(argument, spec, f"one of {', '.join(_OPTIONS)}, followed by where the images are, e.g. voc:VOCdevkit/VOC2007")
    known = _OPTIONS[kind]
    if kind == "scenes" and colon and "=" in path:  # options alone: no path comes before them
        path, options = "", dict(part.strip().partition("=")[::2] for part in rest.split(","))
    for name, value in options.items():
        if name not in known:
            raise InputError(argument, f"{name}={value}", f"an option of {kind}: {near(name, known)}")
    path = path if colon else ""
    if kind == "scenes":
        return _open_scenes(path, options, argument)
    classes, parts = _LISTED[kind](path, options, argument)
    return _source(kind, classes, parts, options, argument, strict=strict)


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
    shapes = [(len(scene.image), len(scene.image)) for scene in scenes]
    return Annotated(images, [scene.boxes for scene in scenes], [scene.labels for scene in scenes], crowd, shapes)


Listed = tuple[tuple[str, ...], list[read.Annotated]]


def _list_coco(path: str, options: dict[str, str], argument: str) -> Listed:
    images, comma, annotations = path.rpartition(",")
    if not comma:
        raise InputError(argument, f"coco:{path}", "coco:IMAGES,ANNOTATIONS.json")
    classes, train = read.read_coco(images.strip(), annotations.strip(), argument)
    parts = [train]
    if "val_annotations" in options or "val_images" in options:
        other, val = read.read_coco(options.get("val_images", images), options.get("val_annotations", annotations), argument)
        check_same(classes, other, argument)
        parts.append(val)
    return classes, parts


def _list_voc(path: str, options: dict[str, str], argument: str) -> Listed:
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
    return tuple(sorted({thing.name for part in parts for things in part.things for thing in things})), parts


_LISTED: dict[str, Callable[[str, dict[str, str], str], Listed]] = {"coco": _list_coco, "voc": _list_voc}
_OPTIONS = {"scenes": tuple(_SCENES), "coco": ("val_images", "val_annotations", "val", "empty"), "voc": ("train", "val", "empty")}


def _source(
    name: str, classes: tuple[str, ...], parts: Sequence[read.Annotated], options: dict[str, str], argument: str, *, strict: bool
) -> Source:
    """A source of one or two annotated splits; of one, a share is held out."""
    empty = options.get("empty", "drop")
    if empty not in ("drop", "keep"):
        raise InputError(argument, f"empty={empty}", "drop or keep: training images without a box")
    if len(parts) == 2 and (both := set(parts[0].names) & set(parts[1].names)):
        raise InputError(argument, f"{len(both)} images in both splits", "splits that share none")
    counts: Counter[str] = Counter()
    found = [_with_boxes(part, classes, argument, counts) for part in _decodable(parts, argument, counts, strict=strict)]
    if len(found) == 1:
        share = _share(options.get("val", _DEFAULT_VAL))
        if share is None:
            raise InputError(argument, f"val={options['val']}", "a share between 0 and 1, e.g. val=0.2")
        order = sample_order(0, 0, len(found[0]))
        held_out = max(1, round(share * len(order)))
        found = [found[0].take(np.sort(order[held_out:]).tolist()), found[0].take(np.sort(order[:held_out]).tolist())]
    train, val = found
    with_target = [i for i, crowd in enumerate(train.crowd) if (crowd == 0).any()]
    counts[f"training images without a box, {'left out' if empty == 'drop' else 'kept'}"] = len(train) - len(with_target)
    counts["validation images without a box, kept"] = sum(not (crowd == 0).any() for crowd in val.crowd)
    if empty == "drop":
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
    return Source(name, classes, train, val, *_IMAGENET, digest.hexdigest()[:16], counts=+counts)


def _decodable(parts: Sequence[read.Annotated], argument: str, counts: Counter[str], *, strict: bool) -> list[read.Annotated]:
    """The splits without the image files that cannot be decoded, as classification does it."""
    kept: list[read.Annotated] = []
    names: list[str] = []
    for part in parts:
        damaged = set(unreadable(_files(part)).tolist())
        names += [part.names[i] for i in sorted(damaged)]
        good = [i for i in range(len(part.names)) if i not in damaged]
        if not good:
            raise InputError(argument, f"{len(part.names)} images, none of which can be decoded", "at least one")
        kept.append(
            read.Annotated(
                part.store, [part.names[i] for i in good], [part.things[i] for i in good], part.sizes, [part.shapes[i] for i in good]
            )
        )
    if names and strict:
        raise InputError(argument, counted(names), "none such, since strict was asked for")
    if names and int(getattr(rank_zero_only, "rank", 0)) == 0:
        warn_left_out(names)
    counts["image files that cannot be decoded, left out"] = len(names)
    return kept


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


def _share(text: str) -> float | None:
    """A share between 0 and 1; None for a text that is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < 1 else None
