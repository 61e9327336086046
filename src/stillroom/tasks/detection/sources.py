"""Where images with boxes come from, as one string: ``scenes``, ``scenes:size=64,train=300``."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from stillroom.errors import InputError, near
from stillroom.tasks.classification.images import Images, MemoryImages
from stillroom.tasks.detection.scenes import CLASSES, Scene, make_scenes

_SCENES = {"size": 48, "train": 300, "val": 300, "teacher": 3000, "seed": 0}


@dataclass(frozen=True)
class Annotated:
    """Images of one split and their objects.

    Attributes:
        images: read one at a time.
        boxes: of each image float32 [G, 4], absolute (x1, y1, x2, y2).
        labels: of each image int64 [G].
        crowd: of each image int64 [G], see `DetectionBatch`.
    """

    images: Images
    boxes: list[np.ndarray]
    labels: list[np.ndarray]
    crowd: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.boxes)


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
        spec: ``scenes`` (see `scenes.make_scenes`), with the options ``size=48`` (pixels), ``train=300``, ``val=300``, ``teacher=3000``
            (how many; the students' images are the first of the teacher's) and ``seed=0``.
        argument: what error messages call it.

    Raises:
        InputError: anything about it that cannot be used.
    """
    kind, _, rest = spec.partition(":")
    if kind != "scenes":
        raise InputError(argument, spec, "scenes, or scenes:size=64,train=300")
    numbers = dict(_SCENES)
    for part in filter(None, rest.split(",")):
        name, _, value = part.strip().partition("=")
        if name not in numbers:
            raise InputError(argument, part, f"an option of scenes: {near(name, numbers)}")
        if not value.isdecimal() or (name != "seed" and not int(value)):
            raise InputError(argument, part, "a whole number" if name == "seed" else "a whole number of at least 1")
        numbers[name] = int(value)
    size, seed = numbers["size"], numbers["seed"]
    sides = (max(2, size // 6), size // 2)
    whole = make_scenes(max(numbers["teacher"], numbers["train"]), size=size, sides=sides, seed=2 * seed)
    val = make_scenes(numbers["val"], size=size, sides=sides, seed=2 * seed + 1)
    return Source(
        "scenes",
        CLASSES,
        _annotated(whole[: numbers["train"]], "train"),
        _annotated(val, "val"),
        (0.45,) * 3,
        (0.25,) * 3,
        hashlib.sha256(repr(sorted(numbers.items())).encode()).hexdigest()[:16],
        16,
        _annotated(whole[: numbers["teacher"]], "train"),
    )


def _annotated(scenes: list[Scene], split: str) -> Annotated:
    pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).contiguous()
    names = [f"scenes/{split}/{i}" for i in range(len(scenes))]
    images = MemoryImages(pixels, np.zeros(len(scenes), np.int64), names)
    crowd = [np.zeros(len(scene.labels), np.int64) for scene in scenes]
    return Annotated(images, [scene.boxes for scene in scenes], [scene.labels for scene in scenes], crowd)
