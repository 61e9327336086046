"""Training sets made harder on purpose: long tails and wrong labels; always the same ones for the same seed.

They are asked for behind the data: ``imagefolder:photos,imbalance=exp:100,noise=0.2``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from torch import Tensor

from stillroom.engine.loading import sample_order, sample_seeds, uniforms
from stillroom.errors import InputError, near
from stillroom.tasks.images.stores import Images, taken

Shape = Literal["exp", "step", "reverse"]
_SHAPES = get_args(Shape)
ChosenClasses: TypeAlias = "list[str | int] | int | str | None"


@dataclass(frozen=True)
class Hardship:
    """What is done to a training set before anything is trained on it.

    Args:
        imbalance: shape of the class counts and the ratio between the largest and the smallest; None leaves them.
        largest: images of the largest class of a long tail; by default the mean count of the classes.
        noise: share of the images that get a label drawn evenly from the other classes.

    Raises:
        InputError: an unknown shape, a ratio below 1, a count below 1 or without an imbalance, a share outside [0, 1].
    """

    imbalance: tuple[Shape, float] | None = None
    largest: int | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.imbalance is not None:
            shape, ratio = self.imbalance
            if shape not in _SHAPES or not 1 <= ratio < math.inf:
                raise InputError("imbalance", f"{shape}:{ratio}", f"{'|'.join(_SHAPES)}:RATIO with a ratio of at least 1, e.g. exp:100")
        if self.largest is not None and (self.largest < 1 or self.imbalance is None):
            raise InputError("largest", self.largest, "a count of at least 1, besides an imbalance")
        if not 0 <= self.noise <= 1:
            raise InputError("noise", self.noise, "a share from 0 to 1")

    def __bool__(self) -> bool:
        return self != Hardship()


def read_hardship(spec: str, argument: str = "data") -> tuple[str, Hardship]:
    """A specification of data without the options that are meant for `Hardship`, and these.

    Raises:
        InputError: a value that cannot be read or used.
    """
    found: dict[str, str] = {}

    def take(match: re.Match[str]) -> str:
        name, value = match.group(1), match.group(2)
        if name in found:
            raise InputError(argument, f"{name}={value}", f"the option {name} once")
        found[name] = value
        return ""

    rest = re.sub(r",\s*(imbalance|largest|noise)=([^,]*)", take, spec)
    shape, _, ratio = found.get("imbalance", "").partition(":")
    imbalance = (shape, _number("imbalance", ratio, argument, found["imbalance"])) if "imbalance" in found else None
    largest = int(_number("largest", found["largest"], argument)) if "largest" in found else None
    try:
        return rest, Hardship(imbalance, largest, _number("noise", found.get("noise", "0"), argument))  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(argument, f"{error.argument}={error.got}", error.expected) from None


def long_tailed_counts(largest: float, classes: int, ratio: float, shape: Shape = "exp") -> np.ndarray:
    """Images of each class in a long tail, int64 [C], in the order of the labels.

    With q = 1 / ratio: ``exp`` n_c = floor(largest * q^(c / (C - 1))); ``reverse`` the same from the last class to the first; ``step``
    the first half (rounded down) of the classes `largest`, the others floor(largest * q).

    Args:
        largest: images of the largest class; for a benchmark made of a balanced set of N images, N / C.
        classes: C >= 2.
        ratio: of the largest to the smallest class (the "imbalance ratio", 100 or 50).
        shape: see above.

    Source: Cui et al. 2019, section 5.1; Buda et al. 2018 for ``step``.
    """
    if classes < 2:
        raise InputError("classes", classes, "at least two")
    rank = np.arange(classes) / (classes - 1)
    power = {"exp": rank, "reverse": rank[::-1], "step": (np.arange(classes) >= classes // 2).astype(np.float64)}[shape]
    # The factor keeps whole numbers whole: 49 images at a ratio of 49 are 1, though the product falls short of it by a rounding.
    return np.floor(largest * (1 / ratio) ** power * (1 + 1e-12)).astype(np.int64)


def long_tail(labels: np.ndarray, classes: int, hardship: Hardship, *, seed: int = 0) -> np.ndarray:
    """Indices, sorted, of a long-tailed part of a set: of each class as many as `long_tailed_counts` says, or all where it has fewer.

    Args:
        labels: int64 [N].
        classes: C.
        hardship: with an imbalance.
        seed: which images of a class are kept.

    Raises:
        InputError: a class would be left without an image.
    """
    assert hardship.imbalance is not None
    shape, ratio = hardship.imbalance
    largest = len(labels) / classes if hardship.largest is None else hardship.largest
    counts = long_tailed_counts(largest, classes, ratio, shape)
    if counts.min() < 1:
        raise InputError("imbalance", f"{shape}:{ratio:g}", f"a ratio of at most {largest:g}, which leaves each class an image")
    order = sample_order(seed, 0, len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels, minlength=classes)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[place < counts[labels[order]]])


def noisy_labels(labels: np.ndarray, classes: int, share: float, *, seed: int = 0) -> np.ndarray:
    """The labels, of which a share (rounded to whole images) is replaced by one of the other classes, each as likely; int64 [N].

    Args:
        labels: int64 [N].
        classes: C >= 2.
        share: in [0, 1].
        seed: which ones, and what they become.
    """
    wrong = sample_order(seed, 1, len(labels))[: round(share * len(labels))]
    shift = 1 + (uniforms(sample_seeds(seed, 1, wrong), 1)[:, 0] * (classes - 1)).astype(np.int64)
    changed = labels.copy()
    changed[wrong] = (labels[wrong] + shift) % classes
    return changed


def make_harder(images: Images, classes: int, hardship: Hardship, *, seed: int = 0) -> tuple[Images, dict[str, np.ndarray]]:
    """The training images after `hardship`, and the indices behind it: ``train`` that were kept, ``wrong labels`` among these."""
    indices = {}
    if hardship.imbalance is not None:
        indices["train"] = kept = long_tail(images.labels, classes, hardship, seed=seed)
        images = taken(images, kept)
    if hardship.noise:
        labels = noisy_labels(images.labels, classes, hardship.noise, seed=seed)
        indices["wrong labels"] = np.flatnonzero(labels != images.labels)
        images = taken(images, np.arange(len(images)), labels)
    return images, indices


def restricted(
    train_images: Images,
    val_images: Images,
    num_classes: int,
    *,
    train: np.ndarray | Tensor | None,
    val: np.ndarray | Tensor | None,
    labels: np.ndarray | Tensor | None,
    classes: Sequence[int] | None,
) -> tuple[tuple[Images, np.ndarray], tuple[Images, np.ndarray]]:
    """Training and validation images of fewer samples, classes or other labels, each with the indices that were kept.

    See `ImageData.restricted` for the arguments and what is raised.
    """
    place = np.arange(num_classes)
    if classes is not None:
        if len(set(classes)) != len(classes) or not set(classes) <= set(range(num_classes)):
            raise InputError("classes", list(classes), f"different numbers from 0 to {num_classes - 1}")
        place = np.full(num_classes, -1)
        place[list(classes)] = np.arange(len(classes))
        num_classes = len(classes)
    parts = []
    for argument, images, chosen in (("train", train_images, train), ("val", val_images, val)):
        kept = np.flatnonzero(place[images.labels] >= 0)
        if chosen is not None:
            which = np.asarray(chosen, np.int64)
            if len(which) and not 0 <= which.min() <= which.max() < len(kept):
                raise InputError(argument, f"indices up to {which.max()}", f"numbers from 0 to {len(kept) - 1}")
            kept = kept[which]
        now = place[images.labels[kept]]
        if argument == "train" and labels is not None:
            now = np.asarray(labels, np.int64)
            if now.shape != kept.shape or (len(now) and not 0 <= now.min() <= now.max() < num_classes):
                raise InputError("labels", f"{len(now)} labels", f"{len(kept)} numbers from 0 to {num_classes - 1}")
        parts.append((taken(images, kept, now), kept))
    return parts[0], parts[1]


def chosen_classes(
    given: list[str | int] | int | str, classes: Sequence[str], *, fewest: int = 1, most: int | None = None, argument: str = "known_classes"
) -> list[int]:
    """Numbers of the classes that are meant, in the order of `given`.

    Args:
        given: names of classes or their numbers, in a list or with commas between them; or one number: the first so many.
        classes: the names of all.
        fewest, most: how many may be meant; by default any number of them.
        argument: what the user calls the choice.

    Raises:
        InputError: a class that there is not, or twice; too few or too many.
    """
    most = len(classes) if most is None else most
    if isinstance(given, int):
        if not fewest <= given <= most:
            raise InputError(argument, given, f"a number from {fewest} to {most}, since there are {len(classes)} classes")
        return list(range(given))
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else [str(name) for name in given]
    numbers = []
    for name in names:
        if name not in classes and not (name.isdigit() and int(name) < len(classes)):
            raise InputError(argument, name, f"classes of the data or their numbers, such as {near(name, classes)}")
        numbers.append(classes.index(name) if name in classes else int(name))
    if len(set(numbers)) < len(numbers) or not fewest <= len(numbers) <= most:
        raise InputError(argument, given, f"{fewest} to {most} classes, each once")
    return numbers


def _number(name: str, text: str, argument: str, shown: str | None = None) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(argument, f"{name}={shown or text}", "a number" if shown is None else "e.g. exp:100") from None
